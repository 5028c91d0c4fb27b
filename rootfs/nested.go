package rootfs

import (
	"fmt"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

// Bounds of the search for what lies too deep in a package.
const (
	maxNestedDepth = 5
	maxNestedDirs  = 500
)

// nestedFolder looks for one of the files, which are relative to /var/task, in the folders of
// /var/task, and returns the folder that has it. It returns "" if there is none, or if one of
// the files is where it belongs.
func nestedFolder(v *view, files []string) string {
	has := func(dir string) bool {
		return slices.ContainsFunc(files, func(f string) bool { return findFile(v, path.Join(dir, f)) != "" })
	}
	if has(taskDir) {
		return ""
	}
	level := []string{taskDir}
	for range maxNestedDepth {
		var below []string
		for _, dir := range level {
			n, err := v.resolve(dir)
			if err != nil || !n.mode.IsDir() {
				continue
			}
			names, err := v.list(n)
			if err != nil {
				continue // such as one with too many files
			}
			for _, name := range names {
				installed := name[0] == '.' || name == "node_modules" || name == "site-packages" // not by the one who zips
				if child := path.Join(dir, name); !installed && len(below) < maxNestedDirs && v.isDir(child) {
					below = append(below, child)
				}
			}
		}
		if i := slices.IndexFunc(below, has); i >= 0 {
			return strings.TrimPrefix(below[i], taskDir+"/")
		}
		level = below
	}
	return ""
}

// isDir reports whether a path whose parents are no links is a directory, and no link.
func (v *view) isDir(name string) bool {
	n, _, err := v.lstat(name)
	return err == nil && n.mode.IsDir()
}

// fixNested says what to do about a package whose files are in folder.
func fixNested(p pkg, folder string) string {
	if p.digest == "" {
		return "give that folder: " + path.Join(p.given, invalid.Printable(invalid.Shorten(folder)))
	}
	if folder != invalid.Printable(invalid.Shorten(folder)) {
		return "zip the folder's content, not the folder"
	}
	if !plainPath.MatchString(folder) { // the name is the zip's, and this is for a shell
		folder = shellQuote("./" + folder)
	}
	return fmt.Sprintf("zip the folder's content, not the folder: cd %s && zip -r ../function.zip .", folder)
}

// plainPath matches paths in which a shell sees nothing but their letters.
var plainPath = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_./-]*$`)

// handlerFiles returns the files that a handler of a runtime may be in, relative to /var/task;
// the last part may be a pattern. It returns none for a handler that says nothing about files.
func handlerFiles(runtime, handler string) (files []string) {
	under := func(name string, suffixes ...string) []string {
		if name == "" || path.IsAbs(name) || strings.ContainsAny(name, "*?[\\") {
			return nil
		}
		for _, s := range suffixes {
			files = append(files, path.Clean(name)+s)
		}
		return files
	}
	dir, last := path.Split(handler)
	switch {
	case strings.HasPrefix(runtime, "python"):
		module, _, ok := cutLast(handler, ".")
		if !ok {
			return nil
		}
		return under(strings.ReplaceAll(module, ".", "/"), ".py", "/__init__.py")
	case strings.HasPrefix(runtime, "nodejs"):
		file, _, _ := strings.Cut(last, ".")
		return under(dir+file, ".js", ".mjs", ".cjs")
	case strings.HasPrefix(runtime, "ruby"):
		file, _, _ := strings.Cut(last, ".")
		return under(dir+file, ".rb")
	case strings.HasPrefix(runtime, "java"):
		class, _, _ := strings.Cut(handler, "::")
		if under(strings.ReplaceAll(class, ".", "/"), ".class") != nil {
			files = append(files, "lib/*.jar") // in one of these
		}
		return files
	}
	return nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// nestedHandler returns the folder of the package that has the handler's file, "" if there is
// none or the file is where it belongs.
func nestedHandler(v *view, runtime, handler string) string {
	files := handlerFiles(runtime, handler)
	if len(files) == 0 {
		return ""
	}
	return nestedFolder(v, files)
}

// warnHandler warns of a handler whose file is in a folder of the package.
func (f *Function) warnHandler(v *view, code pkg, runtime, handler string) {
	if folder := nestedHandler(v, runtime, handler); folder != "" {
		f.Warnings = append(f.Warnings, fmt.Sprintf("%s: the file of handler %q is not at the top of the package, but in its folder %q; %s",
			code.given, invalid.Shorten(handler), invalid.Shorten(folder), fixNested(code, folder)))
	}
}

// layerFolders are folders that runtimes look for in /opt.
var layerFolders = []string{"bin", "lib", "extensions", "python", "nodejs", "java", "ruby"}

// warnLayer warns of a layer whose files are a folder too deep, as in a zip of /opt itself.
func (f *Function) warnLayer(p pkg) error {
	root, err := os.OpenRoot(p.dir)
	if err != nil {
		return fmt.Errorf("look at layer %s: %w", p.given, err)
	}
	defer root.Close()
	top, err := dirNames(root, ".", maxViewNames)
	top = slices.DeleteFunc(top, func(name string) bool { return name == "__MACOSX" || name == ".DS_Store" }) // which macOS adds
	if err != nil || slices.ContainsFunc(top, func(name string) bool { return slices.Contains(layerFolders, name) }) {
		return nil // with too many files to be of that kind, or with some where they belong
	}
	for _, name := range top {
		inside, err := dirNames(root, name, maxViewNames)
		if err != nil || name != "opt" && len(top) > 1 || !slices.ContainsFunc(inside, func(n string) bool { return slices.Contains(layerFolders, n) }) {
			continue
		}
		f.Warnings = append(f.Warnings, fmt.Sprintf("%s: the files of the layer are in its folder %s, so that they appear in /opt/%[2]s; have what is in that folder at the top of the layer",
			p.given, invalid.Printable(invalid.Shorten(name))))
	}
	return nil
}
