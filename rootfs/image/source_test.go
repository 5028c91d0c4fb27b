package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"log"
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
