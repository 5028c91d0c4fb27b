package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
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

	"github.com/sandboxd/sandboxd/rootfs/invalid"
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

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
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
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	sources := map[string]string{
		"layout":                   dirLayout,
		"layout with nested index": writeLayout(t, mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: indexOf(img)})),
		"archive of a layout":      writeArchive(t, dirLayout),
		"docker save":              saved,
		"docker save, unpacked":    untar(t, saved),
		"docker save, gzip":        writeFile(t, gzipped(t, readFile(t, saved))),
		"layout, zstd":             writeFile(t, enc.EncodeAll(readFile(t, writeArchive(t, dirLayout)), nil)),
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

// A compressed archive that is damaged, too large or of another form is an error of its own
// kind, and leaves nothing on the disk of the store.
func TestCompressedArchives(t *testing.T) {
	plain := readFile(t, dockerSave(t, map[string]v1.Image{"app:1": makeImage(t, mainConfig, baseLayer(t))}))
	packed := gzipped(t, plain)
	flipped := bytes.Clone(packed)
	flipped[len(flipped)-6] ^= 1 // of the checksum
	for name, test := range map[string]struct {
		data []byte
		kind error
		want string
	}{
		"cut":       {packed[:len(packed)/2], invalid.ErrImage, "is damaged"},
		"changed":   {flipped, invalid.ErrImage, "is damaged"},
		"too large": {gzipped(t, make([]byte, 1<<20+maxArchiveMetadata+1)), invalid.ErrTooLarge, "more than 65.0 MiB once it is decompressed"},
		"xz":        {[]byte("\xfd7zXZ\x00\x00\x04"), invalid.ErrImage, "xz -d"},
		"bzip2":     {[]byte("BZh91AY&SY"), invalid.ErrImage, "bzip2 -d"},
		"no tar":    {gzipped(t, []byte("hello")), invalid.ErrImage, "cannot be read as an archive"},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			_, err := e.prepare(t, Options{Image: writeFile(t, test.data), Limits: Limits{Bytes: 1 << 20}})
			if !errors.Is(err, test.kind) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
			if trees := e.trees(t); len(trees) > 0 {
				t.Errorf("trees %q", trees)
			}
		})
	}
}

// One image of several in a layout or an archive is chosen by its name or tag after the path.
func TestNames(t *testing.T) {
	tagged := func(names map[string]string) string {
		var index v1.ImageIndex = empty.Index
		for _, tag := range slices.Sorted(maps.Keys(names)) {
			index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: makeImage(t, mainConfig, baseLayer(t), tarOf(t, file("tag", tag))),
				Descriptor: v1.Descriptor{Annotations: map[string]string{names[tag]: tag}}})
		}
		return writeLayout(t, index)
	}
	const short, full = "org.opencontainers.image.ref.name", "io.containerd.image.name"
	byTag := tagged(map[string]string{"v1": short, "v2": short})
	byName := tagged(map[string]string{"docker.io/me/app:v1": full, "quay.example/me/app:v2": short})
	saved := dockerSave(t, map[string]v1.Image{"app:v1": makeImage(t, mainConfig, baseLayer(t), tarOf(t, file("tag", "v1"))), "app:v2": makeImage(t, mainConfig, baseLayer(t), tarOf(t, file("tag", "v2")))})
	twice := tagged(map[string]string{"v1": short, "localhost/app:v1": full}) // both are v1
	same := func(tag string) v1.Descriptor {
		return v1.Descriptor{Annotations: map[string]string{short: tag}}
	}
	sameName := writeLayout(t, mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: makeImage(t, mainConfig, baseLayer(t)), Descriptor: same("v1")},
		mutate.IndexAddendum{Add: makeImage(t, mainConfig, baseLayer(t), tarOf(t, file("tag", "x"))), Descriptor: same("v1")}))
	unnamed := t.TempDir()
	must(t, os.WriteFile(filepath.Join(unnamed, "manifest.json"), []byte(`[{"Config":"a"},{"Config":"b"}]`), 0o644))
	none := t.TempDir()
	must(t, os.WriteFile(filepath.Join(none, "manifest.json"), []byte(`[]`), 0o644))
	skopeo := t.TempDir()
	must(t, os.WriteFile(filepath.Join(skopeo, "manifest.json"), []byte(`{"schemaVersion":2,"config":{},"layers":[]}`), 0o644))
	for given, want := range map[string]string{
		byTag + ":v2": "v2", byTag + ":v1": "v1", byName + ":me/app:v1": "docker.io/me/app:v1", byName + ":v2": "quay.example/me/app:v2",
		byName + ":quay.example/me/app:v2": "quay.example/me/app:v2", saved + ":app:v2": "v2", saved + ":v1": "v1",
		byTag:                  "holds 2 images (v1, v2); give its name after the path",
		twice + ":v1":          "holds 2 images (localhost/app:v1, v1)",
		sameName + ":v1":       "holds 2 images (sha256:",
		unnamed:                "holds 2 images without a name; save one of them",
		none:                   "holds no image",
		byTag + ":v3":          `has no image "v3"; it has v1, v2`,
		saved:                  "holds 2 images",
		saved + ":other:v1":    `has no image "other:v1"`,
		skopeo:                 "skopeo copy dir:",
		"oci:" + byTag + ":v1": "leave out oci:",
		"docker://app:v1":      "leave out docker://",
		"dir:" + skopeo:        "leave out dir:",
		t.TempDir() + ":v1":    "does not exist",
	} {
		e := newEnv(t)
		_, err := e.prepare(t, Options{Image: given})
		if err != nil {
			if !errors.As(err, new(*invalid.Error)) || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", given, err, want)
			}
			continue
		}
		if tag := string(readFile(t, filepath.Join(e.trees(t)[0], "tag"))); tag != want {
			t.Errorf("%s: got %q, want %q", given, tag, want)
		}
	}
	index := readFile(t, filepath.Join(byTag, "index.json"))
	m, err := v1.ParseIndexManifest(bytes.NewReader(index))
	must(t, err)
	if _, err := newEnv(t).prepare(t, Options{Image: byTag + "@" + m.Manifests[1].Digest.String()}); err != nil {
		t.Error(err)
	}
}

// A path that exists is one as it is, and what may be a reference is no path unless it is
// plain that there is an image.
func TestSplitName(t *testing.T) {
	t.Chdir(t.TempDir())
	must(t, errors.Join(os.Mkdir("layout", 0o755), os.WriteFile("layout/index.json", nil, 0o644), os.Mkdir("myfn", 0o755), os.WriteFile("app", nil, 0o644),
		os.WriteFile("app.tar.gz", nil, 0o644), os.WriteFile("with:colon", nil, 0o644)))
	for given, want := range map[string][2]string{
		"layout:v1": {"layout", "v1"}, "layout@sha256:ab": {"layout", "sha256:ab"}, "layout:me/app:v1": {"layout", "me/app:v1"}, "layout": {"layout", ""},
		"myfn:v1": {"myfn:v1", ""}, "app:v1": {"app:v1", ""}, "./app:v1": {"./app", "v1"}, "app.tar.gz:v1": {"app.tar.gz", "v1"},
		"with:colon": {"with:colon", ""}, "none:v1": {"none:v1", ""}, "": {"", ""},
	} {
		if path, name := splitName(given); path != want[0] || name != want[1] {
			t.Errorf("%s: %q, %q, want %q", given, path, name, want)
		}
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
			var bad *invalid.Error
			if !errors.As(err, &bad) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
			if len(e.trees(t)) > 0 {
				t.Error("a tree was made")
			}
		})
	}
}
