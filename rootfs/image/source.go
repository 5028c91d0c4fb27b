package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

// maxMetadata bounds manifests, indexes and configurations, which are kept in memory.
const maxMetadata = 4 << 20

// openFiles finds the image in a directory or an archive.
func (j ReadJob) openFiles(ctx context.Context, in files) (img *image, err error) {
	l := &local{given: j.Image, files: in}
	index, err := l.read(ctx, "index.json")
	if err == nil {
		c := &chooser{given: j.Image, arch: j.Arch, blobs: l, unique: true, want: j.Name}
		img, err = c.image(ctx, index)
	} else if errors.Is(err, fs.ErrNotExist) {
		img, err = l.dockerImage(ctx, j.Name)
	}
	if err != nil {
		return nil, err
	}
	return img, img.check(j.Arch)
}

// files are the files of a directory or archive, by clean relative names.
type files interface {
	// open gives a regular file and its size, or an error that is fs.ErrNotExist.
	open(name string) (io.ReadCloser, int64, error)
}

// local reads an image from files.
type local struct {
	given string
	files files
}

// read reads a small file.
func (l *local) read(ctx context.Context, name string) ([]byte, error) {
	rc, size, err := l.files.open(name)
	if err != nil {
		return nil, fmt.Errorf("%s of %s: %w", name, l.given, err)
	}
	defer rc.Close()
	return readSmall(ctx, l.given, name, rc, v1.Descriptor{Size: size})
}

// manifest reads a manifest or an index; in a layout they are blobs like all others.
func (l *local) manifest(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	return l.blob(ctx, d)
}

func (l *local) blob(_ context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	rc, _, err := l.files.open("blobs/" + d.Digest.Algorithm + "/" + d.Digest.Hex)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &invalid.Error{Kind: invalid.ErrImage, File: l.given, Entry: d.Digest.String(), Reason: "is missing", Fix: fixBuild}
	}
	return rc, err
}

// dockerManifest is an element of manifest.json, the list of images of docker save.
type dockerManifest struct {
	Config   string   `json:"Config"` // file name
	RepoTags []string `json:"RepoTags"`
	Layers   []string `json:"Layers"` // file names
}

// dockerImage reads what docker save has written. want is the name of the image among several.
func (l *local) dockerImage(ctx context.Context, want string) (*image, error) {
	bad := func(reason, fix string, err error) error {
		return &invalid.Error{Kind: invalid.ErrImage, File: l.given, Reason: reason, Fix: fix, Err: err}
	}
	data, err := l.read(ctx, "manifest.json")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, bad("has neither index.json nor manifest.json",
			"give an OCI layout or the output of docker save; for a tree of files use --rootfs", nil)
	}
	if err != nil {
		return nil, err
	}
	var form manifestForm
	if err := json.Unmarshal(data, &form); err == nil && form.SchemaVersion != 0 {
		return nil, bad("is a directory of skopeo's transport dir:", "copy it to a layout: skopeo copy dir:FOLDER oci:LAYOUT", nil)
	}
	var list []dockerManifest
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, bad("has a damaged manifest.json", fixBuild, err)
	}
	var tags []string
	for _, m := range list {
		tags = append(tags, m.RepoTags...)
	}
	if want != "" {
		list = slices.DeleteFunc(list, func(m dockerManifest) bool { return !isNamed(want, m.RepoTags) })
	}
	switch {
	case len(list) == 0 && want != "":
		return nil, bad(fmt.Sprintf("has no image %q; it has %s", invalid.Shorten(want), few(tags)), fixName, nil)
	case len(list) == 0:
		return nil, bad("holds no image", fixBuild, nil)
	case len(tags) == 0 && len(list) != 1:
		return nil, bad(fmt.Sprintf("holds %d images without a name", len(list)), "save one of them, by its name", nil)
	case len(list) != 1:
		return nil, bad(fmt.Sprintf("holds %d images (%s)", len(list), few(tags)), fixName, nil)
	}
	config, why := cleanName(list[0].Config)
	if why != "" {
		return nil, bad("names a configuration that "+why, fixBuild, nil)
	}
	if data, err = l.read(ctx, config); errors.Is(err, fs.ErrNotExist) {
		return nil, bad("has no configuration "+config, fixBuild, nil)
	} else if err != nil {
		return nil, err
	}
	img := &image{given: l.given}
	if img.id, _, err = v1.SHA256(bytes.NewReader(data)); err != nil {
		return nil, fmt.Errorf("%s: %w", l.given, err)
	}
	base := strings.TrimSuffix(filepath.Base(config), ".json")
	if len(base) == len(img.id.Hex) && base != img.id.Hex {
		return nil, &invalid.Error{Kind: invalid.ErrDigest, File: l.given, Entry: config, Reason: "has the digest " + img.id.String(), Fix: fixBuild}
	}
	if img.config, err = v1.ParseConfigFile(bytes.NewReader(data)); err != nil {
		return nil, bad("has a damaged configuration", fixBuild, err)
	}
	for _, file := range list[0].Layers {
		img.layers = append(img.layers, l.dockerLayer(file))
	}
	return img, nil
}

// dockerLayer is a layer that is only known by the name of its file.
func (l *local) dockerLayer(file string) layer {
	return layer{size: -1, open: func(context.Context) (io.ReadCloser, error) {
		name, why := cleanName(file)
		if why != "" {
			return nil, &invalid.Error{Kind: invalid.ErrImage, File: l.given, Entry: file, Reason: "is a layer that " + why, Fix: fixBuild}
		}
		rc, _, err := l.files.open(name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, &invalid.Error{Kind: invalid.ErrImage, File: l.given, Entry: file, Reason: "is missing", Fix: fixBuild}
		}
		return rc, err
	}}
}

// readSmall reads metadata and checks it against what d has of size and digest.
func readSmall(ctx context.Context, given, name string, r io.Reader, d v1.Descriptor) ([]byte, error) {
	bad := func(kind error, reason string, err error) error {
		return &invalid.Error{Kind: kind, File: given, Entry: name, Reason: reason, Fix: fixBuild, Err: err}
	}
	if d.Size > maxMetadata {
		return nil, bad(invalid.ErrTooLarge, fmt.Sprintf("has %d bytes, %d are allowed", d.Size, maxMetadata), nil)
	}
	v, err := newVerifier(ctx, r, d.Digest, d.Size, func(int64) {})
	if err != nil {
		return nil, bad(invalid.ErrImage, "has a digest of an unknown kind", err)
	}
	data, err := io.ReadAll(v)
	if err == nil {
		err = v.check()
	}
	if errors.Is(err, errDigest) {
		return nil, bad(invalid.ErrDigest, "is not what the image names", err)
	}
	if err != nil {
		return nil, fmt.Errorf("%s of %s: %w", name, given, err)
	}
	return data, nil
}

// fixName says how to choose one image of several.
const fixName = "give its name after the path, such as FILE:TAG or FILE@sha256:…"

// isNamed reports whether an image that has these names is the one that want names: by one of
// them, in full or in short, or by its tag alone.
func isNamed(want string, names []string) bool {
	return slices.ContainsFunc(names, func(has string) bool {
		if has == want {
			return true
		}
		full, err := name.ParseReference(has)
		if err != nil {
			return false
		}
		if tag, ok := full.(name.Tag); ok && strings.Contains(has, ":") && tag.TagStr() == want {
			return true
		}
		wanted, err := name.ParseReference(want)
		return err == nil && strings.ContainsAny(want, ":/@") && wanted.Name() == full.Name()
	})
}

// few lists names for a message.
func few(names []string) string {
	const most = 10
	if len(names) > most {
		return strings.Join(names[:most], ", ") + ", …"
	}
	return strings.Join(names, ", ")
}

// reason drops the path from an error whose message names it anyway.
func reason(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}
