package image

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

// maxIndexes is how deep indexes may lie in one another.
const maxIndexes = 4

// blobs is where the parts of an image come from. What they give is checked by who
// asks.
type blobs interface {
	manifest(context.Context, v1.Descriptor) (io.ReadCloser, error)
	blob(context.Context, v1.Descriptor) (io.ReadCloser, error)
}

// chooser finds the image for an architecture.
type chooser struct {
	given  string
	arch   string
	blobs  blobs
	unique bool   // the outermost index lists images to choose from, not forms of one image
	want   string // the name of one of these; "" if there must be one only
}

// manifestForm tells manifests and indexes apart where a media type is not given.
type manifestForm struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     types.MediaType `json:"mediaType"`
	Manifests     json.RawMessage `json:"manifests"`
}

// image gives the image of a manifest, or of an index, whose bytes have been checked.
func (c *chooser) image(ctx context.Context, data []byte) (*image, error) {
	for depth := range maxIndexes {
		var form manifestForm
		if err := json.Unmarshal(data, &form); err != nil {
			return nil, c.invalid(invalid.ErrImage, "has a damaged manifest", fixBuild, err)
		}
		if form.SchemaVersion != 2 || form.MediaType.IsSchema1() {
			return nil, c.invalid(invalid.ErrImage, fmt.Sprintf("has a manifest of form %d, known is 2", form.SchemaVersion), fixBuild, nil)
		}
		if form.Manifests == nil && !form.MediaType.IsIndex() {
			return c.fromManifest(ctx, data)
		}
		index, err := v1.ParseIndexManifest(bytes.NewReader(data))
		if err != nil {
			return nil, c.invalid(invalid.ErrImage, "has a damaged index", fixBuild, err)
		}
		list := index.Manifests
		if c.want != "" && depth == 0 {
			if list, err = c.named(list); err != nil {
				return nil, err
			}
		}
		d, err := c.choose(list, c.unique && depth == 0)
		if err != nil {
			return nil, err
		}
		if data, err = c.read(ctx, d, c.blobs.manifest); err != nil {
			return nil, err
		}
	}
	return nil, c.invalid(invalid.ErrImage, fmt.Sprintf("has more than %d indexes in one another", maxIndexes), fixBuild, nil)
}

// namesOf returns the names that a layout has for an image.
func namesOf(d v1.Descriptor) (names []string) {
	for _, annotation := range []string{"io.containerd.image.name", "org.opencontainers.image.ref.name"} { // the second is often but a tag
		if s := d.Annotations[annotation]; s != "" {
			names = append(names, s)
		}
	}
	return names
}

// named returns those of the list that have the wanted name.
func (c *chooser) named(list []v1.Descriptor) ([]v1.Descriptor, error) {
	var found []v1.Descriptor
	var offers []string
	for _, d := range list {
		names := append(namesOf(d), d.Digest.String())
		if isNamed(c.want, names) {
			found = append(found, d)
		}
		if s := names[0]; !slices.Contains(offers, s) {
			offers = append(offers, s)
		}
	}
	if len(found) == 0 {
		return nil, c.invalid(invalid.ErrImage, fmt.Sprintf("has no image %q; it has %s", invalid.Shorten(c.want), few(offers)), fixName, nil)
	}
	return found, nil
}

// choose picks the entry of an index that is for our platform, or else one that does
// not say for which it is: its configuration will.
func (c *chooser) choose(list []v1.Descriptor, unique bool) (v1.Descriptor, error) {
	var exact, silent []v1.Descriptor
	var offers []string
	for _, d := range list {
		switch p := d.Platform; {
		case d.MediaType != "" && !d.MediaType.IsImage() && !d.MediaType.IsIndex():
		case d.Annotations["vnd.docker.reference.type"] != "" || p != nil && p.OS == "unknown": // attestations
		case p == nil || p.OS == "" && p.Architecture == "":
			silent = append(silent, d)
		case p.OS == "linux" && p.Architecture == c.arch:
			exact = append(exact, d)
		default:
			if s := p.String(); !slices.Contains(offers, s) {
				offers = append(offers, s)
			}
		}
	}
	if len(exact) == 0 {
		exact = silent
	}
	if len(exact) == 0 && len(offers) == 0 {
		return v1.Descriptor{}, c.invalid(invalid.ErrImage, "lists no image", fixBuild, nil)
	}
	if len(exact) == 0 {
		return v1.Descriptor{}, c.invalid(invalid.ErrPlatform, fmt.Sprintf("offers %s, needed is linux/%s", few(offers), c.arch),
			"build it with --platform linux/"+c.arch, nil)
	}
	if unique && slices.ContainsFunc(exact, func(d v1.Descriptor) bool { return d.Digest != exact[0].Digest }) {
		names, count := make([]string, len(exact)), map[string]int{}
		for i, d := range exact {
			names[i] = append(namesOf(d), d.Digest.String())[0]
			count[names[i]]++
		}
		for i, d := range exact {
			if count[names[i]] > 1 { // a name that chooses none
				names[i] = d.Digest.String()
			}
		}
		return v1.Descriptor{}, c.invalid(invalid.ErrImage, fmt.Sprintf("holds %d images (%s)", len(exact), few(names)), fixName, nil)
	}
	return exact[0], nil // the first of several is the one to take, says the image-spec
}

// fromManifest gives the image of a manifest.
func (c *chooser) fromManifest(ctx context.Context, data []byte) (*image, error) {
	m, err := v1.ParseManifest(bytes.NewReader(data))
	if err != nil {
		return nil, c.invalid(invalid.ErrImage, "has a damaged manifest", fixBuild, err)
	}
	if !m.Config.MediaType.IsConfig() {
		return nil, c.invalid(invalid.ErrImage, fmt.Sprintf("is no container image, its configuration is of type %q", m.Config.MediaType),
			"give the image of a function", nil)
	}
	if data, err = c.read(ctx, m.Config, c.blobs.blob); err != nil {
		return nil, err
	}
	img := &image{given: c.given, id: m.Config.Digest}
	if img.config, err = v1.ParseConfigFile(bytes.NewReader(data)); err != nil {
		return nil, c.invalid(invalid.ErrImage, "has a damaged configuration", fixBuild, err)
	}
	for _, d := range m.Layers {
		if !d.MediaType.IsLayer() {
			return nil, c.invalid(invalid.ErrImage, fmt.Sprintf("has a layer of the unknown type %q", d.MediaType), fixBuild, nil)
		}
		if err := c.checkDescriptor(d); err != nil {
			return nil, err
		}
		img.layers = append(img.layers, layer{digest: d.Digest, size: d.Size, open: func(ctx context.Context) (io.ReadCloser, error) {
			return c.blobs.blob(ctx, d)
		}})
	}
	return img, nil
}

// read reads metadata and checks it.
func (c *chooser) read(ctx context.Context, d v1.Descriptor, from func(context.Context, v1.Descriptor) (io.ReadCloser, error)) ([]byte, error) {
	if err := c.checkDescriptor(d); err != nil {
		return nil, err
	}
	rc, err := from(ctx, d)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return readSmall(ctx, c.given, d.Digest.String(), rc, d)
}

// checkDescriptor refuses a blob that nothing could be checked against.
func (c *chooser) checkDescriptor(d v1.Descriptor) error {
	if d.Digest == (v1.Hash{}) || d.Size < 0 {
		return c.invalid(invalid.ErrImage, "names a part without a digest or size", fixBuild, nil)
	}
	return nil
}

func (c *chooser) invalid(kind error, reason, fix string, err error) error {
	return &invalid.Error{Kind: kind, File: c.given, Reason: reason, Fix: fix, Err: err}
}
