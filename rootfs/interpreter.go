package rootfs

import (
	"bytes"
	"fmt"
	"io"
	"path"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

var pythonName = regexp.MustCompile(`^python(3\.[0-9]{1,3})$`)

// pythonVersion reads the version off the name of the program, once links are
// followed.
func pythonVersion(_ *view, prog node) (string, error) {
	if m := pythonName.FindStringSubmatch(path.Base(prog.path)); m != nil {
		return m[1], nil
	}
	return "", nil
}

// nodeVersion finds the major and the minor version in the address of Node's source package,
// which every official and Debian build carries.
func nodeVersion(_ *view, prog node) (string, error) {
	f, err := prog.open()
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return scanVersion(f, nodeMark)
	}
	id := scanned{uint64(st.Dev), st.Ino, info.Size(), info.ModTime()}
	if version, ok := nodeVersions.Load(id); ok {
		return version.(string), nil
	}
	version, err := scanVersion(f, nodeMark)
	if err == nil {
		nodeVersions.Store(id, version)
	}
	return version, err
}

var nodeMark = []byte("/download/release/v")

// nodeVersions has the versions of the Node programs that were scanned, which takes a tenth of a
// second: several runtimes have the same one. There are as many as the operator's bases have.
var nodeVersions sync.Map // of scanned

// scanned identifies a file that was scanned.
type scanned struct {
	dev, ino uint64
	size     int64
	modified time.Time
}

var javaRelease = regexp.MustCompile(`(?m)^JAVA_VERSION="([0-9]{1,4})\b`)

// javaVersion reads the version from the file `release` of the Java installation.
func javaVersion(v *view, prog node) (string, error) {
	release, err := v.resolve(path.Join(path.Dir(path.Dir(prog.path)), "release"))
	if err != nil || !release.mode.IsRegular() {
		return "", nil
	}
	f, err := release.open()
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return "", err
	}
	if m := javaRelease.FindSubmatch(text); m != nil {
		return string(m[1]), nil
	}
	return "", nil
}

// scanVersion gives the major and the minor version that follow the first mark in r, such as
// 20.17; "" if there is no mark with a digit in its first 512 MiB.
func scanVersion(r io.Reader, mark []byte) (string, error) {
	const chunk, most, length = 1 << 20, 512 << 20, 8
	r = io.LimitReader(r, most)
	buf := make([]byte, 0, chunk+len(mark)+length)
	for {
		n, err := io.ReadFull(r, buf[len(buf):len(buf)+chunk])
		buf = buf[:len(buf)+n]
		last := err == io.EOF || err == io.ErrUnexpectedEOF
		if err != nil && !last {
			return "", err
		}
		if i := bytes.Index(buf, mark); i >= 0 && (last || i+len(mark)+length <= len(buf)) {
			rest := buf[i+len(mark):]
			if m := majorMinor.Find(rest[:min(len(rest), length)]); m != nil {
				return string(m), nil
			}
		}
		if last {
			return "", nil
		}
		keep := min(len(buf), len(mark)+length)
		buf = append(buf[:0], buf[len(buf)-keep:]...)
	}
}

var majorMinor = regexp.MustCompile(`^[0-9]{1,4}(\.[0-9]{1,3})?`)

// nodeOptions returns the options that switch off what Lambda switches off: the function's
// NODE_OPTIONS can switch it on again. A Node that does not know an option refuses to start,
// so a base with an older one gets none.
func nodeOptions(version, has string) (lines string) {
	text, minorText, _ := strings.Cut(has, ".")
	major, _ := strconv.Atoi(text) // 0 if the version is not known
	minor, _ := strconv.Atoi(minorText)
	knows := func(minorOf20 int) bool { return major >= 22 || major == 20 && minor >= minorOf20 }
	if (version == "20" || version == "22") && knows(17) {
		lines += "option --experimental[-_]require[-_]module --no-experimental-require-module\n"
	}
	if version == "22" && knows(10) {
		lines += "option --experimental[-_]detect[-_]module --no-experimental-detect-module\n"
	}
	return lines
}

// javaOptions returns the options that differ between Lambda's versions of Java. The compiler
// stops at its first level from Java 17 on; in Java 25 not where there is time to compile,
// before a snapshot or ahead of the first invocation.
func javaOptions(version, _ string) string {
	const firstLevel = "option TieredStopAtLevel '-XX:+TieredCompilation -XX:TieredStopAtLevel=1'"
	const toStderr = "option ErrorFile -XX:+ErrorFileToStderr\n"
	switch version {
	case "11":
		return "option ReservedCodeCacheSize \"-XX:ReservedCodeCacheSize=$((memory * 5 / 100))k\"\n"
	case "25":
		return "case \"$AWS_LAMBDA_INITIALIZATION_TYPE\" in snap-start | provisioned-concurrency) ;; *) " + firstLevel + " ;; esac\n" + toStderr
	default:
		return firstLevel + "\n" + toStderr
	}
}

// nodeClientWarning warns of version 4 of the client, which npm installs unless told
// otherwise, on a Node for which Lambda has version 3.
func nodeClientWarning(name, version, client string) string {
	if version == "24" || strings.HasSuffix(client, "/bin/index.mjs") {
		return ""
	}
	return fmt.Sprintf("the runtime client %s is version 4, which refuses handlers with a callback; on Lambda %s takes them: use aws-lambda-ric@3, or the layer of 'sandboxd layer %[2]s'", client, name)
}

var rubyName = regexp.MustCompile(`^ruby(3\.[0-9]{1,3})$`)

// rubyVersion reads the version off the name of the program, once links are followed, or
// off the folder of its standard library.
func rubyVersion(v *view, prog node) (string, error) {
	if m := rubyName.FindStringSubmatch(path.Base(prog.path)); m != nil {
		return m[1], nil
	}
	dir, err := v.resolve(path.Join(path.Dir(path.Dir(prog.path)), "lib/ruby"))
	if err != nil || !dir.mode.IsDir() {
		return "", nil
	}
	names, err := v.list(dir)
	if err != nil {
		return "", err
	}
	found := ""
	for _, name := range names {
		if m := rubyFolder.FindStringSubmatch(name); m != nil {
			found = m[1] // the highest, as they are sorted
		}
	}
	return found, nil
}

var rubyFolder = regexp.MustCompile(`^(3\.[0-9]{1,3})\.0$`)
