package image

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/zstd"

	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

// layer is one layer of an image. Only what it holds decides how it is compressed.
type layer struct {
	diffID v1.Hash // of the tar stream
	digest v1.Hash // of the bytes as stored; the zero Hash if the source has none
	size   int64   // of the bytes as stored; -1 if the source does not say
	open   func(context.Context) (io.ReadCloser, error)
}

// maxWindow bounds the memory that decompressing a zstd layer takes: what zstd's own
// tool allows without being told.
const maxWindow = 128 << 20

// layerReader reads one layer and checks all that is known of its stored form.
type layerReader struct {
	image  *image
	layer  layer
	number int         // from 1, for messages
	count  func(int64) // is told of bytes read, as stored
}

// each calls take with the tar stream, piece by piece. It returns nil only if the layer
// is whole and is the one that the image names; whether the stream has the right diffID
// is for who takes it to check.
func (r *layerReader) each(ctx context.Context, take func([]byte) error) error {
	rc, err := r.layer.open(ctx)
	if err != nil {
		return err
	}
	defer rc.Close()
	stored, err := newVerifier(ctx, rc, r.layer.digest, r.layer.size, r.count)
	if err != nil {
		return r.wrap(err)
	}
	plain, closePlain, err := decompress(stored)
	if err != nil {
		return r.explain(stored, err)
	}
	defer closePlain()
	buf := make([]byte, maxData)
	for {
		n, err := plain.Read(buf)
		if n > 0 {
			if err := take(buf[:n]); err != nil {
				return r.wrap(err)
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return r.explain(stored, err)
		}
	}
	if _, err := io.Copy(io.Discard, stored); err != nil { // what follows is part of the digest
		return r.explain(stored, err)
	}
	return r.wrap(stored.check())
}

// explain tells errors of the source and of the layer apart.
func (r *layerReader) explain(stored *verifier, err error) error {
	if stored.err != nil {
		return r.wrap(stored.err)
	}
	if _, rest := io.Copy(io.Discard, stored); rest == nil && errors.Is(stored.check(), errDigest) {
		return r.wrap(stored.check()) // not made so, but changed on its way
	}
	return invalidLayer(r.image.given, r.number, invalid.ErrImage, "is damaged", err)
}

// wrap says where an error came from; of a wrong digest it says that too.
func (r *layerReader) wrap(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errDigest):
		return invalidLayer(r.image.given, r.number, invalid.ErrDigest, "is not what the image names", err)
	}
	return fmt.Errorf("layer %d of %s: %w", r.number, r.image.given, err)
}

func invalidLayer(given string, number int, kind error, reason string, err error) error {
	return &invalid.Error{Kind: kind, File: given, Reason: fmt.Sprintf("its layer %d %s", number, reason), Fix: fixBuild, Err: err}
}

// hostError is an error of the place that the files are written to.
type hostError struct{ err error }

func (e *hostError) Error() string { return e.err.Error() }
func (e *hostError) Unwrap() error { return e.err }

// The beginnings of compressed files.
var (
	gzipMagic = []byte{0x1f, 0x8b}             // RFC 1952
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd} // RFC 8878
)

// compressed reports whether decompress knows how a file that begins so is compressed.
func compressed(head []byte) bool {
	return bytes.HasPrefix(head, gzipMagic) || bytes.HasPrefix(head, zstdMagic)
}

// decompress gives the tar stream in r by its first bytes: gzip, zstd or plain.
func decompress(r io.Reader) (plain io.Reader, done func(), err error) {
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(head, gzipMagic):
		zr, err := gzip.NewReader(br)
		if err != nil {
			return nil, nil, err
		}
		return zr, func() {}, nil
	case bytes.HasPrefix(head, zstdMagic):
		zr, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, nil, err
		}
		return zr, zr.Close, nil
	}
	return br, func() {}, nil
}

var errDigest = errors.New("digest or size is another")

// verifier reads a blob and keeps what is needed to check it afterwards.
type verifier struct {
	ctx   context.Context
	r     io.Reader
	want  v1.Hash // the zero Hash: nothing to check
	size  int64   // -1: unknown
	sum   hash.Hash
	n     int64
	count func(int64)
	err   error // the first one that was no io.EOF
}

func newVerifier(ctx context.Context, r io.Reader, want v1.Hash, size int64, count func(int64)) (*verifier, error) {
	v := &verifier{ctx: ctx, r: r, want: want, size: size, count: count}
	if want != (v1.Hash{}) {
		sum, err := v1.Hasher(want.Algorithm)
		if err != nil {
			return nil, err
		}
		v.sum = sum
	}
	return v, nil
}

// Read passes on what the blob holds, at most what its size allows.
func (v *verifier) Read(p []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	if v.err = v.ctx.Err(); v.err != nil {
		return 0, v.err
	}
	n, err := v.r.Read(p)
	v.n += int64(n)
	v.count(int64(n))
	if v.sum != nil {
		v.sum.Write(p[:n])
	}
	if v.size >= 0 && v.n > v.size {
		n, err = 0, fmt.Errorf("%w: it is longer than the %d bytes that it should have", errDigest, v.size)
	}
	if err != nil && err != io.EOF {
		if v.size >= 0 && v.n == v.size { // all is there: a source that checks by itself has found the fault
			if wrong := v.check(); wrong != nil {
				err = wrong
			}
		}
		v.err = err
	}
	return n, err
}

// check compares size and digest once all has been read.
func (v *verifier) check() error {
	if v.size >= 0 && v.n != v.size {
		return fmt.Errorf("%w: it has %d bytes, not %d", errDigest, v.n, v.size)
	}
	if v.sum == nil {
		return nil
	}
	if got := hex.EncodeToString(v.sum.Sum(nil)); got != v.want.Hex {
		return fmt.Errorf("%w: it is %s:%s, not %s", errDigest, v.want.Algorithm, got, v.want)
	}
	return nil
}
