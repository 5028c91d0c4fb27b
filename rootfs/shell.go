package rootfs

import (
	"errors"
	"io/fs"
	"path"
	"path/filepath"
)

// langBin is the first folder of ENV-10's PATH. On Lambda it has the runtime's programs.
const langBin = "/var/lang/bin"

// addBash shows bash in place of dash, if the base has both and dash is its /bin/sh: on
// Amazon Linux /bin/sh is bash, and scripts for Lambda use what only bash understands. All
// names that lead to dash then lead to bash.
func addBash(t *Tree) error {
	v, err := newView(t)
	if err != nil {
		return err
	}
	defer v.close()
	sh, err := v.resolve("/bin/sh")
	if err != nil || path.Base(sh.path) != "dash" {
		return nil // no shell, or one of another distribution
	}
	bash, err := v.resolve("/bin/bash")
	if err != nil || !isProgram(bash) {
		return nil
	}
	t.Mounts = append(t.Mounts, Mount{Target: sh.path, Sources: []string{filepath.Join(bash.root.Name(), bash.rel)}})
	return nil
}

// addPython links python and python3 in langBin to the interpreter of that version, as on
// Lambda, unless the base has a folder /var/lang of its own.
func (f *Function) addPython(v *view, version string) {
	if _, err := v.resolve(path.Dir(langBin)); err == nil {
		return
	}
	for _, name := range []string{"python" + version, "python3"} {
		for _, dir := range programDirs {
			n, err := v.resolve(path.Join(dir, name))
			if err != nil || !isProgram(n) || path.Base(n.path) != "python"+version {
				continue
			}
			f.addDir(path.Dir(langBin))
			f.addDir(langBin)
			for _, link := range []string{"python", "python3"} {
				f.Links = append(f.Links, Link{Path: path.Join(langBin, link), Target: path.Join(dir, name)})
			}
			return
		}
	}
}

// addNode links folders that Node searches for the modules of every package to the folders of
// layers. On Lambda ES modules are searched for in the folders of NODE_PATH, where Node by
// itself looks for CommonJS modules only. Names that the base has stay as they are.
func (f *Function) addNode(v *view, version string) {
	for _, link := range []Link{ // in the order of NODE_PATH
		{Path: "/var/node_modules", Target: "/opt/nodejs/node" + version + "/node_modules"},
		{Path: "/node_modules", Target: "/opt/nodejs/node_modules"},
	} {
		if _, _, err := v.lstat(link.Path); errors.Is(err, fs.ErrNotExist) {
			f.Links = append(f.Links, link)
		}
	}
}

// isProgram reports whether the sandbox user may execute the file.
func isProgram(n node) bool { return n.mode.IsRegular() && n.mode.Perm()&0o001 != 0 && n.blocked == "" }
