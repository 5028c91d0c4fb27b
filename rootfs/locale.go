package rootfs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path"
)

// The locales of which a function gets one as LANG (ENV-10).
const (
	LambdaLocale = "en_US.UTF-8" // as on Amazon Linux
	plainLocale  = "C.UTF-8"     // in glibc since 2.35, and before in most distributions
)

// localeDir is where glibc has its locales: in a folder for each, or in one archive.
const localeDir = "/usr/lib/locale"

// HostLocale returns the LANG of functions with HostBase: LambdaLocale or C.UTF-8.
func HostLocale() (string, error) {
	t := newTree()
	t.addMount("/usr", "/usr")
	v, err := newView(t)
	if err != nil {
		return "", err
	}
	defer v.close()
	return findLocale(v)
}

// findLocale returns LambdaLocale if the view has it, else C.UTF-8. With a locale that is
// missing, C libraries fall back to ASCII: text and file names beyond it are garbled.
func findLocale(v *view) (string, error) {
	for _, name := range []string{"en_US.utf8", LambdaLocale} {
		if n, err := v.resolve(path.Join(localeDir, name, "LC_CTYPE")); err == nil && n.mode.IsRegular() {
			return LambdaLocale, nil
		}
	}
	n, err := v.resolve(localeDir + "/locale-archive")
	if err != nil || !n.mode.IsRegular() {
		return plainLocale, nil
	}
	f, err := n.open()
	if os.IsPermission(err) {
		return plainLocale, nil
	}
	if err != nil {
		return "", fmt.Errorf("look for locales: %w", err)
	}
	defer f.Close()
	if archiveHas(f, "en_US.utf8") {
		return LambdaLocale, nil
	}
	return plainLocale, nil
}

// archiveHas reports whether an archive of glibc's localedef names a locale. An archive
// that makes no sense names none.
func archiveHas(f io.ReaderAt, name string) bool {
	// struct locarhead of glibc (locale/locarchive.h) begins with these numbers: magic,
	// serial, offset, used and size of the table of hashes, and the same of the names,
	// each of which ends with a zero.
	const magic, maxNames = 0xde020109, 1 << 20
	var head [8]uint32
	if err := binary.Read(io.NewSectionReader(f, 0, 4*int64(len(head))), binary.NativeEndian, &head); err != nil {
		return false
	}
	offset, used := head[5], head[6]
	if head[0] != magic || used > maxNames {
		return false
	}
	names := make([]byte, used)
	if _, err := f.ReadAt(names, int64(offset)); err != nil {
		return false
	}
	return bytes.Contains(append([]byte{0}, names...), []byte("\x00"+name+"\x00"))
}
