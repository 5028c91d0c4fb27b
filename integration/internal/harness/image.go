package harness

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// ImageLayout writes an OCI image layout and returns its folder. It has the test
// runtime as /main, two programs that only their execution shows to be none, and what is
// in more as /more. config goes into the image's configuration. Only root can read it.
func ImageLayout(t *testing.T, config map[string]any, more ...io.Reader) string {
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

	program, err := os.ReadFile(filepath.Join(Testbin, Actor))
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
