package runc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"unsafe"

	"github.com/opencontainers/runc/libcontainer/configs"
	seccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/isolation"
)

// filters holds the compiled seccomp profiles as files, each with a struct sock_filter array.
// Compiling a profile takes longer than the other first steps of a domain, so each is compiled
// once, when it is first needed. It is safe for concurrent use.
//
// The init handler gets the file and installs the filter on itself (docs/decisions/0016). The
// files are sealed, so no process can change one for another process.
type filters struct {
	sysinfo bool // the init handler answers sysinfo(2), see withSysinfo

	mu    sync.Mutex
	files map[string]*os.File // by profile
}

// file returns the file of a profile. The filters still own it.
func (f *filters) file(profile string) (*os.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if file := f.files[profile]; file != nil {
		return file, nil
	}
	program, err := Filter(profile, f.sysinfo)
	if err != nil {
		return nil, err
	}
	file, err := sealed("seccomp-"+profile, program)
	if err != nil {
		return nil, fmt.Errorf("store the seccomp filter: %w", err)
	}
	if f.files == nil {
		f.files = map[string]*os.File{}
	}
	f.files[profile] = file
	return file, nil
}

// Close closes the files.
func (f *filters) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, file := range f.files {
		file.Close()
	}
	f.files = nil
}

// sealed creates a file in memory that cannot be changed.
func sealed(name string, content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	file := os.NewFile(uintptr(fd), name)
	if _, err = file.Write(content); err == nil {
		_, err = unix.FcntlInt(file.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// Filter returns the named seccomp profile in the form of the kernel, a struct sock_filter
// array. With sysinfo it is the form for hosts that pass CheckSysinfo.
func Filter(profile string, sysinfo bool) ([]byte, error) {
	program, err := compile(profile)
	if err == nil && sysinfo {
		program = withSysinfo(program)
	}
	return program, err
}

// compile compiles the named seccomp profile to a BPF program of 8 bytes per instruction. It
// omits rules for system calls that the linked libseccomp does not know, so that these calls
// are refused.
func compile(profile string) ([]byte, error) {
	config, err := isolation.SeccompConfig(profile, runtime.GOARCH)
	if err != nil {
		return nil, err
	}
	program, err := compileConfig(config)
	if err != nil {
		return nil, fmt.Errorf("compile seccomp profile %s: %w", profile, err)
	}
	return program, nil
}

func compileConfig(config *configs.Seccomp) ([]byte, error) {
	fallback, err := verdict(config.DefaultAction, config.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	filter, err := seccomp.NewFilter(fallback)
	if err != nil {
		return nil, err
	}
	defer filter.Release()
	_ = filter.SetOptimize(2) // use a binary tree; fails before libseccomp 2.5, which then uses a list
	for _, rule := range config.Syscalls {
		if err := addRule(filter, rule); err != nil {
			return nil, fmt.Errorf("rule for %s: %w", rule.Name, err)
		}
	}
	return export(filter)
}

func verdict(action configs.Action, errno *uint) (seccomp.ScmpAction, error) {
	switch {
	case action == configs.Allow:
		return seccomp.ActAllow, nil
	case action == configs.Errno && errno != nil:
		return seccomp.ActErrno.SetReturnCode(int16(*errno)), nil
	}
	return seccomp.ActInvalid, fmt.Errorf("action %d is not supported", action)
}

// operators are the operators that profiles may use.
var operators = map[configs.Operator]seccomp.ScmpCompareOp{
	configs.EqualTo:     seccomp.CompareEqual,
	configs.LessThan:    seccomp.CompareLess,
	configs.MaskEqualTo: seccomp.CompareMaskedEqual,
}

func addRule(filter *seccomp.ScmpFilter, rule *configs.Syscall) error {
	call, err := seccomp.GetSyscallFromName(rule.Name)
	if err != nil { // the library does not know the call
		return nil
	}
	action, err := verdict(rule.Action, rule.ErrnoRet)
	if err != nil {
		return err
	}
	var conditions []seccomp.ScmpCondition
	for _, arg := range rule.Args {
		operator, ok := operators[arg.Op]
		if !ok {
			return fmt.Errorf("operator %d is not supported", arg.Op)
		}
		c, err := seccomp.MakeCondition(arg.Index, operator, arg.Value, arg.ValueTwo)
		if err != nil {
			return err
		}
		conditions = append(conditions, c)
	}
	if conditions == nil {
		return filter.AddRule(call, action)
	}
	return filter.AddRuleConditional(call, action, conditions)
}

// export returns the filter's program, which the library can only write to a descriptor.
func export(filter *seccomp.ScmpFilter) ([]byte, error) {
	fd, err := unix.MemfdCreate("seccomp", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	file := os.NewFile(uintptr(fd), "seccomp")
	defer file.Close()
	if err := filter.ExportBPF(file); err != nil {
		return nil, err
	}
	program, err := io.ReadAll(io.NewSectionReader(file, 0, 1<<20))
	if err == nil && (len(program) == 0 || len(program)%unix.SizeofSockFilter != 0) {
		err = fmt.Errorf("libseccomp wrote a program of %d bytes", len(program))
	}
	return program, err
}

// FilterThread installs the default seccomp profile on the calling thread. Processes that the
// thread starts inherit it. The thread must have no_new_privs. The caller must have locked the
// thread, and must never unlock it.
func FilterThread() error {
	program, err := compile(isolation.DefaultProfile)
	if err != nil {
		return err
	}
	if err := setFilter(program); err != nil {
		return fmt.Errorf("install the seccomp filter of a thread: %w", err)
	}
	return nil
}

func setFilter(program []byte) error {
	instructions := make([]unix.SockFilter, len(program)/unix.SizeofSockFilter)
	if len(instructions) == 0 {
		return errors.New("the program is empty")
	}
	if _, err := binary.Decode(program, binary.NativeEndian, instructions); err != nil {
		return err
	}
	form := unix.SockFprog{Len: uint16(len(instructions)), Filter: &instructions[0]}
	return os.NewSyscallError("prctl PR_SET_SECCOMP", unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&form)), 0, 0))
}
