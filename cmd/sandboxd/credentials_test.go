package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/isolation/runc"
)

const sharedFile = `# written by a tool
[default]
aws_access_key_id = AKIDEFAULT
aws_secret_access_key=secret/with=signs
region = eu-west-1

[ other ]
aws_access_key_id = AKIOTHER
AWS_SECRET_ACCESS_KEY = other
aws_session_token = token
; aws_session_token = old
s3 =
    region = inside-of-s3

[profile of-config]
aws_access_key_id = AKICONFIG
aws_secret_access_key = config

[half]
aws_access_key_id = AKIHALF
`

// ENV-01, ENV-02: where the credentials and the region come from.
func TestCredentialSources(t *testing.T) {
	file := filepath.Join(t.TempDir(), "credentials")
	if err := os.WriteFile(file, []byte(sharedFile), 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"AWS_ACCESS_KEY_ID": "AKIENV", "AWS_SECRET_ACCESS_KEY": "env", "AWS_SESSION_TOKEN": "", "AWS_REGION": "", "AWS_DEFAULT_REGION": "ap-south-1"}
	for name, tt := range map[string]struct {
		env    map[string]string
		yaml   string
		args   []string
		want   message.Credentials
		region string
		err    string
		renews bool
	}{
		"none":                 {env: env, region: "us-east-1"},
		"flags":                {args: []string{"--access-key-id=A", "--secret-access-key=B", "--session-token=C", "--region=eu-north-1"}, want: message.Credentials{AccessKeyID: "A", SecretAccessKey: "B", SessionToken: "C"}, region: "eu-north-1"},
		"configuration":        {yaml: "access-key-id: A\nsecret-access-key: B\nregion: eu-north-1\n", want: message.Credentials{AccessKeyID: "A", SecretAccessKey: "B"}, region: "eu-north-1", renews: true},
		"both":                 {yaml: "access-key-id: A\nsecret-access-key: B\n", args: []string{"--secret-access-key=C"}, want: message.Credentials{AccessKeyID: "A", SecretAccessKey: "C"}, region: "us-east-1", renews: true},
		"flags and other keys": {yaml: "memory: 512\n", args: []string{"--access-key-id=A", "--secret-access-key=B"}, want: message.Credentials{AccessKeyID: "A", SecretAccessKey: "B"}, region: "us-east-1"},
		"environment":          {env: env, args: []string{"--credentials=env"}, want: message.Credentials{AccessKeyID: "AKIENV", SecretAccessKey: "env"}, region: "ap-south-1"},
		"environment, region":  {env: env, args: []string{"--credentials=env", "--region=eu-north-1"}, want: message.Credentials{AccessKeyID: "AKIENV", SecretAccessKey: "env"}, region: "eu-north-1"},
		"empty environment":    {env: map[string]string{"AWS_ACCESS_KEY_ID": "A", "AWS_SECRET_ACCESS_KEY": ""}, args: []string{"--credentials=env"}, err: "sudo --preserve-env="},
		"wrong region":         {env: map[string]string{"AWS_ACCESS_KEY_ID": "A", "AWS_SECRET_ACCESS_KEY": "B", "AWS_REGION": "mars"}, args: []string{"--credentials=env"}, err: `region "mars"`},
		"environment, profile": {env: env, args: []string{"--credentials=env", "--profile=x"}, err: "the environment has no profiles"},
		"file":                 {args: []string{"--credentials=" + file}, want: message.Credentials{AccessKeyID: "AKIDEFAULT", SecretAccessKey: "secret/with=signs"}, region: "eu-west-1", renews: true},
		"file in the config":   {yaml: "credentials: " + file + "\nprofile: other\n", want: message.Credentials{AccessKeyID: "AKIOTHER", SecretAccessKey: "other", SessionToken: "token"}, region: "us-east-1", renews: true},
		"profile of a config":  {args: []string{"--credentials=" + file, "--profile=of-config"}, want: message.Credentials{AccessKeyID: "AKICONFIG", SecretAccessKey: "config"}, region: "us-east-1", renews: true},
		"half a profile":       {args: []string{"--credentials=" + file, "--profile=half"}, err: "the profile half lacks aws_access_key_id or aws_secret_access_key"},
		"no profile":           {args: []string{"--credentials=" + file, "--profile=none"}, err: "it has no profile none"},
		"no file":              {args: []string{"--credentials=" + file + "x"}, err: "no such file"},
		"a folder":             {args: []string{"--credentials=" + filepath.Dir(file)}, err: "is not a regular file"},
		"half in the config":   {yaml: "secret-access-key: B\n", err: "secret-access-key without --access-key-id"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, n := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION"} {
				t.Setenv(n, tt.env[n])
			}
			o, err := parse(t, tt.yaml, tt.args...)
			if err == nil {
				err = o.completeCredentials()
			}
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("%v, want an error with %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if s := o.settings; s.credentials != tt.want || s.region != tt.region {
				t.Errorf("%+v %q; want %+v %q", s.credentials, s.region, tt.want, tt.region)
			}
			cfg := o.daemonConfig(runc.Host{})
			if c, err := cfg.Renew(); err != nil || c != tt.want || cfg.Worker.Renews != tt.renews {
				t.Errorf("renewed: %+v, %v; renews %v, want %v", c, err, cfg.Worker.Renews, tt.renews)
			}
		})
	}
}

// Shared files as people have them: what the AWS CLI and SDKs read is read.
func TestCredentialFileForms(t *testing.T) {
	want := message.Credentials{AccessKeyID: "A", SecretAccessKey: "b/c+d=#e"}
	for name, tt := range map[string]struct{ text, profile string }{
		"line ends of Windows":  {"[default]\r\naws_access_key_id = A\r\naws_secret_access_key = b/c+d=#e\r\n", ""},
		"byte order mark":       {"\uFEFF[default]\naws_access_key_id = A\naws_secret_access_key = b/c+d=#e\n", ""},
		"no last line end":      {"[default]\naws_access_key_id=A\naws_secret_access_key=b/c+d=#e", ""},
		"indented":              {"[default]\n  aws_access_key_id = A\n  aws_secret_access_key = b/c+d=#e\n", ""},
		"indented with tabs":    {"  [default]\n\n\taws_access_key_id = A\n# comment\n\taws_secret_access_key = b/c+d=#e\n[x]\naws_access_key_id = X\n", ""},
		"comments after values": {"[default] # of the team\naws_access_key_id = A # old\naws_secret_access_key = b/c+d=#e\t; of May\naws_session_token = # none\n", ""},
		"nested settings":       {"[default]\naws_access_key_id = A\ns3 =\n  aws_access_key_id = X\n  max_queue_size = 1\naws_secret_access_key = b/c+d=#e\n", ""},
		"quoted profile":        {"[profile \"my team\"]\naws_access_key_id = A\naws_secret_access_key = b/c+d=#e\n", "my team"},
		"spaces before profile": {"[profile  team]\naws_access_key_id = A\naws_secret_access_key = b/c+d=#e\n[profileteam]\naws_access_key_id=X\n", "team"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "credentials")
			if err := os.WriteFile(file, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			a := awsOptions{source: file, profile: tt.profile}
			if c, _, err := a.read(); err != nil || c != want {
				t.Errorf("%+v, %v; want %+v", c, err, want)
			}
		})
	}
}

// A renewal reads the file as it is then.
func TestCredentialsRenewed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "credentials")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("[default]\naws_access_key_id=A\naws_secret_access_key=B\n")
	o, err := parse(t, "", "--credentials="+file)
	if err == nil {
		err = o.completeCredentials()
	}
	if err != nil {
		t.Fatal(err)
	}
	write("[default]\naws_access_key_id=C\naws_secret_access_key=D\naws_session_token=E\n")
	if c, err := o.renewedCredentials(); err != nil || c != (message.Credentials{AccessKeyID: "C", SecretAccessKey: "D", SessionToken: "E"}) {
		t.Errorf("%+v, %v", c, err)
	}
	write("[default]\naws_access_key_id=C\n") // a tool is writing it
	if c, err := o.renewedCredentials(); err == nil {
		t.Errorf("half a profile: %+v", c)
	}
	os.Remove(file)
	if c, err := o.renewedCredentials(); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("no file: %+v, %v", c, err)
	}
}
