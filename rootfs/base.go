package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

// HostBase is the name of the base that shows the host's own programs.
const HostBase = "host"

// maxBaseNames bounds the entries of a base's root and of its /var, each of which
// costs the sandbox a mount.
const maxBaseNames = 200

// BaseOptions say what lies below the function's code.
type BaseOptions struct {
	// Base is HostBase, or a directory tree such as an unpacked image. "" is HostBase.
	Base string
	// Scratch is an existing folder for what has to be made, /etc above all. It
	// belongs to the caller, who removes it when no sandbox uses the Tree any more.
	// Several calls may share it.
	Scratch string
}

// Base describes the part of a sandbox's root below the code: it has mount points
// for /var/task, /var/runtime and /opt, and mounts on the last two only if the base
// has these directories. On error nothing is left in Scratch.
//
// HostBase shows /usr, the library and program directories at the root, and a
// made-up /etc with what programs read there; nothing else of the host. /bin/sh is bash
// if the host has bash.
//
// Of a directory tree every directory of its root is shown, and of its /var; links
// there become links of the sandbox's root, where they cannot leave it. proc, sys,
// dev and tmp are not even looked at. etc, var, opt, var/task and var/runtime are
// directories of ours: if the tree has a link there, they show the directory that it leads
// to in the tree, and it is an [invalid.Error] if there is none. /etc is copied without what
// only root may read, and gets our user and host names. Files at the tree's root and in its
// /var are left out.
func Base(ctx context.Context, opts BaseOptions) (*Tree, error) {
	if opts.Base == "" || opts.Base == HostBase {
		t := newTree()
		if err := addHost(ctx, t, opts.Scratch); err != nil {
			return nil, err
		}
		return t, nil
	}
	return (&baseDir{tree: newTree(), given: opts.Base}).take(ctx, opts.Base, opts.Scratch)
}

// newTree makes a tree with the directories that every sandbox has.
func newTree() *Tree {
	t := &Tree{}
	for _, dir := range []string{"/etc", "/opt", "/var", "/var/task", "/var/runtime"} {
		t.addDir(dir)
	}
	return t
}

// baseDir takes a directory tree apart.
type baseDir struct {
	tree  *Tree
	given string // for messages: what the operator gave
	whole bool   // files of the root and of /var, and /var/task, are shown too
	dir   string
	root  *os.Root
}

// take adds everything of the tree in dir.
func (b *baseDir) take(ctx context.Context, dir, scratch string) (*Tree, error) {
	dir, err := realDir(dir)
	if err != nil {
		return nil, &invalid.Error{Kind: invalid.ErrNotFound, File: b.given, Reason: "base tree cannot be opened", Err: invalid.Cause(err),
			Fix: "give a directory, or " + HostBase}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open base: %w", err)
	}
	defer root.Close()
	b.dir, b.root = dir, root
	if err := b.addLevel(".", "."); err != nil {
		return nil, err
	}
	if err := b.addVar(); err != nil {
		return nil, err
	}
	if err := b.addEtc(ctx, scratch); err != nil {
		return nil, err
	}
	return b.tree, nil
}

// addHost adds the host's programs and libraries.
func addHost(ctx context.Context, t *Tree, scratch string) error {
	t.addDir("/run")
	t.addMount("/usr", "/usr")
	for _, name := range []string{"bin", "sbin", "lib", "lib32", "lib64", "libo32", "libx32"} {
		info, err := os.Lstat("/" + name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return fmt.Errorf("look at the host's root: %w", err)
		case info.Mode()&fs.ModeSymlink != 0: // a host with merged /usr
			target, err := os.Readlink("/" + name)
			if err != nil {
				return fmt.Errorf("look at the host's root: %w", err)
			}
			t.Links = append(t.Links, Link{Path: "/" + name, Target: target})
		case info.IsDir():
			t.addMount("/"+name, "/"+name)
		}
	}
	src, err := os.OpenRoot("/etc")
	if err != nil {
		return fmt.Errorf("open the host's /etc: %w", err)
	}
	defer src.Close()
	etc, err := (&etcMaker{scratch: scratch, from: "/etc", src: src, patterns: hostEtc, own: etcFiles}).make(ctx)
	if err != nil {
		return err
	}
	t.addMount("/etc", etc)
	return addBash(t)
}

// Names of a base's root and /var that the tree does not decide about.
var (
	engineDirs = []string{"proc", "sys", "dev", "tmp"}                    // never looked at
	ownDirs    = []string{"etc", "var", "var/task", "var/runtime", "opt"} // directories, or links to some
)

// addVar adds the entries of /var, which may be a link.
func (b *baseDir) addVar() error {
	if _, err := b.root.Lstat("var"); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	real, err := b.resolveDir("var")
	if err != nil {
		return err
	}
	return b.addLevel("var", real)
}

// resolveDir follows a link of the tree that must lead to a directory of it, and returns the
// path of that directory, in which there is no link.
func (b *baseDir) resolveDir(rel string) (string, error) {
	real, err := resolveIn(b.root, rel)
	if err == nil && real == "." {
		err = errors.New("leads to the top of the tree")
	}
	if err != nil {
		return "", b.invalid(rel, "is a link that cannot be followed", "remove it, or have it lead to a directory of the tree", err)
	}
	info, err := b.root.Lstat(real)
	if err != nil {
		return "", b.invalid(rel, "cannot be examined", "", invalid.Cause(err))
	}
	if !info.IsDir() {
		return "", b.invalid(rel, "is no directory ("+info.Mode().Type().String()+")", "remove it from the tree, or make it a directory", nil)
	}
	return real, nil
}

// addLevel adds the entries of one directory of the base, level, which is real once links
// are followed.
func (b *baseDir) addLevel(level, real string) error {
	names, err := dirNames(b.root, real, maxBaseNames)
	if errors.Is(err, errBound) {
		return b.invalid(level, fmt.Sprintf("has more than %d entries", maxBaseNames), "give the root of a Linux system's files", nil)
	}
	if err != nil {
		return b.invalid(level, "cannot be listed", "", invalid.Cause(err))
	}
	for _, name := range names {
		rel := path.Join(level, name)
		if slices.Contains(engineDirs, rel) {
			continue
		}
		at := path.Join(real, name)
		info, err := b.root.Lstat(at)
		if err != nil {
			return b.invalid(rel, "cannot be examined", "", invalid.Cause(err))
		}
		if err := b.addEntry(rel, at, info); err != nil {
			return err
		}
	}
	return nil
}

// addEntry adds what is to be seen at rel, and is at the path at of the tree.
func (b *baseDir) addEntry(rel, at string, info fs.FileInfo) error {
	isLink := info.Mode()&fs.ModeSymlink != 0
	switch {
	case rel == "etc" || rel == "var" || rel == "var/task" && !b.whole:
		return nil // copied, taken apart, covered by the code
	case isLink && slices.Contains(ownDirs, rel) && !b.whole: // layers and runtime clients are mounted there too
		at, err := b.resolveDir(rel)
		if err != nil {
			return err
		}
		b.tree.addMount("/"+rel, filepath.Join(b.dir, at))
	case slices.Contains(ownDirs, rel) && !isLink && !info.IsDir():
		return b.invalid(rel, "is no directory ("+info.Mode().Type().String()+")", "remove it from the tree, or make it a directory", nil)
	case isLink:
		target, err := b.root.Readlink(at)
		if err != nil {
			return b.invalid(rel, "cannot be examined", "", invalid.Cause(err))
		}
		b.tree.removeDir("/" + rel) // which every other sandbox has
		b.tree.Links = append(b.tree.Links, Link{Path: "/" + rel, Target: target})
	case info.IsDir():
		names, err := dirNames(b.root, at, 1)
		if err == nil && len(names) == 0 {
			b.tree.addDir("/" + rel) // empty: needs no mount
			return nil
		}
		if err != nil && !errors.Is(err, errBound) {
			return b.invalid(rel, "cannot be listed", "", invalid.Cause(err))
		}
		b.tree.addMount("/"+rel, filepath.Join(b.dir, at))
	case info.Mode().IsRegular() && b.whole:
		b.tree.Mounts = append(b.tree.Mounts, Mount{Target: "/" + rel, Sources: []string{filepath.Join(b.dir, at)}})
	}
	return nil
}

// addEtc adds the base's /etc, ours over it.
func (b *baseDir) addEtc(ctx context.Context, scratch string) error {
	m := etcMaker{scratch: scratch, from: filepath.Join(b.dir, "etc"), own: maps.Clone(etcFiles)}
	_, err := b.root.Lstat("etc")
	if err == nil {
		var real string
		if real, err = b.resolveDir("etc"); err != nil {
			return err
		}
		m.src, err = b.root.OpenRoot(real)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return b.invalid("etc", "cannot be opened", "", invalid.Cause(err))
	}
	if m.src != nil {
		defer m.src.Close()
		if err := b.keepEtcFiles(m.own); err != nil {
			return err
		}
	}
	etc, err := m.make(ctx)
	if err != nil {
		return err
	}
	b.tree.addMount("/etc", etc)
	return nil
}

func (b *baseDir) invalid(rel, reason, fix string, err error) error {
	return &invalid.Error{Kind: invalid.ErrBase, File: b.given, Entry: rel, Reason: reason, Fix: fix, Err: err}
}

// realDir gives a directory's absolute path without links in it.
func realDir(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if abs, err = filepath.EvalSymlinks(abs); err != nil {
		return "", err
	}
	info, err := os.Stat(abs)
	if err != nil {
		return "", err
	}
	if !info.IsDir() {
		return "", errors.New("is no directory")
	}
	return abs, nil
}

// errBound says that a directory has more entries than are looked at.
var errBound = errors.New("too many entries")

// readNames lists an open directory, sorted, or fails with errBound above most.
func readNames(f *os.File, most int) ([]string, error) {
	names, err := f.Readdirnames(most + 1)
	if err != nil && err != io.EOF {
		return nil, err
	}
	if len(names) > most {
		return nil, errBound
	}
	slices.SortFunc(names, strings.Compare)
	return names, nil
}
