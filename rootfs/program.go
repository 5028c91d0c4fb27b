package rootfs

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"path"
	"runtime"
	"strings"

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

// checkProgram makes sure that the sandbox user can execute what prog was found
// at: permissions of others count, as every file belongs to root or nobody inside.
// file is what the operator gave.
func checkProgram(v *view, file string, prog node) error {
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
	head := make([]byte, 256) // the kernel's BINPRM_BUF_SIZE
	n, err := io.ReadFull(f, head)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return fmt.Errorf("read %s of %s: %w", prog.path, file, err)
	}
	head = head[:n]
	switch {
	case bytes.HasPrefix(head, []byte(elf.ELFMAG)):
		return checkMachine(file, prog.path, head)
	case !bytes.HasPrefix(head, []byte("#!")):
		return refuse("is neither a Linux program nor a script", "build it for Linux, or begin the script with #!/bin/sh")
	case prog.mode.Perm()&0o004 == 0:
		return refuse(fmt.Sprintf("is a script that others may not read (mode %04o)", prog.mode.Perm()), "chmod 755 it")
	}
	line, _, _ := strings.Cut(string(head[2:]), "\n")
	interpreter, _, _ := strings.Cut(strings.TrimLeft(line, " \t"), " ")
	interpreter, _, _ = strings.Cut(interpreter, "\t")
	if strings.HasSuffix(interpreter, "\r") {
		return refuse("has Windows line ends, so its interpreter is not found", "store it with Unix line ends (dos2unix)")
	}
	from := "/" // a relative interpreter is looked for in the working directory
	if !path.IsAbs(interpreter) {
		from = taskDir
	}
	if _, err := v.resolve(from + "/" + interpreter); err != nil || interpreter == "" {
		return refuse(fmt.Sprintf("wants the interpreter %q, which the base does not have", invalid.Shorten(interpreter)),
			"correct its first line, or give another base")
	}
	return nil
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
