package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

// openReference opens an image of a registry, over HTTPS. Private addresses are spoken to
// in plain HTTP too, where that fails.
func (j ReadJob) openReference(ctx context.Context) (*image, error) {
	auth := authn.Anonymous
	if j.Auth != (authn.AuthConfig{}) {
		auth = authn.FromConfig(j.Auth)
	}
	given := j.Image
	ref, err := name.ParseReference(given)
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", given, err)
	}
	puller, err := remote.NewPuller(remote.WithAuth(auth))
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", given, err)
	}
	r := &repository{given: given, name: ref.Context(), puller: puller}
	desc, err := puller.Get(ctx, ref)
	if err != nil {
		return nil, r.explain(err)
	}
	data, err := readSmall(ctx, given, "manifest", bytes.NewReader(desc.Manifest), v1.Descriptor{Size: int64(len(desc.Manifest))})
	if err != nil {
		return nil, err
	}
	img, err := (&chooser{given: given, arch: j.Arch, blobs: r}).image(ctx, data)
	if err != nil {
		return nil, err
	}
	return img, img.check(j.Arch)
}

// repository reads an image from a repository of a registry. Layers that a manifest wants from
// addresses of its own are asked of the repository only: a stranger's manifest does
// not choose whom the daemon talks to.
type repository struct {
	given  string
	name   name.Repository
	puller *remote.Puller
}

func (r *repository) manifest(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	desc, err := r.puller.Get(ctx, r.name.Digest(d.Digest.String()))
	if err != nil {
		return nil, r.explain(err)
	}
	return io.NopCloser(bytes.NewReader(desc.Manifest)), nil
}

func (r *repository) blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	l, err := r.puller.Layer(ctx, r.name.Digest(d.Digest.String()))
	if err != nil {
		return nil, r.explain(err)
	}
	rc, err := l.Compressed()
	if err != nil {
		return nil, r.explain(err)
	}
	return rc, nil
}

// explain tells what the operator can put right.
func (r *repository) explain(err error) error {
	var answer *transport.Error
	if !errors.As(err, &answer) {
		return fmt.Errorf("there is no file %s, and it cannot be pulled: %w", r.given, err)
	}
	bad := &invalid.Error{Kind: invalid.ErrNotFound, File: r.given, Err: err}
	switch answer.StatusCode {
	case http.StatusNotFound:
		bad.Reason, bad.Fix = "the registry does not have it", "correct the name"
	case http.StatusUnauthorized, http.StatusForbidden:
		bad.Reason, bad.Fix = "the registry does not give it", "correct the name, or log in as the daemon's user with docker login"
	default:
		return fmt.Errorf("pull %s: %w", r.given, err)
	}
	return bad
}
