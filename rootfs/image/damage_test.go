package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

// edit changes a JSON file of a layout.
func edit(t testing.TB, path string, change func(doc map[string]any)) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := json.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	change(doc)
	if data, err = json.Marshal(doc); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// parts gives the paths of a layout's manifest, configuration and first layer.
func parts(t testing.TB, dir string, img v1.Image) (manifest, config, layer string) {
	t.Helper()
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	blob := func(digest string) string { return filepath.Join(dir, "blobs", strings.ReplaceAll(digest, ":", "/")) }
	return blob(digestOf(t, img)), blob(m.Config.Digest.String()), blob(m.Layers[0].Digest.String())
}

// flip changes one byte in the middle of a file.
func flip(t testing.TB, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

func firstManifest(doc map[string]any) map[string]any {
	return doc["manifests"].([]any)[0].(map[string]any)
}

// TestDamagedLayouts: what does not fit together is refused, and no tree is kept.
func TestDamagedLayouts(t *testing.T) {
	img := makeImage(t, mainConfig, baseLayer(t))
	wrongDiff := func() v1.Image {
		cfg := withConfig(t, img, runtime.GOARCH, mainConfig)
		cfg.RootFS.DiffIDs = []v1.Hash{{Algorithm: "sha256", Hex: strings.Repeat("a", 64)}}
		wrong, err := mutate.ConfigFile(img, cfg)
		if err != nil {
			t.Fatal(err)
		}
		return wrong
	}()
	moreDiffs := func() v1.Image {
		cfg := withConfig(t, img, runtime.GOARCH, mainConfig)
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, cfg.RootFS.DiffIDs...)
		wrong, err := mutate.ConfigFile(img, cfg)
		if err != nil {
			t.Fatal(err)
		}
		return wrong
	}()
	second := makeImage(t, mainConfig, baseLayer(t, file("second", "")))
	for _, test := range []struct {
		name   string
		img    v1.Image
		damage func(dir, manifest, config, layer string)
		kind   error
	}{
		{"manifest changed", img, func(_, manifest, _, _ string) { flip(t, manifest) }, invalid.ErrDigest},
		{"configuration changed", img, func(_, _, config, _ string) { flip(t, config) }, invalid.ErrDigest},
		{"layer changed", img, func(_, _, _, layer string) { flip(t, layer) }, invalid.ErrDigest},
		{"layer cut", img, func(_, _, _, layer string) { must(t, os.Truncate(layer, 512)) }, invalid.ErrDigest},
		{"layer longer", img, func(_, _, _, layer string) { must(t, os.Truncate(layer, 1<<20)) }, invalid.ErrDigest},
		{"layer missing", img, func(_, _, _, layer string) { must(t, os.Remove(layer)) }, invalid.ErrImage},
		{"layer is a link to the host", img, func(_, _, _, layer string) { must(t, errors.Join(os.Remove(layer), os.Symlink("/etc/passwd", layer))) }, nil},
		{"configuration missing", img, func(_, _, config, _ string) { must(t, os.Remove(config)) }, invalid.ErrImage},
		{"wrong diffID", wrongDiff, nil, invalid.ErrDigest},
		{"more diffIDs than layers", moreDiffs, nil, invalid.ErrImage},
		{"lying size of the manifest", img, func(dir, _, _, _ string) {
			edit(t, filepath.Join(dir, "index.json"), func(doc map[string]any) { firstManifest(doc)["size"] = 7 })
		}, invalid.ErrDigest},
		{"giant manifest", img, func(dir, _, _, _ string) {
			edit(t, filepath.Join(dir, "index.json"), func(doc map[string]any) { firstManifest(doc)["size"] = 1 << 40 })
		}, invalid.ErrTooLarge},
		{"giant index", img, func(dir, _, _, _ string) { must(t, os.Truncate(filepath.Join(dir, "index.json"), 1<<40)) }, invalid.ErrTooLarge},
		{"no digest", img, func(dir, _, _, _ string) {
			edit(t, filepath.Join(dir, "index.json"), func(doc map[string]any) { delete(firstManifest(doc), "digest") })
		}, invalid.ErrImage},
		{"digest that is a path", img, func(dir, _, _, _ string) {
			edit(t, filepath.Join(dir, "index.json"), func(doc map[string]any) { firstManifest(doc)["digest"] = "sha256:../../../etc/passwd" })
		}, invalid.ErrImage},
		{"old schema", img, func(dir, _, _, _ string) {
			edit(t, filepath.Join(dir, "index.json"), func(doc map[string]any) { doc["schemaVersion"] = 1 })
		}, invalid.ErrImage},
		{"no images", img, func(dir, _, _, _ string) {
			edit(t, filepath.Join(dir, "index.json"), func(doc map[string]any) { doc["manifests"] = []any{} })
		}, invalid.ErrImage},
		{"no JSON", img, func(dir, _, _, _ string) { must(t, os.Truncate(filepath.Join(dir, "index.json"), 10)) }, invalid.ErrImage},
		{"two images", img, func(dir, _, _, _ string) {
			p, err := layout.FromPath(dir)
			must(t, err)
			must(t, p.AppendImage(second, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "second"})))
		}, invalid.ErrImage},
		{"no layout", img, func(dir, _, _, _ string) { must(t, os.Remove(filepath.Join(dir, "index.json"))) }, invalid.ErrImage},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := writeLayout(t, indexOf(test.img))
			if test.damage != nil {
				manifest, config, layer := parts(t, dir, test.img)
				test.damage(dir, manifest, config, layer)
			}
			e := newEnv(t)
			_, err := e.prepare(t, Options{Image: dir})
			if err == nil || test.kind != nil && !errors.Is(err, test.kind) {
				t.Errorf("got %v, want kind %v", err, test.kind)
			}
			if trees := e.trees(t); len(trees) > 0 {
				t.Errorf("trees %q", trees)
			}
		})
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestArchives(t *testing.T) {
	img, second := makeImage(t, mainConfig, baseLayer(t)), makeImage(t, mainConfig, baseLayer(t, file("x", "")))
	saved, err := os.ReadFile(dockerSave(t, map[string]v1.Image{"a:1": img}))
	must(t, err)
	layerData := baseLayer(t)
	diffID, _, err := v1.SHA256(bytes.NewReader(layerData))
	must(t, err)
	cfg, err := json.Marshal(v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, Config: mainConfig,
		RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{diffID, diffID}}})
	must(t, err)
	manifest := `[{"Config":"config.json","Layers":["1/layer.tar","2/layer.tar"]}]`
	entries := func(more ...entry) []byte {
		return tarOf(t, append([]entry{file("manifest.json", manifest), file("config.json", string(cfg)), file("1/layer.tar", string(layerData))}, more...)...)
	}
	for _, test := range []struct {
		name string
		data []byte
		kind error // nil: it is fine
	}{
		{"repeated layer as a link", entries(link("2/layer.tar", "../1/layer.tar")), nil},
		{"repeated layer as a hard link", entries(hard("2/layer.tar", "1/layer.tar")), nil},
		{"layer missing", entries(), invalid.ErrImage},
		{"layer is a link to the host", entries(link("2/layer.tar", "/etc/passwd")), invalid.ErrImage},
		{"links in a circle", entries(link("2/layer.tar", "../3/layer.tar"), link("3/layer.tar", "../2/layer.tar")), invalid.ErrImage},
		{"other layer", entries(file("2/layer.tar", string(baseLayer(t, file("other", ""))))), invalid.ErrDigest},
		{"two images", mustRead(t, dockerSave(t, map[string]v1.Image{"a:1": img, "a:2": second})), invalid.ErrImage},
		{"cut in a file", saved[:len(saved)/2], invalid.ErrImage},
		{"empty", nil, invalid.ErrImage},
		{"no archive", []byte("hello"), invalid.ErrImage},
		{"device", tarOf(t, device("manifest.json", tar.TypeChar)), invalid.ErrImage},
		{"name outside", tarOf(t, file("../manifest.json", "[]")), invalid.ErrUnsafe},
		{"sparse", sparseFile(100_000), invalid.ErrImage},
		{"configuration outside", tarOf(t, file("manifest.json", `[{"Config":"../../etc/passwd"}]`)), invalid.ErrImage},
		{"configuration missing", tarOf(t, file("manifest.json", `[{"Config":"config.json"}]`)), invalid.ErrImage},
		{"configuration with another digest", tarOf(t, file("manifest.json", `[{"Config":"`+strings.Repeat("a", 64)+`.json"}]`),
			file(strings.Repeat("a", 64)+".json", "{}")), invalid.ErrDigest},
		{"no list", tarOf(t, file("manifest.json", `{}`)), invalid.ErrImage},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := newEnv(t)
			_, err := e.prepare(t, Options{Image: writeFile(t, test.data)})
			if !errors.Is(err, test.kind) {
				t.Errorf("got %v, want kind %v", err, test.kind)
			}
			if trees := e.trees(t); test.kind != nil && len(trees) > 0 {
				t.Errorf("trees %q", trees)
			}
		})
	}
}

func mustRead(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	return data
}

// TestSparseArchive: bytes that are not there cannot be pointed at.
func TestSparseArchive(t *testing.T) {
	f, err := openArchive(writeFile(t, sparseFile(100_000)))
	must(t, err)
	defer f.Close()
	if _, err := listArchive(t.Context(), "x.tar", f); !errors.Is(err, invalid.ErrImage) {
		t.Errorf("got %v", err)
	}
}

// TestRegistryErrors: what the operator can put right is told apart from what is the
// network's fault.
func TestRegistryErrors(t *testing.T) {
	img := makeImage(t, mainConfig, baseLayer(t))
	m, err := img.Manifest()
	must(t, err)
	layerPath := "/blobs/" + m.Layers[0].Digest.String()
	answer := func(suffix string, serve http.HandlerFunc) func(http.Handler) http.Handler {
		return func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, suffix) {
					serve(w, r)
					return
				}
				next.ServeHTTP(w, r)
			})
		}
	}
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	for _, test := range []struct {
		name string
		wrap func(http.Handler) http.Handler
		kind error // nil: an error of no kind
	}{
		{"unknown name", answer("/manifests/1", status(http.StatusNotFound)), invalid.ErrNotFound},
		{"denied", answer("/manifests/1", status(http.StatusForbidden)), invalid.ErrNotFound},
		{"layer gone", answer(layerPath, status(http.StatusNotFound)), invalid.ErrNotFound},
		{"layer replaced", answer(layerPath, func(w http.ResponseWriter, _ *http.Request) {
			w.Write(make([]byte, m.Layers[0].Size))
		}), invalid.ErrDigest},
		{"manifest is no manifest", answer("/manifests/1", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>") }), invalid.ErrImage},
	} {
		t.Run(test.name, func(t *testing.T) {
			reg := newRegistry(t, test.wrap)
			given := reg.pushImage(t, "a:1", img)
			e := newEnv(t)
			_, err := e.prepare(t, Options{Image: given})
			var bad *invalid.Error
			if test.kind == nil && (err == nil || errors.As(err, &bad)) || !errors.Is(err, test.kind) && test.kind != nil {
				t.Errorf("got %v, want kind %v", err, test.kind)
			}
			if trees := e.trees(t); len(trees) > 0 {
				t.Errorf("trees %q", trees)
			}
		})
	}
	t.Run("nobody listens", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		must(t, l.Close())
		_, err = newEnv(t).prepare(t, Options{Image: l.Addr().String() + "/a:1"})
		var bad *invalid.Error
		if err == nil || errors.As(err, &bad) {
			t.Errorf("got %v", err)
		}
	})
}

func TestNoSuchImage(t *testing.T) {
	for _, given := range []string{"/no/such/layout", "./no-such", "../no-such.tar", "NOT A REFERENCE", ""} {
		_, err := newEnv(t).prepare(t, Options{Image: given})
		if !errors.Is(err, invalid.ErrNotFound) {
			t.Errorf("%q: got %v", given, err)
		}
	}
	fifo := filepath.Join(t.TempDir(), "fifo")
	must(t, unix.Mkfifo(fifo, 0o600))
	if _, err := newEnv(t).prepare(t, Options{Image: fifo}); !errors.Is(err, invalid.ErrImage) {
		t.Errorf("pipe: got %v", err)
	}
}
