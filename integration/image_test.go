//go:build integration

package integration

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/sandboxd/sandboxd/conformance/script"
)

// imageLayout writes an OCI image layout and returns its folder. It has the test
// runtime as /main, two programs that only their execution shows to be none, and what is
// in more as /more. config goes into the image's configuration. Only root can read it.
func imageLayout(t *testing.T, config map[string]any, more ...io.Reader) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	blob := func(content []byte) string {
		sum := sha256.Sum256(content)
		name := hex.EncodeToString(sum[:])
		path := filepath.Join(dir, "blobs", "sha256", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return "sha256:" + name
	}
	document := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}

	program, err := os.ReadFile(filepath.Join(testbin, actor))
	if err != nil {
		t.Fatal(err)
	}
	large, err := io.ReadAll(io.MultiReader(more...))
	if err != nil {
		t.Fatal(err)
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, h := range []tar.Header{
		{Name: "srv/app/", Typeflag: tar.TypeDir, Mode: 0o755, Uid: 1000, Gid: 1000},
		{Name: "srv/app/here", Typeflag: tar.TypeReg, Mode: 0o644},
		{Name: "main", Typeflag: tar.TypeReg, Mode: 0o4755, Uid: 1000, Gid: 1000},
		{Name: "script", Typeflag: tar.TypeReg, Mode: 0o755},
		{Name: "cut", Typeflag: tar.TypeReg, Mode: 0o755},
		{Name: "more", Typeflag: tar.TypeReg, Mode: 0o644},
	} {
		content := map[string][]byte{"main": program, "srv/app/here": []byte("in the image"),
			"script": []byte("#!/srv/app/here\n"), "cut": program[:100], "more": large}[h.Name]
		h.Size = int64(len(content))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}

	const oci = "application/vnd.oci.image."
	layerDigest := blob(layer.Bytes())
	configBlob := document(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "config": config,
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{layerDigest}},
	})
	manifest := document(map[string]any{
		"schemaVersion": 2, "mediaType": oci + "manifest.v1+json",
		"config": map[string]any{"mediaType": oci + "config.v1+json", "digest": blob(configBlob), "size": len(configBlob)},
		"layers": []any{map[string]any{"mediaType": oci + "layer.v1.tar", "digest": layerDigest, "size": layer.Len()}},
	})
	index := document(map[string]any{
		"schemaVersion": 2, "mediaType": oci + "index.v1+json",
		"manifests": []any{map[string]any{"mediaType": oci + "manifest.v1+json", "digest": blob(manifest), "size": len(manifest)}},
	})
	for name, content := range map[string][]byte{"index.json": index, "oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// ENV-24, ENV-25, ENV-28: an image brings program, working directory and variables;
// its files belong to root and are read-only, and its user is not asked.
func TestImage(t *testing.T) {
	layout := imageLayout(t, map[string]any{
		"Entrypoint": []string{"/main"}, "WorkingDir": "/srv/app", "User": "0", "Env": []string{"FROM_IMAGE=yes", "PATH=/bin"},
	})
	d := start(t, "--memory=512", "--env=MINE=1", "--image", layout)
	r := d.do(script.Step{Op: "env"}, script.Step{Op: "read", Path: "here"}, script.Step{Op: "write", Path: "here", Data: "x"})
	env := map[string]string{}
	for _, e := range r.Results[0].List {
		name, value, _ := strings.Cut(e, "=")
		env[name] = value
	}
	for name, want := range map[string]string{"FROM_IMAGE": "yes", "MINE": "1", "PATH": "/bin", "LD_LIBRARY_PATH": "", "TZ": ":UTC"} {
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
	if uid := d.guests()[0].status("Uid"); strings.HasPrefix(uid, "0\t") {
		t.Errorf("the function runs as host root: %s", uid)
	}
}

// LOG-33, FE-02: an image whose program looks well, but is not executed: the script's
// interpreter is no program, and of the other there is no more than the header.
func TestImageLaunchError(t *testing.T) {
	for name, reason := range map[string]string{"script": "permission denied", "cut": "exec format error"} {
		t.Run(name, func(t *testing.T) {
			layout := imageLayout(t, map[string]any{"Entrypoint": []string{"/" + name, "-x"}, "Cmd": []string{"app.handler"}, "WorkingDir": "/srv/app"})
			d := start(t, "--memory=512", "--image", layout)
			failure := "fork/exec /" + name + ": " + reason
			d.invoke("x").wantError(t, "Runtime.InvalidEntrypoint", "RequestId: <id> Error: "+failure)
			want := "IMAGE\tLaunch error: " + failure + "\tEntrypoint: [/" + name + ",-x]\tCmd: [app.handler]\tWorkingDir: [/srv/app]"
			d.waitFor(want)
		})
	}
}

// An image comes from a registry by the hands of a process without privileges, which may
// read certificates and gets the operator's credentials for that registry.
func TestImageFromRegistry(t *testing.T) {
	layout := imageLayout(t, map[string]any{"Entrypoint": []string{"/main"}, "WorkingDir": "/srv/app"})
	var index struct {
		Manifests []struct{ Digest, MediaType string }
	}
	if err := json.Unmarshal(readFile(t, filepath.Join(layout, "index.json")), &index); err != nil {
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
	certificates := newFolders(t).State // a folder that others may enter
	if err := os.MkdirAll(certificates, 0o755); err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(certificates, "ca.pem")
	writeFile(t, ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: registry.Certificate().Raw}), 0o644)
	t.Setenv("SSL_CERT_FILE", ca)
	t.Setenv("HOME", t.TempDir())
	refused := launch(t, newFolders(t), "--memory=512", "--image", given)
	if code := refused.waitExit(); code != 2 || !strings.Contains(refused.Log.Text(), "log in as the daemon's user with docker login") {
		t.Errorf("without credentials: exit code %d; log:\n%s", code, refused.Log.Text())
	}
	t.Setenv("DOCKER_CONFIG", home)
	d := start(t, "--memory=512", "--image", given)
	if r := d.do(script.Step{Op: "read", Path: "here"}); r.Results[0].Text != "in the image" {
		t.Errorf("%+v", r.Results[0])
	}
}
