package rootfs

import "slices"

// Tree is the root file system of a sandbox as plain data. The paths in it are
// absolute paths inside the sandbox, the sources absolute paths of the host.
// /proc, /dev and /tmp are not part of it: whoever builds the root adds them.
type Tree struct {
	// Dirs are the directories of the root itself, parents before children. The
	// target of every mount of a directory is among them, and the parent of every
	// mount of a file.
	Dirs []string
	// Links are the symbolic links of the root itself; their parents are in Dirs.
	Links []Link
	// Mounts are shown read-only, in this order; no target lies below another one.
	Mounts []Mount
	// Warnings are for the operator: complete sentences without a final stop.
	Warnings []string
}

// Link is a symbolic link. Its target is followed inside the sandbox only.
type Link struct{ Path, Target string }

// Mount shows directories of the host at Target, or one file. With several sources
// a later one wins over an earlier one, as in an overlay. No source's path held a
// symbolic link when the Tree was made: a mounter should refuse one.
type Mount struct {
	Target  string
	Sources []string
}

// addDir adds a directory once. Its parent must have been added before.
func (t *Tree) addDir(path string) {
	for _, d := range t.Dirs {
		if d == path {
			return
		}
	}
	t.Dirs = append(t.Dirs, path)
}

// removeDir removes a directory that nothing has been added below.
func (t *Tree) removeDir(path string) {
	t.Dirs = slices.DeleteFunc(t.Dirs, func(d string) bool { return d == path })
}

// addMount adds a mount and its mount point.
func (t *Tree) addMount(target string, sources ...string) {
	t.addDir(target)
	t.Mounts = append(t.Mounts, Mount{Target: target, Sources: sources})
}

// take removes the mount at target and returns its sources, nil if there is none.
func (t *Tree) take(target string) []string {
	for i, m := range t.Mounts {
		if m.Target == target {
			t.Mounts = append(t.Mounts[:i], t.Mounts[i+1:]...)
			return m.Sources
		}
	}
	return nil
}
