package rootfs

import (
	"os"
	"path/filepath"
	"slices"

	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

// stackable returns the layers of /opt, lowest first, without those that are also given later,
// where they hide themselves. The same folder may have several names: by bind mounts, or
// because two zips have the same content. A layer that lies inside another one is an
// [invalid.Error]: overlayfs refuses both cases, when a sandbox is made.
func (f *Function) stackable(layers []pkg) ([]pkg, error) {
	infos := make([]os.FileInfo, len(layers))
	for i, l := range layers {
		var err error
		if infos[i], err = os.Stat(l.dir); err != nil {
			return nil, &invalid.Error{Kind: invalid.ErrNotFound, File: l.given, Reason: "cannot be opened", Err: invalid.Cause(err)}
		}
	}
	var list []pkg
	for i, l := range layers {
		again := slices.IndexFunc(infos[i+1:], func(later os.FileInfo) bool { return os.SameFile(infos[i], later) })
		if again < 0 {
			list = append(list, l)
			continue
		}
		later := layers[i+1+again]
		f.Warnings = append(f.Warnings, "the layers "+l.given+" and "+later.given+" are the same; the first of them is left out")
		if l.given == later.given {
			f.Warnings[len(f.Warnings)-1] = "the layer " + l.given + " is given twice; the first of them is left out"
		}
	}
	for _, l := range list {
		for dir := filepath.Dir(l.dir); ; dir = filepath.Dir(dir) {
			info, err := os.Stat(dir)
			if err != nil {
				break // removed meanwhile: a sandbox fails for it
			}
			outer := slices.IndexFunc(infos, func(other os.FileInfo) bool { return os.SameFile(info, other) })
			if outer >= 0 {
				return nil, &invalid.Error{Kind: invalid.ErrPackage, File: l.given, Reason: "is a layer inside the layer " + layers[outer].given,
					Fix: "give one of the two, or a copy of the inner one: the kernel cannot lay a folder over one that holds it"}
			}
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	return list, nil
}
