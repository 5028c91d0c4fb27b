package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

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
	return j.pull(ctx, defaultPatience)
}

func (j ReadJob) pull(ctx context.Context, patience patience) (*image, error) {
	auth := authn.Anonymous
	if j.Auth != (authn.AuthConfig{}) {
		auth = authn.FromConfig(j.Auth)
	}
	given := j.Image
	ref, err := name.ParseReference(given)
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", given, err)
	}
	r, err := openRepository(ctx, given, ref.Context(), auth, patience)
	if err != nil {
		return nil, err
	}
	manifest, err := r.get(ctx, ref)
	if err != nil {
		return nil, err
	}
	data, err := readSmall(ctx, given, "manifest", bytes.NewReader(manifest), v1.Descriptor{Size: int64(len(manifest))})
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
	given    string
	name     name.Repository
	patience patience
	puller   *remote.Puller
	client   *http.Client // for blobs
}

// openRepository logs in. What is authorized once is used for all requests; the library does
// not try these again, since that is left to patient.
func openRepository(ctx context.Context, given string, repo name.Repository, auth authn.Authenticator, patience patience) (*repository, error) {
	r := &repository{given: given, name: repo, patience: patience}
	plain := remote.DefaultTransport.(*http.Transport).Clone()
	plain.DisableCompression = true // a range is one of the bytes that are sent
	authorized, err := transport.NewWithContext(ctx, repo.Registry, auth, &patient{patience: patience, inner: plain}, []string{repo.Scope(transport.PullScope)})
	if err != nil {
		return nil, r.explain(err)
	}
	r.client = &http.Client{Transport: authorized, CheckRedirect: checkRedirect}
	if r.puller, err = remote.NewPuller(remote.WithTransport(authorized), remote.WithAuth(auth)); err != nil {
		return nil, fmt.Errorf("pull %s: %w", given, err)
	}
	return r, nil
}

func (r *repository) manifest(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	data, err := r.get(ctx, r.name.Digest(d.Digest.String()))
	if err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

// get gets a manifest, again if its transfer breaks.
func (r *repository) get(ctx context.Context, ref name.Reference) ([]byte, error) {
	for cuts := 0; ; cuts++ {
		desc, err := r.puller.Get(ctx, ref)
		if err == nil {
			return desc.Manifest, nil
		}
		if !broken(err) || cuts >= r.patience.cuts {
			return nil, r.explain(err)
		}
		if err := sleep(ctx, r.patience.pause<<cuts); err != nil {
			return nil, err
		}
	}
}

func (r *repository) blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	get := func(ctx context.Context, from int64) (*http.Response, error) { return r.getBlob(ctx, d.Digest, from) }
	resp, err := get(ctx, 0)
	if err != nil {
		return nil, err
	}
	return &resumed{patience: r.patience, ctx: ctx, size: d.Size, get: get, body: resp.Body}, nil
}

// getBlob asks for a blob from that byte on. A registry may answer with the whole of it.
func (r *repository) getBlob(ctx context.Context, digest v1.Hash, from int64) (*http.Response, error) {
	registry := r.name.Registry
	address := url.URL{Scheme: registry.Scheme(), Host: registry.RegistryStr(), Path: "/v2/" + r.name.RepositoryStr() + "/blobs/" + digest.String()}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", r.given, err)
	}
	if from > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", from))
	}
	resp, err := r.client.Do(req)
	if err != nil {
		if bad, ok := errors.AsType[*url.Error](err); ok {
			err = bad.Err // its address may hold a key
		}
		return nil, r.explain(err)
	}
	if from > 0 && !resumes(resp, from) {
		resp.Body.Close()
		return r.getBlob(ctx, digest, 0)
	}
	if err := transport.CheckError(resp, http.StatusOK, http.StatusPartialContent); err != nil {
		resp.Body.Close()
		return nil, r.explain(err)
	}
	if !resumes(resp, from) {
		resp.Body.Close()
		return nil, fmt.Errorf("pull %s: the registry sent the range %q when the whole blob was asked for; check the proxy on the way to it", r.given, resp.Header.Get("Content-Range"))
	}
	return resp, nil
}

// resumes reports whether an answer to a request for a range is of use. A server, or a proxy on
// the way, may not know ranges of this form, or send another one.
func resumes(resp *http.Response, from int64) bool {
	switch resp.StatusCode {
	case http.StatusRequestedRangeNotSatisfiable, http.StatusBadRequest:
		return false
	case http.StatusPartialContent:
		return strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", from))
	}
	return true
}

// checkRedirect refuses to be sent from a registry to an address of the host or of a private
// network, unless the registry is at that address itself.
func checkRedirect(req *http.Request, via []*http.Request) error {
	const most = 10 // as net/http
	if len(via) >= most {
		return fmt.Errorf("it was redirected %d times", most)
	}
	from, to := via[0].URL.Hostname(), req.URL.Hostname()
	addr, err := netip.ParseAddr(to)
	if err != nil || from == to {
		return nil
	}
	addr = addr.Unmap()
	if addr.IsPrivate() || addr.IsLoopback() || addr.IsLinkLocalUnicast() || addr.IsUnspecified() {
		return fmt.Errorf("%s redirects to %s, which is an address of a private network", from, to)
	}
	return nil
}

// explain tells what the operator can put right.
func (r *repository) explain(err error) error {
	var answer *transport.Error
	switch {
	case errors.Is(err, errSilent):
		return fmt.Errorf("there is no file %s, and it cannot be pulled: %w; %s", r.given, err, fixSilent)
	case !errors.As(err, &answer):
		return fmt.Errorf("there is no file %s, and it cannot be pulled: %w", r.given, err)
	}
	bad := &invalid.Error{Kind: invalid.ErrNotFound, File: r.given, Err: err}
	switch answer.StatusCode {
	case http.StatusNotFound:
		bad.Reason, bad.Fix = "the registry does not have it", "correct the name"
	case http.StatusUnauthorized, http.StatusForbidden:
		bad.Reason, bad.Fix = "the registry does not give it", "correct the name, or log in as the daemon's user with docker login"
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return fmt.Errorf("pull %s: the registry is too busy, or gives this host no more for now: %w; retry later, or log in as the daemon's user with docker login", r.given, err)
	default:
		return fmt.Errorf("pull %s: %w", r.given, err)
	}
	return bad
}
