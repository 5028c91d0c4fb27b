//go:build integration

package images

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// ENV-24, ENV-25, ENV-28, ENV-40: an image brings program, working directory and variables;
// its files belong to root and are read-only, and its user is not asked.
func TestImage(t *testing.T) {
	layout := harness.ImageLayout(t, map[string]any{
		"Entrypoint": []string{"/main"}, "WorkingDir": "/srv/app", "User": "0", "Env": []string{"FROM_IMAGE=yes", "PATH=/bin", "spring.profiles.active=prod", "_JAVA_OPTIONS=-Xss1m", "_HANDLER=evil"},
	})
	d := harness.Start(t, "--memory=512", "--env=MINE=1", "--image", layout)
	r := d.Do(script.Step{Op: "env"}, script.Step{Op: "read", Path: "here"}, script.Step{Op: "write", Path: "here", Data: "x"},
		script.Step{Op: "read", Path: "/proc/meminfo"}, script.Step{Op: "read", Path: "/sys/fs/cgroup/memory.max"})
	env := map[string]string{}
	for _, e := range r.Results[0].List {
		name, value, _ := strings.Cut(e, "=")
		env[name] = value
	}
	for name, want := range map[string]string{"FROM_IMAGE": "yes", "spring.profiles.active": "prod", "_JAVA_OPTIONS": "-Xss1m", "_HANDLER": "", "MINE": "1", "PATH": "/bin", "LD_LIBRARY_PATH": "", "TZ": ":UTC"} {
		if env[name] != want {
			t.Errorf("%s is %q, want %q", name, env[name], want)
		}
	}
	if got := r.Results[1]; got.Text != "in the image" {
		t.Errorf("read of a file in the working directory: %+v", got)
	}
	if got := r.Results[2]; got.Errno != int(syscall.EROFS) && got.Errno != int(syscall.EACCES) {
		t.Errorf("write into the image: %+v", got)
	}
	if got := r.Results[3:]; !strings.HasPrefix(got[0].Text, "MemTotal:         524288 kB\n") || got[1].Text != "536870912\n" { // ENV-40
		t.Errorf("the image sees other limits than 512 MB: %+v", got)
	}
	if uid := d.Guests()[0].Status("Uid"); strings.HasPrefix(uid, "0\t") {
		t.Errorf("the function runs as host root: %s", uid)
	}
}

// LOG-33, FE-02: an image whose program looks well, but is not executed: there is no more of
// it than the header.
func TestImageLaunchError(t *testing.T) {
	layout := harness.ImageLayout(t, map[string]any{"Entrypoint": []string{"/cut", "-x"}, "Cmd": []string{"app.handler"}, "WorkingDir": "/srv/app"})
	d := harness.Start(t, "--memory=512", "--image", layout)
	const failure = "fork/exec /cut: exec format error"
	d.Invoke("x").WantError(t, "Runtime.InvalidEntrypoint", "RequestId: <id> Error: "+failure)
	d.WaitFor("IMAGE\tLaunch error: " + failure + "\tEntrypoint: [/cut,-x]\tCmd: [app.handler]\tWorkingDir: [/srv/app]")
}

// FE-02: a script whose interpreter is there and is no program is refused at the start.
func TestImageInterpreter(t *testing.T) {
	layout := harness.ImageLayout(t, map[string]any{"Entrypoint": []string{"/script"}, "WorkingDir": "/srv/app"})
	out := harness.SandboxdCommand(t, "", append(append([]string{"run", "--listen=127.0.0.1:0"}, harness.NewFolders(t).Flags()...), "--image", layout)...)
	if out.Code != 2 || !strings.Contains(out.Stderr, `"/script": wants the interpreter "/srv/app/here", which the sandbox user cannot execute`) {
		t.Errorf("exit code %d, %s; want the interpreter to be named", out.Code, out.Stderr)
	}
}

// An image comes from a registry by the hands of a process without privileges, which may
// read certificates and gets the operator's credentials for that registry.
func TestImageFromRegistry(t *testing.T) {
	layout := harness.ImageLayout(t, map[string]any{"Entrypoint": []string{"/main"}, "WorkingDir": "/srv/app"})
	var index struct {
		Manifests []struct{ Digest, MediaType string }
	}
	if err := json.Unmarshal(harness.ReadFile(t, filepath.Join(layout, "index.json")), &index); err != nil {
		t.Fatal(err)
	}
	registry := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, digest := filepath.Split(r.URL.Path)
		user, password, _ := r.BasicAuth()
		switch {
		case user != "me" || password != "mine":
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		case name == "/v2/":
			return
		case name == "/v2/app/manifests/":
			digest = index.Manifests[0].Digest
			w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		}
		http.ServeFile(w, r, filepath.Join(layout, "blobs", strings.ReplaceAll(digest, ":", "/")))
	}))
	defer registry.Close()
	given := registry.Listener.Addr().String() + "/app:1"
	home := t.TempDir()
	login := fmt.Sprintf(`{"auths":{%q:{"username":"me","password":"mine"}}}`, registry.Listener.Addr().String())
	if err := os.WriteFile(filepath.Join(home, "config.json"), []byte(login), 0o600); err != nil {
		t.Fatal(err)
	}
	certificates := harness.NewFolders(t).State // a folder that others may enter
	if err := os.MkdirAll(certificates, 0o755); err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(certificates, "ca.pem")
	harness.WriteFile(t, ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: registry.Certificate().Raw}), 0o644)
	t.Setenv("SSL_CERT_FILE", ca)
	t.Setenv("HOME", t.TempDir())
	refused := harness.Launch(t, harness.NewFolders(t), "--memory=512", "--image", given)
	if code := refused.WaitExit(); code != 2 || !strings.Contains(refused.Log.Text(), "log in as the daemon's user with docker login") {
		t.Errorf("without credentials: exit code %d; log:\n%s", code, refused.Log.Text())
	}
	t.Setenv("DOCKER_CONFIG", home)
	d := harness.Start(t, "--memory=512", "--image", given)
	if r := d.Do(script.Step{Op: "read", Path: "here"}); r.Results[0].Text != "in the image" {
		t.Errorf("%+v", r.Results[0])
	}
}

// A compressed archive is decompressed by the process that reads it, which may write to no
// other file; a tag chooses the image.
func TestImageCompressedArchive(t *testing.T) {
	layout := harness.ImageLayout(t, map[string]any{"Entrypoint": []string{"/main"}, "WorkingDir": "/srv/app"})
	var index map[string]any
	name := filepath.Join(layout, "index.json")
	if err := json.Unmarshal(harness.ReadFile(t, name), &index); err != nil {
		t.Fatal(err)
	}
	index["manifests"].([]any)[0].(map[string]any)["annotations"] = map[string]string{"org.opencontainers.image.ref.name": "v1"}
	text, err := json.Marshal(index)
	if err != nil {
		t.Fatal(err)
	}
	harness.WriteFile(t, name, text, 0o600)
	archive := filepath.Join(t.TempDir(), "image.tar.gz")
	file, err := os.Create(archive)
	if err != nil {
		t.Fatal(err)
	}
	packed := gzip.NewWriter(file)
	w := tar.NewWriter(packed)
	if err := errors.Join(w.AddFS(os.DirFS(layout)), w.Close(), packed.Close(), file.Close()); err != nil {
		t.Fatal(err)
	}
	d := harness.Start(t, "--memory=512", "--image", archive+":v1")
	if r := d.Do(script.Step{Op: "read", Path: "here"}); r.Results[0].Text != "in the image" {
		t.Errorf("%+v", r.Results[0])
	}
}
