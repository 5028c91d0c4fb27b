package rootfs

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

// machines are the ELF machines that sandboxes run, by Go's name of the host's
// architecture. 32-bit programs are not among them: the seccomp filter kills them.
var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

// archNames are the names that people know.
var archNames = map[elf.Machine]string{
	elf.EM_X86_64: "x86-64 (amd64)", elf.EM_AARCH64: "arm64", elf.EM_386: "32-bit x86", elf.EM_ARM: "32-bit arm",
}

func archName(m elf.Machine) string {
	if name, ok := archNames[m]; ok {
		return name
	}
	return m.String()
}

// checkProgram makes sure that the sandbox user can execute prog: permissions of others
// count, as every file belongs to root or nobody inside. file is what the operator gave, and
// name the path at which prog was found, perhaps by links.
func checkProgram(v *view, file, name string, prog node) error {
	err := checkFile(v, file, prog)
	if e, ok := errors.AsType[*invalid.Error](err); ok && name != prog.path {
		e.Entry, e.Reason = name, fmt.Sprintf("leads to %q, which %s", invalid.Shorten(prog.path), e.Reason)
	}
	return err
}

// checkFile implements checkProgram for the file itself.
func checkFile(v *view, file string, prog node) error {
	refuse := func(reason, fix string) error {
		return &invalid.Error{Kind: invalid.ErrNotExecutable, File: file, Entry: prog.path, Reason: reason, Fix: fix}
	}
	switch {
	case !prog.mode.IsRegular():
		return refuse("is no file", "put the program itself there")
	case prog.blocked != "":
		return refuse(fmt.Sprintf("is out of the sandbox user's reach: others may not search %q", invalid.Shorten(prog.blocked)),
			"chmod o+rx that directory (and make the zip anew, if it is one)")
	case prog.mode.Perm()&0o001 == 0:
		return refuse(fmt.Sprintf("is not executable for others (mode %04o)", prog.mode.Perm()),
			"chmod 755 it (and make the zip anew, if it is one)")
	}
	f, err := prog.open()
	if err != nil {
		return refuse("cannot be read: "+invalid.Cause(err).Error(), "")
	}
	defer f.Close()
	if on, err := v.noExec(prog, f); err != nil {
		return fmt.Errorf("look at the file system of %s of %s: %w", prog.path, file, err)
	} else if on {
		return refuse("lies on a file system of this host that is mounted noexec, from which no program can be started",
			"remount it with exec, or move the package; a zip or an image lies in --state-dir")
	}
	head := make([]byte, 256) // the kernel's BINPRM_BUF_SIZE
	n, err := io.ReadFull(f, head)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return fmt.Errorf("read %s of %s: %w", prog.path, file, err)
	}
	head = head[:n]
	switch {
	case bytes.HasPrefix(head, []byte(elf.ELFMAG)):
		if err := checkMachine(file, prog.path, head); err != nil {
			return err
		}
		loader := findLoader(f, head)
		if loader == "" {
			return nil
		}
		if _, err := v.resolve(path.Join("/", loader)); err != nil {
			return refuse(fmt.Sprintf("is linked to be loaded by %q, which the base does not have", invalid.Shorten(loader)),
				"build it without shared libraries (for Go CGO_ENABLED=0), or for the C library of the base, or give another base")
		}
		return nil
	case !bytes.HasPrefix(head, []byte("#!")):
		return refuse(describeUnknown(head))
	case prog.mode.Perm()&0o004 == 0:
		return refuse(fmt.Sprintf("is a script that others may not read (mode %04o)", prog.mode.Perm()), "chmod 755 it")
	}
	line, _, _ := strings.Cut(string(head[2:]), "\n")
	if strings.Contains(line, "\r") { // at the end of the interpreter's name, of an option, or of what env is to start
		return refuse("has Windows line ends, so its interpreter is not found", "store it with Unix line ends (dos2unix)")
	}
	interpreter, _, _ := strings.Cut(strings.TrimLeft(line, " \t"), " ")
	interpreter, _, _ = strings.Cut(interpreter, "\t")
	from := "/" // a relative interpreter is looked for in the working directory
	if !path.IsAbs(interpreter) {
		from = taskDir
	}
	switch n, err := v.resolve(from + "/" + interpreter); {
	case interpreter == "":
		return refuse("names no interpreter in its first line", "begin it with #!/bin/sh")
	case err != nil:
		return refuse(fmt.Sprintf("wants the interpreter %q, which the base does not have", invalid.Shorten(interpreter)),
			"correct its first line, or give another base")
	case !isProgram(n):
		return refuse(fmt.Sprintf("wants the interpreter %q, which the sandbox user cannot execute (mode %04o)", invalid.Shorten(interpreter), n.mode.Perm()),
			"correct its first line, or chmod 755 the interpreter")
	}
	return nil
}

// foreign are the beginnings of files that people take for programs of Linux.
var foreign = []struct{ begins, reason, fix string }{
	{"\xef\xbb\xbf", "begins with a byte order mark, so that the kernel does not see its first line", "save it as UTF-8 without BOM"},
	{"\xff\xfe\x00\x00", "is stored as UTF-32", "save it as UTF-8 without BOM"},
	{"\xff\xfe", "is stored as UTF-16, as PowerShell writes text", "save it as UTF-8 without BOM"},
	{"\xfe\xff", "is stored as UTF-16", "save it as UTF-8 without BOM"},
	{"#\x00", "is stored as UTF-16 without byte order mark", "save it as UTF-8"},
	{"\x00#", "is stored as UTF-16 without byte order mark", "save it as UTF-8"},
	{"MZ", "is a program for Windows", "build it for GOOS=linux GOARCH=" + runtime.GOARCH},
	{"\xcf\xfa\xed\xfe", "is a program for macOS", "build it for GOOS=linux GOARCH=" + runtime.GOARCH},
	{"\xce\xfa\xed\xfe", "is a program for macOS", "build it for GOOS=linux GOARCH=" + runtime.GOARCH},
	{"\xfe\xed\xfa", "is a program for macOS", "build it for GOOS=linux GOARCH=" + runtime.GOARCH},
	{"\xca\xfe\xba\xbf", "is a program for macOS", "build it for GOOS=linux GOARCH=" + runtime.GOARCH},
	{"\xca\xfe\xba\xbe", "is a program for macOS or a class of Java", "build it for GOOS=linux GOARCH=" + runtime.GOARCH + ", or begin a script with #!/bin/sh"},
}

// describeUnknown says what a file is that begins neither as a program nor as a script, and
// what to do.
func describeUnknown(head []byte) (reason, fix string) {
	if len(head) == 0 {
		return "is empty", "put the program there; look at what has built or copied it"
	}
	for _, f := range foreign {
		if bytes.HasPrefix(head, []byte(f.begins)) {
			return f.reason, f.fix
		}
	}
	return "is neither a Linux program nor a script", "build it for Linux, or begin the script with #!/bin/sh"
}

// findLoader returns the path of the loader that a 64-bit program for this host names, "" if it
// names none or makes no sense. head is the beginning of the program.
func findLoader(f io.ReaderAt, head []byte) string {
	const fileHeader, programHeader, maxHeaders, maxPath = 64, 56, 64, 256
	if len(head) < fileHeader || elf.Data(head[elf.EI_DATA]) != elf.ELFDATA2LSB {
		return ""
	}
	// The fields of Elf64_Ehdr and Elf64_Phdr, by their offsets.
	at := binary.LittleEndian.Uint64(head[32:])
	size, number := binary.LittleEndian.Uint16(head[54:]), binary.LittleEndian.Uint16(head[56:])
	if size != programHeader || at > math.MaxInt64 {
		return ""
	}
	headers := make([]byte, programHeader*min(int(number), maxHeaders))
	n, err := f.ReadAt(headers, int64(at))
	if err != nil && err != io.EOF {
		return ""
	}
	for headers = headers[:n]; len(headers) >= programHeader; headers = headers[programHeader:] {
		if elf.ProgType(binary.LittleEndian.Uint32(headers)) != elf.PT_INTERP {
			continue
		}
		from, length := binary.LittleEndian.Uint64(headers[8:]), binary.LittleEndian.Uint64(headers[32:])
		if from > math.MaxInt64 || length > maxPath {
			return ""
		}
		name := make([]byte, length)
		if _, err := f.ReadAt(name, int64(from)); err != nil {
			return ""
		}
		text, _, _ := strings.Cut(string(name), "\x00")
		return text
	}
	return ""
}

// noExec reports whether the sandbox cannot execute a file because it is mounted so on the
// host. The overlay of several sources is a mount of its own, which is not.
func (v *view) noExec(n node, f *os.File) (bool, error) {
	roots, ok := v.mounts[n.path]
	if !ok {
		roots, _ = v.mountOf(n.path)
	}
	if len(roots) > 1 {
		return false, nil
	}
	var st unix.Statfs_t
	err := unix.Fstatfs(int(f.Fd()), &st)
	return st.Flags&unix.ST_NOEXEC != 0, os.NewSyscallError("fstatfs", err)
}

// warnPrograms warns of extensions and of a wrapper that cannot be started. They are no errors
// of the start: they fail the initialization, as on Lambda (EX-03, ENV-27). owner says what
// the operator gave that holds a file.
func (f *Function) warnPrograms(v *view, wrapper string, owner func(node) string) {
	check := func(what, name string) {
		n, err := v.resolve(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			err = fmt.Errorf("%q does not exist in the sandbox", invalid.Shorten(name))
		case err == nil:
			err = checkProgram(v, owner(n), name, n)
		}
		if err != nil {
			f.Warnings = append(f.Warnings, fmt.Sprintf("%s cannot be started: %v", what, err))
		}
	}
	if !f.ExtensionsDisabled {
		for _, name := range f.Extensions {
			check("extension "+invalid.Shorten(name), optDir+"/extensions/"+name)
		}
	}
	if strings.Contains(wrapper, "/") { // else the shell searches its PATH, which only shows inside
		if !path.IsAbs(wrapper) {
			wrapper = path.Join(f.WorkingDir, wrapper)
		}
		check("the program of AWS_LAMBDA_EXEC_WRAPPER", wrapper)
	}
}

// checkMachine compares the machine of an ELF header with the host's.
func checkMachine(file, entry string, head []byte) error {
	const classAt, dataAt, machineAt = elf.EI_CLASS, elf.EI_DATA, 18
	bad := func(reason string) error {
		return &invalid.Error{Kind: invalid.ErrArchitecture, File: file, Entry: entry, Reason: reason,
			Fix: "build it for GOOS=linux GOARCH=" + runtime.GOARCH}
	}
	if len(head) < machineAt+2 {
		return bad("is the beginning of a program only")
	}
	var order binary.ByteOrder = binary.LittleEndian
	if elf.Data(head[dataAt]) == elf.ELFDATA2MSB {
		order = binary.BigEndian
	}
	found := elf.Machine(order.Uint16(head[machineAt:]))
	needed := machines[runtime.GOARCH]
	if found != needed {
		return bad(fmt.Sprintf("is built for %s, this host runs %s", archName(found), archName(needed)))
	}
	if elf.Class(head[classAt]) != elf.ELFCLASS64 {
		return bad("is a 32-bit program, this host runs " + archName(needed))
	}
	return nil
}
