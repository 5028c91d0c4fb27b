//go:build integration

package lifecycle

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// awsOf returns the AWS variables that the function has now.
func awsOf(d *harness.Daemon) string {
	r := d.Do(script.Step{Op: "env"})
	var list []string
	for _, v := range r.Results[0].List {
		if name, _, _ := strings.Cut(v, "="); slices.Contains([]string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION"}, name) {
			list = append(list, v)
		}
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

// ENV-01, ENV-02: a function has the credentials and the region of the operator's choice,
// and no others.
func TestCredentials(t *testing.T) {
	code := harness.Function(t)
	t.Run("none", func(t *testing.T) {
		if got := awsOf(harness.Start(t, code)); got != "AWS_REGION=us-east-1" {
			t.Error(got)
		}
	})
	t.Run("flags", func(t *testing.T) {
		d := harness.Start(t, "--access-key-id=A", "--secret-access-key=B", "--region=eu-north-1", code)
		if got := awsOf(d); got != "AWS_ACCESS_KEY_ID=A AWS_REGION=eu-north-1 AWS_SECRET_ACCESS_KEY=B" {
			t.Error(got)
		}
	})
	t.Run("environment", func(t *testing.T) {
		d := harness.NewDaemon(t, harness.Sandboxd, harness.NewFolders(t), "--credentials=env", code)
		d.Cmd.Env = append(d.Cmd.Env, "AWS_ACCESS_KEY_ID=C", "AWS_SECRET_ACCESS_KEY=D", "AWS_SESSION_TOKEN=E", "AWS_REGION=ap-south-1")
		d.Run()
		d.Listening()
		if got := awsOf(d); got != "AWS_ACCESS_KEY_ID=C AWS_REGION=ap-south-1 AWS_SECRET_ACCESS_KEY=D AWS_SESSION_TOKEN=E" {
			t.Error(got)
		}
	})
}

// New credentials reach the function without a restart: a new sandbox replaces the warm one.
// A file that cannot be used changes nothing.
func TestCredentialsChange(t *testing.T) {
	file := filepath.Join(t.TempDir(), "credentials")
	write := func(text string) { // as tools do, in one step
		t.Helper()
		harness.WriteFile(t, file+".new", []byte(text), 0o600)
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	profile := func(id string) string {
		return "[default]\naws_access_key_id = " + id + "\naws_secret_access_key = secret\n"
	}
	write(profile("BEFORE"))
	for name, flags := range map[string][]string{"on demand": nil, "provisioned": {"--provisioned=1"}} {
		t.Run(name, func(t *testing.T) {
			write(profile("BEFORE"))
			d := harness.Start(t, append(append([]string{harness.OneCPU, "--credentials=" + file}, flags...), harness.Function(t))...)
			before := awsOf(d)
			if !strings.Contains(before, "AWS_ACCESS_KEY_ID=BEFORE") {
				t.Fatal(before)
			}
			write("[default]\naws_access_key_id = HALF\n")
			d.WaitFor("lacks aws_access_key_id or aws_secret_access_key")
			if got := awsOf(d); got != before {
				t.Errorf("half a profile: %s", got)
			}
			write(profile("AFTER"))
			d.WaitFor("the credentials have changed")
			harness.Eventually(t, harness.Patience, func() string {
				if got := awsOf(d); !strings.Contains(got, "AWS_ACCESS_KEY_ID=AFTER") {
					return "the function still has " + got
				}
				return ""
			})
		})
	}
}
