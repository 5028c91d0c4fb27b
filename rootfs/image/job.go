package image

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/sandboxd/sandboxd/internal/descriptor"
	"github.com/sandboxd/sandboxd/rootfs/extract"
	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

// Source says where an image comes from.
type Source int

// The sources of images.
const (
	Layout   Source = iota // a directory
	Archive                // a tar file
	Registry               // over the network
)

// ReadJob is to find an image and to hand out its layers, as it can be given to another
// process. Neither files nor network are needed but as Source says: the files of a
// directory are asked for, one by one.
type ReadJob struct {
	Image  string // as the operator gave it
	Arch   string // to choose, by Go's name
	Source Source
	Name   string           // of the image among several in a layout or archive: a tag, a reference or a digest; "" for the only one
	Spool  int64            // how many bytes a compressed archive may have once it is decompressed
	Auth   authn.AuthConfig // for the registry; the zero value is nobody
}

// UnpackJob is to unpack one layer to a folder, as it can be given to another process. What the
// folder has then, merge applies to a tree.
type UnpackJob struct {
	Image  string // for messages
	Layer  int    // its number, from 1, for messages
	Limits Limits // of the image, without zero fields
	Used   int64  // how much of Limits.Bytes lower layers have used
	Source Source // which the layer comes from, and which it may have to wait for
}

// Run finds the image and speaks with who gave the job on conn: it describes the image,
// and sends the layers, uncompressed, if they are asked for. archive is the file, and spool an
// empty one for what a compressed archive holds; both are nil if the source is another. What
// it says is to be checked: it has read a stranger's bytes.
func (j ReadJob) Run(ctx context.Context, conn, archive, spool *os.File) error {
	c, err := unixConn(conn)
	if err != nil {
		return fmt.Errorf("read %s: %w", j.Image, err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(longAgo) })()
	img, err := j.open(ctx, askedFiles{c}, archive, spool)
	if err != nil {
		return err
	}
	text, err := img.describe()
	if err == nil {
		err = writeMessage(c, msgImage, text)
	}
	if err != nil {
		return err
	}
	for {
		kind, body, err := readMessage(c, nil)
		if errors.Is(err, io.EOF) {
			return nil // all layers are known
		}
		if err == nil && (kind != msgLayer || len(body) != 4) {
			err = errProtocol
		}
		if err == nil {
			err = img.sendLayer(ctx, c, int(binary.LittleEndian.Uint32(body)))
		}
		if err != nil {
			return err
		}
	}
}

func (i *image) sendLayer(ctx context.Context, w io.Writer, n int) error {
	if n >= len(i.layers) {
		return errProtocol
	}
	return (&layerReader{image: i, layer: i.layers[n], number: n + 1}).send(ctx, w)
}

// open finds the image and checks everything of it but its layers.
func (j ReadJob) open(ctx context.Context, layout files, archive, spool *os.File) (*image, error) {
	switch j.Source {
	case Layout:
		return j.openFiles(ctx, layout)
	case Archive:
		plain, err := j.plainArchive(ctx, archive, spool)
		if err != nil {
			return nil, err
		}
		list, err := listArchive(ctx, j.Image, plain)
		if err != nil {
			return nil, err
		}
		return j.openFiles(ctx, list)
	case Registry:
		return j.openReference(ctx)
	}
	return nil, fmt.Errorf("%s: source %d is unknown", j.Image, j.Source)
}

// send sends one layer.
func (r *layerReader) send(ctx context.Context, w io.Writer) error {
	var read int64
	r.count = func(n int64) { read += n }
	data := &dataWriter{w: w}
	progress := func() error {
		var n [8]byte
		binary.LittleEndian.PutUint64(n[:], uint64(read))
		read = 0
		return writeMessage(w, msgProgress, n[:])
	}
	err := r.each(ctx, func(p []byte) error {
		_, err := data.Write(p)
		if err == nil && read > 0 {
			err = progress()
		}
		return err
	})
	if err == nil {
		err = progress()
	}
	if err == nil {
		err = writeMessage(w, msgEnd, nil)
	}
	return err
}

// Run unpacks the layer that it reads to tree, an empty folder. It touches nothing else, so it
// can run as a user that may write the folder and nothing else of the host.
func (j UnpackJob) Run(ctx context.Context, layer, tree *os.File) error {
	var root *os.Root
	err := descriptor.Use(tree, func(fd int) (err error) {
		root, err = os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", fd))
		return err
	})
	if err != nil {
		return fmt.Errorf("unpack %s: %w", j.Image, err)
	}
	defer root.Close()
	u, err := newUnpacker(j, root)
	if err != nil {
		return fmt.Errorf("unpack %s: %w", j.Image, err)
	}
	defer u.root.Close()
	in := bufio.NewReaderSize(layer, maxData)
	if err := u.readLower(in); err != nil {
		return fmt.Errorf("unpack %s: %w", j.Image, err)
	}
	if err := u.applyLayer(ctx, &dataReader{r: in, buf: make([]byte, maxData)}); err != nil {
		return err
	}
	return u.finish()
}

// bounds are those of the folder that is unpacked into. An entry of a layer makes three there at
// most: a hard link to a file of a lower layer, in the place of another one.
func (j UnpackJob) bounds() extract.Bounds {
	return extract.Bounds{File: j.Image, Bytes: j.Limits.Bytes, Entries: 3*j.Limits.Entries + 8, Depth: maxDepth + 2, HardLinks: true}
}

// description is what a ReadJob says of its image.
type description struct {
	ID         v1.Hash      // of the configuration
	Layers     []layerClaim // lowest first
	Entrypoint []string     // and so on: as the configuration has it
	Cmd        []string
	Env        []string
	WorkingDir string
}

// layerClaim is what is said of a layer.
type layerClaim struct {
	DiffID v1.Hash // of the tar stream
	Size   int64   // of the bytes as stored; -1 if the source does not say
}

// describe encodes the image's description.
func (i *image) describe() ([]byte, error) {
	cfg := i.config.Config
	d := description{ID: i.id, Entrypoint: cfg.Entrypoint, Cmd: cfg.Cmd, Env: cfg.Env, WorkingDir: cfg.WorkingDir}
	for _, l := range i.layers {
		d.Layers = append(d.Layers, layerClaim{l.diffID, l.size})
	}
	text, err := json.Marshal(d)
	if err != nil {
		return nil, fmt.Errorf("describe %s: %w", i.given, err)
	}
	if len(text) > maxDescription {
		return nil, i.invalid(invalid.ErrTooLarge, fmt.Sprintf("its program, arguments and variables have more than %d bytes", maxDescription),
			"leave out what the function does not need", nil)
	}
	return text, nil
}

// parseDescription decodes what a process says that a stranger's image may have taken
// over: nothing but the fields of a description, each in its form.
func parseDescription(text []byte) (*description, error) {
	var d description
	in := json.NewDecoder(bytes.NewReader(text))
	in.DisallowUnknownFields()
	if err := in.Decode(&d); err != nil {
		return nil, errProtocol
	}
	if _, err := in.Token(); !errors.Is(err, io.EOF) {
		return nil, errProtocol
	}
	if d.ID.Algorithm != "sha256" || len(d.Layers) > maxLayers {
		return nil, errProtocol
	}
	for _, l := range d.Layers {
		if l.DiffID.Algorithm != "sha256" || l.Size < -1 {
			return nil, errProtocol
		}
	}
	return &d, nil
}
