package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/rootfs"
)

// writeLayout writes an index as an OCI layout.
func writeLayout(t testing.TB, index v1.ImageIndex) string {
	t.Helper()
	dir := t.TempDir()
	if _, err := layout.Write(dir, index); err != nil {
		t.Fatal(err)
	}
	return dir
}

func indexOf(images ...v1.Image) v1.ImageIndex {
	var index v1.ImageIndex = empty.Index
	for _, img := range images {
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img})
	}
	return index
}

// platforms is an index of one image in several forms.
func platforms(t testing.TB, archs ...string) v1.ImageIndex {
	t.Helper()
	var index v1.ImageIndex = empty.Index
	for _, arch := range archs {
		img := imageFor(t, arch, mainConfig, baseLayer(t), tarOf(t, file("arch", arch)))
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	return mutate.AppendManifests(index, mutate.IndexAddendum{Add: makeImage(t, mainConfig), Descriptor: v1.Descriptor{
		Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"}, Annotations: map[string]string{"vnd.docker.reference.type": "attestation-manifest"}}})
}

// writeArchive puts the files of a directory into a tar archive.
func writeArchive(t testing.TB, dir string) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return writeFile(t, b.Bytes())
}

func writeFile(t testing.TB, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// dockerSave writes what docker save writes of these images.
func dockerSave(t testing.TB, images map[string]v1.Image) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.tar")
	tags := map[name.Tag]v1.Image{}
	for tag, img := range images {
		ref, err := name.NewTag(tag)
		if err != nil {
			t.Fatal(err)
		}
		tags[ref] = img
	}
	if err := tarball.MultiWriteToFile(path, tags); err != nil {
		t.Fatal(err)
	}
	return path
}

// untar unpacks an archive of regular files.
func untar(t testing.TB, archive string) string {
	t.Helper()
	dir := t.TempDir()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for tr := tar.NewReader(f); ; {
		hdr, err := tr.Next()
		if err == io.EOF {
			return dir
		}
		data, rerr := io.ReadAll(tr)
		if err := errors.Join(err, rerr, os.WriteFile(filepath.Join(dir, hdr.Name), data, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}

// testRegistry is a registry on the loopback. It counts requests for blobs, and wrap
// may change its answers.
type testRegistry struct {
	host  string
	blobs atomic.Int32
}

func newRegistry(t testing.TB, wrap func(http.Handler) http.Handler) *testRegistry {
	t.Helper()
	r := &testRegistry{}
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	if wrap != nil {
		handler = wrap(handler)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/blobs/") {
			r.blobs.Add(1)
		}
		handler.ServeHTTP(w, req)
	}))
	t.Cleanup(server.Close)
	t.Setenv("DOCKER_CONFIG", t.TempDir()) // nobody's credentials
	r.host = server.Listener.Addr().String()
	return r
}

func (r *testRegistry) push(t testing.TB, repo string, index v1.ImageIndex) string {
	t.Helper()
	ref, err := name.ParseReference(r.host + "/" + repo)
	if err == nil {
		err = remote.WriteIndex(ref, index)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ref.String()
}

func (r *testRegistry) pushImage(t testing.TB, repo string, img v1.Image) string {
	t.Helper()
	ref, err := name.ParseReference(r.host + "/" + repo)
	if err == nil {
		err = remote.Write(ref, img)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ref.String()
}

func digestOf(t testing.TB, img interface{ Digest() (v1.Hash, error) }) string {
	t.Helper()
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

// TestSources: the same image from everywhere gives the same function and one tree,
// whose layers are read once.
func TestSources(t *testing.T) {
	img := makeImage(t, mainConfig, baseLayer(t), tarOf(t, file("var/task/app", "1"), link("lib", "usr/lib")))
	id, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	reg := newRegistry(t, nil)
	dirLayout := writeLayout(t, indexOf(img))
	saved := dockerSave(t, map[string]v1.Image{"app:1": img})
	sources := map[string]string{
		"layout":                   dirLayout,
		"layout with nested index": writeLayout(t, mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: indexOf(img)})),
		"archive of a layout":      writeArchive(t, dirLayout),
		"docker save":              saved,
		"docker save, unpacked":    untar(t, saved),
		"registry, tag":            reg.pushImage(t, "team/app:1", img),
		"registry, digest":         reg.host + "/team/app@" + digestOf(t, img),
		"registry, index":          reg.push(t, "team/app:all", indexOf(img)),
	}
	e := newEnv(t)
	for source, given := range sources {
		t.Run(source, func(t *testing.T) {
			f, err := e.prepare(t, Options{Image: given})
			if err != nil {
				t.Fatal(err)
			}
			if f.Digest != id.Hex || f.Bootstrap != "/main" {
				t.Errorf("got digest %s, bootstrap %s", f.Digest, f.Bootstrap)
			}
		})
	}
	trees := e.trees(t)
	if len(trees) != 1 {
		t.Fatalf("trees %q", trees)
	}
	want := []string{"bin/", "lib -> usr/lib", "main 0755 = #!/bin/sh\n", "var/", "var/task/", "var/task/app = 1"}
	var got []string
	for _, line := range listing(t, trees[0]) {
		if !strings.HasPrefix(line, "bin/sh") {
			got = append(got, line)
		}
	}
	wantLines(t, got, want)

	before := reg.blobs.Load()
	if _, err := e.prepare(t, Options{Image: sources["registry, tag"]}); err != nil {
		t.Fatal(err)
	}
	if n := reg.blobs.Load() - before; n != 1 {
		t.Errorf("%d blobs were fetched of an image that is there: the configuration is enough", n)
	}
}

// TestCompressions: layers are taken by what they hold, and progress tells all bytes.
func TestCompressions(t *testing.T) {
	data := baseLayer(t, file("x", "1"))
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	diffID, _, err := v1.SHA256(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		stored []byte
		media  types.MediaType
	}{
		{"plain", data, types.OCIUncompressedLayer},
		{"gzip", gzipped(t, data), types.OCILayer},
		{"gzip in two members", append(gzipped(t, data[:1000]), gzipped(t, data[1000:])...), types.DockerLayer},
		{"zstd", enc.EncodeAll(data, nil), types.OCILayerZStd},
		{"zstd, called gzip", enc.EncodeAll(data, nil), types.OCILayer},
	} {
		t.Run(test.name, func(t *testing.T) {
			img, err := mutate.Append(empty.Image, mutate.Addendum{Layer: &storedLayer{static.NewLayer(test.stored, test.media), diffID}, MediaType: test.media})
			if err == nil {
				img, err = mutate.ConfigFile(img, withConfig(t, img, runtime.GOARCH, mainConfig))
			}
			if err != nil {
				t.Fatal(err)
			}
			var done, total int64
			_, err = newEnv(t).prepare(t, Options{Image: writeLayout(t, indexOf(img)), Progress: func(d, all int64) { done, total = d, all }})
			if err != nil {
				t.Fatal(err)
			}
			if done != int64(len(test.stored)) || total != done {
				t.Errorf("progress ended at %d of %d", done, total)
			}
		})
	}
}

// storedLayer is a layer in a form of its own.
type storedLayer struct {
	v1.Layer
	diffID v1.Hash
}

func (l *storedLayer) DiffID() (v1.Hash, error) { return l.diffID, nil }

func TestPlatforms(t *testing.T) {
	other := map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]
	reg := newRegistry(t, nil)
	for _, test := range []struct {
		name  string
		given string
		arch  string
		want  string // part of the error
	}{
		{"layout", writeLayout(t, platforms(t, other, runtime.GOARCH)), "", ""},
		{"registry", reg.push(t, "a:1", platforms(t, other, runtime.GOARCH)), "", ""},
		{"the other one", writeLayout(t, platforms(t, runtime.GOARCH, other)), other, ""},
		{"not offered", reg.push(t, "a:2", platforms(t, "s390x", other)), "", "offers linux/s390x, linux/" + other + ", needed is linux/" + runtime.GOARCH},
		{"nothing but attestations", writeLayout(t, platforms(t)), "", "lists no image"},
		{"only the configuration says it", reg.pushImage(t, "a:3", imageFor(t, other, mainConfig, baseLayer(t))), "",
			"is for linux/" + other + ", needed is linux/" + runtime.GOARCH},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := newEnv(t)
			_, err := e.prepare(t, Options{Image: test.given, Arch: test.arch})
			if test.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				arch := test.arch
				if arch == "" {
					arch = runtime.GOARCH
				}
				if got, err := os.ReadFile(filepath.Join(e.trees(t)[0], "arch")); err != nil || string(got) != arch {
					t.Errorf("got %q, %v", got, err)
				}
				return
			}
			var invalid *rootfs.InvalidError
			if !errors.As(err, &invalid) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
			if len(e.trees(t)) > 0 {
				t.Error("a tree was made")
			}
		})
	}
}

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
		{"manifest changed", img, func(_, manifest, _, _ string) { flip(t, manifest) }, rootfs.ErrDigest},
		{"configuration changed", img, func(_, _, config, _ string) { flip(t, config) }, rootfs.ErrDigest},
		{"layer changed", img, func(_, _, _, layer string) { flip(t, layer) }, rootfs.ErrDigest},
		{"layer cut", img, func(_, _, _, layer string) { must(t, os.Truncate(layer, 512)) }, rootfs.ErrDigest},
		{"layer longer", img, func(_, _, _, layer string) { must(t, os.Truncate(layer, 1<<20)) }, rootfs.ErrDigest},
		{"layer missing", img, func(_, _, _, layer string) { must(t, os.Remove(layer)) }, rootfs.ErrImage},
		{"layer is a link to the host", img, func(_, _, _, layer string) { must(t, errors.Join(os.Remove(layer), os.Symlink("/etc/passwd", layer))) }, nil},
		{"configuration missing", img, func(_, _, config, _ string) { must(t, os.Remove(config)) }, rootfs.ErrImage},
		{"wrong diffID", wrongDiff, nil, rootfs.ErrDigest},
		{"more diffIDs than layers", moreDiffs, nil, rootfs.ErrImage},
		{"lying size of the manifest", img, func(dir, _, _, _ string) {
			edit(t, filepath.Join(dir, "index.json"), func(doc map[string]any) { firstManifest(doc)["size"] = 7 })
		}, rootfs.ErrDigest},
		{"giant manifest", img, func(dir, _, _, _ string) {
			edit(t, filepath.Join(dir, "index.json"), func(doc map[string]any) { firstManifest(doc)["size"] = 1 << 40 })
		}, rootfs.ErrTooLarge},
		{"giant index", img, func(dir, _, _, _ string) { must(t, os.Truncate(filepath.Join(dir, "index.json"), 1<<40)) }, rootfs.ErrTooLarge},
		{"no digest", img, func(dir, _, _, _ string) {
			edit(t, filepath.Join(dir, "index.json"), func(doc map[string]any) { delete(firstManifest(doc), "digest") })
		}, rootfs.ErrImage},
		{"digest that is a path", img, func(dir, _, _, _ string) {
			edit(t, filepath.Join(dir, "index.json"), func(doc map[string]any) { firstManifest(doc)["digest"] = "sha256:../../../etc/passwd" })
		}, rootfs.ErrImage},
		{"old schema", img, func(dir, _, _, _ string) {
			edit(t, filepath.Join(dir, "index.json"), func(doc map[string]any) { doc["schemaVersion"] = 1 })
		}, rootfs.ErrImage},
		{"no images", img, func(dir, _, _, _ string) {
			edit(t, filepath.Join(dir, "index.json"), func(doc map[string]any) { doc["manifests"] = []any{} })
		}, rootfs.ErrImage},
		{"no JSON", img, func(dir, _, _, _ string) { must(t, os.Truncate(filepath.Join(dir, "index.json"), 10)) }, rootfs.ErrImage},
		{"two images", img, func(dir, _, _, _ string) {
			p, err := layout.FromPath(dir)
			must(t, err)
			must(t, p.AppendImage(second, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "second"})))
		}, rootfs.ErrImage},
		{"no layout", img, func(dir, _, _, _ string) { must(t, os.Remove(filepath.Join(dir, "index.json"))) }, rootfs.ErrImage},
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
		{"layer missing", entries(), rootfs.ErrImage},
		{"layer is a link to the host", entries(link("2/layer.tar", "/etc/passwd")), rootfs.ErrImage},
		{"links in a circle", entries(link("2/layer.tar", "../3/layer.tar"), link("3/layer.tar", "../2/layer.tar")), rootfs.ErrImage},
		{"other layer", entries(file("2/layer.tar", string(baseLayer(t, file("other", ""))))), rootfs.ErrDigest},
		{"two images", mustRead(t, dockerSave(t, map[string]v1.Image{"a:1": img, "a:2": second})), rootfs.ErrImage},
		{"gzip", gzipped(t, saved), rootfs.ErrImage},
		{"cut in a file", saved[:len(saved)/2], rootfs.ErrImage},
		{"empty", nil, rootfs.ErrImage},
		{"no archive", []byte("hello"), rootfs.ErrImage},
		{"device", tarOf(t, device("manifest.json", tar.TypeChar)), rootfs.ErrImage},
		{"name outside", tarOf(t, file("../manifest.json", "[]")), rootfs.ErrUnsafe},
		{"sparse", sparseFile(100_000), rootfs.ErrImage},
		{"configuration outside", tarOf(t, file("manifest.json", `[{"Config":"../../etc/passwd"}]`)), rootfs.ErrImage},
		{"configuration missing", tarOf(t, file("manifest.json", `[{"Config":"config.json"}]`)), rootfs.ErrImage},
		{"configuration with another digest", tarOf(t, file("manifest.json", `[{"Config":"`+strings.Repeat("a", 64)+`.json"}]`),
			file(strings.Repeat("a", 64)+".json", "{}")), rootfs.ErrDigest},
		{"no list", tarOf(t, file("manifest.json", `{}`)), rootfs.ErrImage},
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
		{"unknown name", answer("/manifests/1", status(http.StatusNotFound)), rootfs.ErrNotFound},
		{"denied", answer("/manifests/1", status(http.StatusForbidden)), rootfs.ErrNotFound},
		{"layer gone", answer(layerPath, status(http.StatusNotFound)), rootfs.ErrNotFound},
		{"layer broken off", answer(layerPath, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100000")
			w.Write(make([]byte, 700))
		}), nil},
		{"layer replaced", answer(layerPath, func(w http.ResponseWriter, _ *http.Request) {
			w.Write(make([]byte, m.Layers[0].Size))
		}), rootfs.ErrDigest},
		{"manifest is no manifest", answer("/manifests/1", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>") }), rootfs.ErrImage},
	} {
		t.Run(test.name, func(t *testing.T) {
			reg := newRegistry(t, test.wrap)
			given := reg.pushImage(t, "a:1", img)
			e := newEnv(t)
			_, err := e.prepare(t, Options{Image: given})
			var invalid *rootfs.InvalidError
			if test.kind == nil && (err == nil || errors.As(err, &invalid)) || !errors.Is(err, test.kind) && test.kind != nil {
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
		var invalid *rootfs.InvalidError
		if err == nil || errors.As(err, &invalid) {
			t.Errorf("got %v", err)
		}
	})
}

func TestNoSuchImage(t *testing.T) {
	for _, given := range []string{"/no/such/layout", "./no-such", "../no-such.tar", "NOT A REFERENCE", ""} {
		_, err := newEnv(t).prepare(t, Options{Image: given})
		if !errors.Is(err, rootfs.ErrNotFound) {
			t.Errorf("%q: got %v", given, err)
		}
	}
	fifo := filepath.Join(t.TempDir(), "fifo")
	must(t, unix.Mkfifo(fifo, 0o600))
	if _, err := newEnv(t).prepare(t, Options{Image: fifo}); !errors.Is(err, rootfs.ErrImage) {
		t.Errorf("pipe: got %v", err)
	}
}
