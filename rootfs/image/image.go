package image

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/sandboxd/sandboxd/rootfs"
	"github.com/sandboxd/sandboxd/rootfs/invalid"
	"github.com/sandboxd/sandboxd/rootfs/store"
)

// Options say which image becomes a function.
type Options struct {
	// Image is a directory or archive, if there is a file of that name, or else a
	// reference into a registry, whose credentials are those that docker login has
	// left for the daemon's user. The name of one image of several follows the file's
	// after a colon, a digest after an @.
	Image string
	// Arch is the architecture to choose, by Go's name; "" is the host's.
	Arch string
	// Env are the customer's variables. They go before those of the image.
	Env map[string]string
	// Layers must be empty: Lambda has no layers for images. The field is there so
	// that they are refused in one place.
	Layers []string
	// Limits bound the image; the zero value means the defaults.
	Limits Limits
	// Store keeps the unpacked tree.
	Store *store.Store
	// Scratch is as in rootfs.BaseOptions.
	Scratch string
	// Read and Unpack run a job in a process of its own, which has ended when they return.
	// Unpack gives it what it needs of the folder tree; who owns what is made there is of no
	// interest. nil runs jobs in this process.
	Read   func(ctx context.Context, job ReadJob, conn, archive, spool *os.File) error
	Unpack func(ctx context.Context, job UnpackJob, layer, tree *os.File) error
	// Moved, if not nil, is called now and then while these processes wait for the disk of the
	// store, so that none counts as stalled.
	Moved func()
	// Progress, if not nil, is told how far the unpacking is, in bytes of layers as
	// they are stored. total is 0 if the image does not say how large they are.
	Progress func(done, total int64)
}

// Limits bound an image. A zero field means the default.
type Limits struct {
	Bytes   int64 // of all layers, uncompressed; default 10 GiB (ENV-36)
	Entries int   // files, directories, links and whiteouts of all layers; default 1,000,000
}

func (l Limits) withDefaults() Limits {
	if l.Bytes <= 0 {
		l.Bytes = 10 << 30
	}
	if l.Entries <= 0 {
		l.Entries = 1_000_000
	}
	return l
}

// Function is a function made of an image. Its Digest is the image's id: the sha256 of
// its configuration, which names all layers by their diffIDs.
type Function struct {
	rootfs.Function
	// Env are the image's variables with the customer's over them; PATH is always
	// there. Names that the platform keeps to itself are still among them.
	Env map[string]string
	// Handler is the image's last command element if its entrypoint is that of
	// Lambda's base images, which takes it for the handler (ENV-25); else "".
	Handler string
	// Entrypoint, Cmd and ConfiguredDir are as the image has them, for LOG-33.
	Entrypoint, Cmd []string
	ConfiguredDir   string
}

const (
	// searchPath is PATH where an image sets none: what container engines use.
	searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	// lambdaEntrypoint is the name of the entrypoint of Lambda's base images.
	lambdaEntrypoint = "lambda-entrypoint.sh"
	// treeForm names the way in which layers become a tree. Another way needs another
	// number, or it would find old trees in a Store.
	treeForm = "image layers, form 2"
	// layerForm is the same for a layer, as it is unpacked on top of those below it.
	layerForm = "image layer, form 1"
)

// Prepare makes everything of a function that its sandboxes share. The image's User is
// ignored (ENV-28). What is wrong with the image is a [invalid.Error], whose
// kinds are those of [rootfs.PrepareImage] and invalid.ErrNotFound, invalid.ErrImage, invalid.ErrPlatform,
// invalid.ErrDigest, invalid.ErrUnsafe and invalid.ErrTooLarge; a registry that cannot be reached is not. On
// error nothing is left in Scratch, and in the Store only an image that is whole, to which
// no reference is held. The caller closes the Function when no sandbox uses it any more.
func Prepare(ctx context.Context, opts Options) (*Function, error) {
	if len(opts.Layers) > 0 {
		return nil, &invalid.Error{Kind: invalid.ErrImage, File: opts.Image, Reason: "cannot have layers: it is an image",
			Fix: "copy them into the image's /opt when it is built"}
	}
	if opts.Arch == "" {
		opts.Arch = runtime.GOARCH
	}
	opts.Limits = opts.Limits.withDefaults()
	r, err := read(ctx, opts)
	if err != nil {
		return nil, err
	}
	defer r.stop()
	d, err := r.describe(ctx)
	if err != nil {
		return nil, err
	}
	origin := store.Origin{Kind: store.KindImage, From: opts.Image}
	if path, err := filepath.Abs(opts.Image); err == nil && r.job.Source != Registry {
		origin.From = filepath.Base(path)
	}
	r.from = origin.From
	var layers store.Refs
	files, err := opts.Store.AddTree(ctx, d.treeName(), origin, func(root *os.Root) (size int64, err error) {
		size, layers, err = r.unpack(ctx, d, root, opts)
		return size, err
	})
	if err == nil && layers == nil { // the tree was there
		layers, err = d.holdLayers(ctx, opts.Store)
	}
	if err == nil && files.Size > opts.Limits.Bytes { // added under a wider limit
		err = tooLarge(opts.Image, opts.Limits.Bytes)
	}
	if err != nil {
		return nil, errors.Join(err, files.Close(), layers.Close())
	}
	env := environment(d.Env, opts.Env)
	f, err := rootfs.PrepareImage(ctx, rootfs.ImageOptions{
		Image: opts.Image, Files: files, Layers: layers, Scratch: opts.Scratch,
		Argv: slices.Concat(d.Entrypoint, d.Cmd), SearchPath: env["PATH"], WorkingDir: d.WorkingDir,
		Wrapper: env["AWS_LAMBDA_EXEC_WRAPPER"],
	})
	if err != nil {
		return nil, err
	}
	f.Digest = d.ID.Hex
	return &Function{
		Function: *f, Env: env, Handler: d.handler(),
		Entrypoint: d.Entrypoint, Cmd: d.Cmd, ConfiguredDir: d.WorkingDir,
	}, nil
}

// environment merges the image's variables with the customer's. What is no variable is
// left out.
func environment(image []string, customer map[string]string) map[string]string {
	env := map[string]string{"PATH": searchPath}
	for _, s := range image {
		name, value, ok := strings.Cut(s, "=")
		if ok && name != "" && !strings.Contains(s, "\x00") {
			env[name] = value
		}
	}
	maps.Copy(env, customer)
	return env
}

// handler is the handler that an image of Lambda's base images names.
func (d *description) handler() string {
	if len(d.Entrypoint) == 0 || len(d.Cmd) == 0 || path.Base(d.Entrypoint[0]) != lambdaEntrypoint {
		return ""
	}
	return d.Cmd[len(d.Cmd)-1]
}

// treeName says what the image's tree is made of.
func (d *description) treeName() string { return d.name(treeForm, len(d.Layers)) }

// layerName says what is in layer n, from 0, once it is unpacked: names in it are resolved
// in what the layers below it make.
func (d *description) layerName(n int) string { return d.name(layerForm, n+1) }

func (d *description) name(form string, layers int) string {
	parts := []string{form}
	for _, l := range d.Layers[:layers] {
		parts = append(parts, l.DiffID.String())
	}
	return strings.Join(parts, "\n")
}

// holdLayers refers to the layers that are in the store: they are in use as long as the tree is,
// which has their files.
func (d *description) holdLayers(ctx context.Context, s *store.Store) (refs store.Refs, err error) {
	for n := range d.Layers {
		ref, err := s.HoldTree(ctx, d.layerName(n))
		if err != nil {
			return nil, errors.Join(err, refs.Close())
		}
		if ref != nil {
			refs = append(refs, ref)
		}
	}
	return refs, nil
}

// image is an image whose manifest and configuration have been checked.
type image struct {
	given  string  // by the operator
	id     v1.Hash // of the configuration
	config *v1.ConfigFile
	layers []layer // lowest first
}

// invalid is an error about the image.
func (i *image) invalid(kind error, reason, fix string, err error) error {
	return &invalid.Error{Kind: kind, File: i.given, Reason: reason, Fix: fix, Err: err}
}

func tooLarge(given string, limit int64) error {
	return &invalid.Error{Kind: invalid.ErrTooLarge, File: given, Fix: "leave out what the function does not need",
		Reason: fmt.Sprintf("its layers have more than %d bytes uncompressed (ENV-36)", limit)}
}

// check makes sure that the configuration is one of a Linux image for arch with these
// layers.
func (i *image) check(arch string) error {
	cfg := i.config
	if cfg.OS != "" && cfg.OS != "linux" || cfg.Architecture != "" && cfg.Architecture != arch {
		return i.invalid(invalid.ErrPlatform, fmt.Sprintf("is for %s/%s, needed is linux/%s", cfg.OS, cfg.Architecture, arch),
			"build it with --platform linux/"+arch, nil)
	}
	if len(cfg.RootFS.DiffIDs) != len(i.layers) {
		return i.invalid(invalid.ErrImage, fmt.Sprintf("has %d layers, its configuration names %d", len(i.layers), len(cfg.RootFS.DiffIDs)), fixBuild, nil)
	}
	if len(i.layers) > maxLayers {
		return i.invalid(invalid.ErrTooLarge, fmt.Sprintf("has %d layers, %d are allowed", len(i.layers), maxLayers), "merge some of them", nil)
	}
	for n := range i.layers {
		i.layers[n].diffID = cfg.RootFS.DiffIDs[n]
		if _, err := v1.Hasher(cfg.RootFS.DiffIDs[n].Algorithm); err != nil {
			return invalidLayer(i.given, n+1, invalid.ErrImage, "has a diffID of an unknown kind", err)
		}
	}
	return nil
}

const (
	fixBuild = "build or pull the image anew"
	// maxLayers bounds the layers of an image; builders make at most 127.
	maxLayers = 500
	// maxArchiveMetadata bounds what an archive has besides the contents of layers.
	maxArchiveMetadata = 64 << 20
)
