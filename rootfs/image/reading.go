package image

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	reference "github.com/google/go-containerregistry/pkg/name"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/rootfs/invalid"
	"github.com/sandboxd/sandboxd/rootfs/store"
)

// reading is a ReadJob that runs, as seen by who gave it. It parses nothing of the
// image, and takes nothing that is said of it for true.
type reading struct {
	job    ReadJob
	from   string   // for the store: see store.Origin
	dir    *os.Root // of a layout; else nil
	conn   *net.UnixConn
	in     *bufio.Reader
	buf    []byte
	count  func(n int64) // is told of bytes read, as stored
	cancel context.CancelFunc
	ended  chan struct{} // closed after err is set
	err    error         // of the job
}

// read starts the job. The caller stops it.
func read(ctx context.Context, opts Options) (_ *reading, err error) {
	r := &reading{buf: make([]byte, maxData), count: func(int64) {}, ended: make(chan struct{})}
	archive, err := r.find(ctx, opts)
	if err != nil {
		return nil, err
	}
	var theirs, spool *os.File
	if archive != nil {
		if spool, err = opts.Store.TempFile(); err != nil {
			archive.Close()
			return nil, fmt.Errorf("read %s: %w", opts.Image, err)
		}
		r.job.Spool = opts.Limits.Bytes + maxArchiveMetadata
	}
	if r.conn, theirs, err = connected(); err != nil {
		archive.Close()
		spool.Close()
		r.close()
		return nil, fmt.Errorf("read %s: %w", opts.Image, err)
	}
	r.in = bufio.NewReaderSize(r.conn, 2*maxData)
	run := opts.Read
	if run == nil {
		run = func(ctx context.Context, job ReadJob, conn, archive, spool *os.File) error {
			return job.Run(ctx, conn, archive, spool)
		}
	}
	ctx, r.cancel = context.WithCancel(ctx)
	go func() {
		defer close(r.ended)
		job := func(ctx context.Context) error { return run(ctx, r.job, theirs, archive, spool) }
		if spool == nil {
			r.err = job(ctx)
		} else {
			r.err = opts.Store.WatchSpace(ctx, opts.Image, job)
		}
		theirs.Close() // we see the end no sooner
		archive.Close()
		spool.Close()
	}()
	context.AfterFunc(ctx, func() { _ = r.conn.SetDeadline(longAgo) })
	return r, nil
}

// find opens the image, unread, or finds out how to ask a registry for it.
func (r *reading) find(ctx context.Context, opts Options) (archive *os.File, err error) {
	r.job = ReadJob{Image: opts.Image, Arch: opts.Arch}
	path, name := splitName(opts.Image)
	r.job.Name = name
	notFound := func(reason, fix string, err error) error {
		return &invalid.Error{Kind: invalid.ErrNotFound, File: opts.Image, Reason: reason, Fix: fix, Err: err}
	}
	const fix = "give an OCI layout, an archive, or a reference such as repository:tag"
	info, err := os.Stat(path)
	switch {
	case err == nil && info.IsDir():
		if r.dir, err = os.OpenRoot(path); err != nil {
			return nil, notFound("cannot be opened", "", reason(err))
		}
		return nil, nil
	case err == nil:
		r.job.Source = Archive
		return openArchive(path)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, notFound("cannot be opened", "", reason(err))
	case isPath(opts.Image):
		return nil, notFound("does not exist", fix, nil)
	}
	if prefix, rest := splitTransport(opts.Image); prefix != "" {
		return nil, notFound("begins with a transport of skopeo", "leave out "+prefix+": --image "+rest, nil)
	}
	r.job.Source = Registry
	ref, err := reference.ParseReference(opts.Image)
	if err != nil {
		return nil, notFound("is neither a file nor a reference into a registry", fix, err)
	}
	auth, err := authn.Resolve(ctx, authn.DefaultKeychain, ref.Context())
	if err != nil {
		return nil, fmt.Errorf("there is no file %s, and the credentials for a registry cannot be read: %w", opts.Image, err)
	}
	who, err := authn.Authorization(ctx, auth)
	if err != nil {
		return nil, fmt.Errorf("there is no file %s, and there are no credentials for a registry: %w", opts.Image, err)
	}
	r.job.Auth = *who
	return nil, nil
}

// isPath reports whether what was given can only be a file.
func isPath(given string) bool {
	return filepath.IsAbs(given) || strings.HasPrefix(given, "./") || strings.HasPrefix(given, "../")
}

// splitName takes the name of an image in a layout or archive off the path of that. A path that
// exists is one as it is. What could be a reference into a registry as well is a path only if
// there is a layout, or a file whose name is that of an archive.
func splitName(given string) (path, name string) {
	if _, err := os.Lstat(given); err == nil {
		return given, ""
	}
	for i := len(given) - 1; i > 0; i-- {
		if given[i] != ':' && given[i] != '@' {
			continue
		}
		path := given[:i]
		info, err := os.Stat(path)
		switch {
		case err != nil:
			continue
		case info.IsDir():
			for _, file := range []string{"index.json", "manifest.json"} {
				if _, err := os.Lstat(filepath.Join(path, file)); err == nil {
					return path, given[i+1:]
				}
			}
		case isPath(path) || strings.Contains(filepath.Base(path), ".t"): // .tar, .tgz, .tar.gz
			return path, given[i+1:]
		}
	}
	return given, ""
}

// splitTransport takes a transport of skopeo off an image that it is no part of.
func splitTransport(given string) (prefix, rest string) {
	for _, t := range []string{"docker://", "oci:", "oci-archive:", "docker-archive:", "dir:"} {
		rest, ok := strings.CutPrefix(given, t)
		if !ok {
			continue
		}
		path, _ := splitName(rest)
		if _, err := os.Stat(path); err == nil || t == "docker://" || isPath(rest) {
			return t, rest
		}
	}
	return "", ""
}

// stop ends the job.
func (r *reading) stop() {
	r.conn.Close()
	r.cancel()
	<-r.ended
	r.close()
}

func (r *reading) close() {
	if r.dir != nil {
		r.dir.Close()
	}
}

// failed says why nothing more comes.
func (r *reading) failed(ctx context.Context, err error) error {
	r.cancel()
	r.conn.Close() // with it go the descriptors in unread messages, which may keep the process from being reaped
	<-r.ended
	ended := errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET)
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("read %s: %w", r.job.Image, ctx.Err())
	case ended && r.err != nil:
		return r.err
	case ended:
		err = errors.New("it ended early")
	}
	return fmt.Errorf("the process that reads %s failed: %w", r.job.Image, err)
}

// next gives the next message that is for others than this function, which opens files
// and counts.
func (r *reading) next(ctx context.Context) (kind byte, body []byte, err error) {
	for {
		kind, body, err = readMessage(r.in, r.buf)
		switch {
		case err != nil:
		case kind == msgFile && r.dir != nil:
			err = r.serve(string(body))
		case kind == msgProgress && len(body) == 8:
			r.count(int64(binary.LittleEndian.Uint64(body)))
		default:
			return kind, body, nil
		}
		if err != nil {
			return 0, nil, r.failed(ctx, err)
		}
	}
}

// serve opens a file of the layout for the job. Links cannot lead out of the directory,
// and a pipe blocks nobody.
func (r *reading) serve(name string) error {
	f, err := r.dir.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err == nil {
		defer f.Close()
		var info fs.FileInfo
		if info, err = f.Stat(); err == nil && !info.Mode().IsRegular() {
			err = fmt.Errorf("%q is no regular file", name)
		}
	}
	return sendFile(r.conn, f, err)
}

// describe waits until the job has found the image.
func (r *reading) describe(ctx context.Context) (*description, error) {
	kind, body, err := r.next(ctx)
	if err != nil {
		return nil, err
	}
	if kind != msgImage {
		return nil, r.failed(ctx, errProtocol)
	}
	d, err := parseDescription(body)
	if err != nil {
		return nil, r.failed(ctx, err)
	}
	return d, nil
}

// unpack makes the image's tree in root, which is empty, of its layers, and has those unpacked
// that are not in the store. It returns how many bytes the layers have, and references to them.
// What one process reads goes through our hands to the other, so that a layer is known by the
// diffIDs that we have seen ourselves, whatever became of the two.
func (r *reading) unpack(ctx context.Context, d *description, root *os.Root, opts Options) (bytes int64, refs store.Refs, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, refs.Close())
			refs = nil
		}
	}()
	var done, total int64
	for _, l := range d.Layers {
		total += max(l.Size, 0)
	}
	r.count = func(n int64) {
		if done += n; opts.Progress != nil {
			opts.Progress(done, total)
		}
	}
	for n, l := range d.Layers {
		var poured bool
		idle := func() {}
		origin := store.Origin{Kind: store.KindLayer, From: r.from}
		ref, err := opts.Store.AddTree(ctx, d.layerName(n), origin, func(layer *os.Root) (int64, error) {
			poured = true
			size, err := r.unpackLayer(ctx, d, n, bytes, root, layer, opts)
			idle = opts.busy() // the store writes to its disk now, and the reading process waits
			return size, err
		})
		if err == nil {
			refs = append(refs, ref)
			if !poured {
				r.count(max(l.Size, 0))
			}
			if bytes += ref.Size; bytes > opts.Limits.Bytes {
				err = tooLarge(opts.Image, opts.Limits.Bytes)
			} else {
				err = r.merge(ref, root)
			}
		}
		idle()
		if err != nil {
			return 0, refs, err
		}
	}
	return bytes, refs, nil
}

// merge applies a layer of the store to the tree.
func (r *reading) merge(ref *store.Ref, root *os.Root) error {
	layer, err := os.OpenRoot(ref.Dir)
	if err != nil {
		return fmt.Errorf("unpack %s: %w", r.job.Image, err)
	}
	defer layer.Close()
	if err := merge(layer, root); err != nil {
		return fmt.Errorf("unpack %s: %w", r.job.Image, err)
	}
	return nil
}

// busy calls Moved now and then, until the function that it returns is called.
func (o *Options) busy() (idle func()) {
	if o.Moved == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		for sleep(ctx, time.Second) == nil {
			o.Moved()
		}
	}()
	return cancel
}

// unpackLayer has one layer unpacked to the folder layer, which is empty. tree is what lower
// layers make, which have used so many bytes.
func (r *reading) unpackLayer(ctx context.Context, d *description, n int, used int64, tree, layer *os.Root, opts Options) (bytes int64, err error) {
	folder, err := layer.Open(".")
	if err != nil {
		return 0, fmt.Errorf("unpack %s: %w", r.job.Image, err)
	}
	defer folder.Close()
	job := UnpackJob{Image: opts.Image, Layer: n + 1, Source: r.job.Source, Limits: opts.Limits, Used: used}
	run := opts.Unpack
	if run == nil {
		run = func(ctx context.Context, job UnpackJob, layer, tree *os.File) error {
			return job.Run(ctx, layer, tree)
		}
	}
	err = job.bounds().Watch(ctx, layer, func(ctx context.Context) error {
		bytes, err = r.pour(ctx, d, n, used, tree, func(ctx context.Context, from *os.File) error { return run(ctx, job, from, folder) }, opts.Limits.Bytes)
		return err
	})
	if err != nil {
		return 0, err
	}
	files, err := job.bounds().Adopt(layer)
	if err == nil {
		err = checkMarks(layer)
	}
	if err != nil {
		return 0, fmt.Errorf("unpack layer %d of %s: %w", n+1, r.job.Image, err)
	}
	return max(bytes, files), nil
}

// errGone says that nobody takes the layer any more.
var errGone = errors.New("the layer is not read")

// pour reads a layer and gives it to unpack, which runs meanwhile, after what is in the tree
// of lower layers.
func (r *reading) pour(ctx context.Context, d *description, n int, used int64, tree *os.Root, unpack func(context.Context, *os.File) error, limit int64) (bytes int64, err error) {
	from, to, err := os.Pipe()
	if err != nil {
		return 0, fmt.Errorf("unpack %s: %w", r.job.Image, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = r.conn.SetDeadline(longAgo) })()
	unpacked := make(chan error, 1)
	go func() {
		err := unpack(ctx, from)
		from.Close() // who writes is told
		unpacked <- err
	}()
	_ = writeMessage(r.conn, msgLayer, binary.LittleEndian.AppendUint32(nil, uint32(n))) // if nobody reads that, nobody sends the layer, and says why
	left := limit - used
	before := left
	lower := bufio.NewWriterSize(to, maxData)
	if err = sendLower(lower, tree); err == nil {
		err = lower.Flush()
	}
	if err != nil && !errors.Is(err, unix.EPIPE) {
		err = fmt.Errorf("unpack %s: %w", r.job.Image, err)
	} else if err = r.pourLayer(ctx, n+1, d.Layers[n], to, &left, limit); err != nil && !errors.Is(err, errGone) {
		cancel()
	}
	to.Close()
	fault := <-unpacked
	switch {
	case err == nil:
		return before - left, fault
	case errors.Is(err, errGone):
		return 0, r.explain(ctx, fault, left)
	}
	return 0, err
}

// pourLayer reads one layer, and checks it against its diffID.
func (r *reading) pourLayer(ctx context.Context, number int, l layerClaim, to io.Writer, left *int64, limit int64) error {
	sum := sha256.New()
	out := &dataWriter{w: to}
	for {
		kind, body, err := r.next(ctx)
		if err != nil {
			return err
		}
		switch kind {
		case msgData:
			if len(body) == 0 { // nobody's limit would end these
				return r.failed(ctx, errProtocol)
			}
			if *left -= int64(len(body)); *left < 0 {
				return tooLarge(r.job.Image, limit)
			}
			sum.Write(body)
			if _, err := out.Write(body); err != nil {
				return errGone
			}
		case msgEnd:
			if got := hex.EncodeToString(sum.Sum(nil)); got != l.DiffID.Hex {
				return invalidLayer(r.job.Image, number, invalid.ErrDigest, fmt.Sprintf("has the diffID sha256:%s, the configuration names %s", got, l.DiffID), nil)
			}
			_ = writeMessage(to, msgEnd, nil) // if that fails, so does the rest
			return nil
		default:
			return r.failed(ctx, errProtocol)
		}
	}
}

// explain says why the layers were not unpacked: a layer that is damaged may be another
// than it should be, which who reads it finds out at its end.
func (r *reading) explain(ctx context.Context, fault error, left int64) error {
	if fault == nil {
		return fmt.Errorf("the process that unpacks %s ended early", r.job.Image)
	}
	if !errors.Is(fault, invalid.ErrImage) {
		return fault
	}
	for kind := byte(msgData); kind == msgData && left >= 0; {
		var body []byte
		var err error
		if kind, body, err = r.next(ctx); err != nil {
			return err
		}
		if kind == msgData && len(body) == 0 {
			return r.failed(ctx, errProtocol)
		}
		left -= int64(len(body))
	}
	return fault
}
