//go:build integration

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/isolation/wire"
)

// askers is how many threads call sysinfo at once: nproc is for all of the user's.
const askers = 8

// answers is what partAsk prints: the answers to calls of different callers.
type answers struct {
	Info                           unix.Sysinfo_t
	Uptime                         string // /proc/uptime, read afterwards
	Null, Kernel, Unmapped, Hidden syscall.Errno
	Again                          syscall.Errno // of the last, dumpable again
	Shared, Sealed                 syscall.Errno // a shared mapping of a file that may be read only, and of a sealed one
	Left                           string        // of the sealed file
}

func playSysinfo(part string, args []string) error {
	switch part {
	case partAsk:
		return ask()
	case partFlood:
		return flood()
	case partCanary:
		return canary(args[0])
	case partGrip:
		return grip()
	}
	return errors.New("no such part")
}

func sysinfoAt(address uintptr) syscall.Errno {
	_, _, errno := syscall.Syscall(unix.SYS_SYSINFO, address, 0, 0)
	return errno
}

func ask() error {
	var a answers
	if err := unix.Sysinfo(&a.Info); err != nil {
		return err
	}
	text, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return err
	}
	a.Uptime = string(text)
	a.Null, a.Kernel, a.Unmapped = sysinfoAt(0), sysinfoAt(1<<63), sysinfoAt(canaryAddress)
	var info unix.Sysinfo_t
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return err
	}
	a.Hidden = sysinfoAt(uintptr(unsafe.Pointer(&info)))
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0); err != nil {
		return err
	}
	a.Again = sysinfoAt(uintptr(unsafe.Pointer(&info)))
	if err := askFiles(&a); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(a)
}

// askFiles has the answer written to files that the caller may not write to.
func askFiles(a *answers) error {
	self, err := unix.Open("/proc/self/exe", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	sealed, err := unix.MemfdCreate("sealed", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return err
	}
	if _, err := unix.Write(sealed, make([]byte, 4096)); err != nil {
		return err
	}
	if _, err := unix.FcntlInt(uintptr(sealed), unix.F_ADD_SEALS, unix.F_SEAL_WRITE); err != nil {
		return err
	}
	for fd, errno := range map[int]*syscall.Errno{self: &a.Shared, sealed: &a.Sealed} {
		page, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			return err
		}
		*errno = sysinfoAt(uintptr(unsafe.Pointer(&page[0])))
		if fd == sealed {
			a.Left = strings.Trim(string(page), "\x00")
		}
	}
	return nil
}

// grip tries all by which a process can get hold of another, on each thread of PID 1.
func grip() error {
	tasks, err := os.ReadDir("/proc/1/task")
	if err != nil {
		return err
	}
	for _, task := range tasks {
		tid, err := strconv.Atoi(task.Name())
		if err != nil {
			return err
		}
		limit := &unix.Rlimit{Cur: 1, Max: 1}
		own, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return err
		}
		local := []unix.Iovec{{Base: &own[0], Len: 1}}
		remote := []unix.RemoteIovec{{Base: 0x400000, Len: 1}}
		_, open := unix.Open(fmt.Sprintf("/proc/1/task/%d/mem", tid), unix.O_RDWR|unix.O_CLOEXEC, 0)
		_, read := unix.ProcessVMReadv(tid, local, remote, 0)
		_, write := unix.ProcessVMWritev(tid, local, remote, 0)
		for what, err := range map[string]error{
			"attach": unix.PtraceAttach(tid), "memory": open, "read": read, "write": write,
			"signal":   unix.Tgkill(1, tid, unix.SIGQUIT),
			"limit":    unix.Prlimit(tid, unix.RLIMIT_NOFILE, limit, nil),
			"priority": unix.Setpriority(unix.PRIO_PROCESS, tid, 19),
			"affinity": unix.SchedSetaffinity(tid, &unix.CPUSet{1}),
		} {
			if err == nil {
				fmt.Println("reached", tid, what)
			}
		}
		fmt.Println("tried")
	}
	return nil
}

func flood() error {
	failed := make(chan error)
	for i := range askers {
		go func() {
			var info unix.Sysinfo_t
			for n := 0; ; n++ {
				info.Unit = 0
				if err := unix.Sysinfo(&info); err != nil || info.Unit != 1 || info.Procs != 1 {
					failed <- fmt.Errorf("call %d: %+v, %v", n, info, err)
				}
				if n == 100 && i == 0 {
					fmt.Println("flood")
				}
			}
		}()
	}
	return <-failed
}

// canaryAddress is where partCanary has a page, whatever else the process has.
const canaryAddress = 0x7e0000000000

// canary fills a page, looks for a while whether it stays so, and then has threads ask for
// answers there while it executes itself. The next one's page is that of another memory.
func canary(left string) error {
	n, err := strconv.Atoi(left)
	if err != nil {
		return err
	}
	page, _, errno := syscall.Syscall6(unix.SYS_MMAP, canaryAddress, 4096, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED, ^uintptr(0), 0)
	if errno != 0 {
		return errno
	}
	content := unsafe.Slice((*byte)(*(*unsafe.Pointer)(unsafe.Pointer(&page))), 4096)
	whole := bytes.Repeat([]byte{0xaa}, len(content))
	copy(content, whole)
	for range 2000 {
		if !bytes.Equal(content, whole) {
			return fmt.Errorf("with %d left the page was written to: %x", n, content[:128])
		}
	}
	if n == 0 {
		fmt.Println("whole")
		return nil
	}
	asked := make(chan struct{})
	for range askers {
		go func() {
			for first := true; ; first = false {
				sysinfoAt(canaryAddress)
				if first {
					asked <- struct{}{}
				}
			}
		}()
	}
	<-asked
	return syscall.Exec("/proc/self/exe", []string{os.Args[0], partCanary, strconv.Itoa(n - 1)}, os.Environ())
}

// ENV-40: the init handler answers sysinfo(2) with the memory of /proc/meminfo, which here
// is the host's, and nothing else of the host but the uptime, which /proc has too.
func TestSysinfo(t *testing.T) {
	d := newDomainWith(t, sysinfoFilter)
	started, out := d.start(helperPath(), partAsk)
	text, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	d.wantExit(started.ID, exitedWith(0))
	var got answers
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
	var host unix.Sysinfo_t
	if err := unix.Sysinfo(&host); err != nil {
		t.Fatal(err)
	}
	uptime := got.Info.Uptime
	if shown, err := strconv.ParseFloat(strings.Fields(got.Uptime)[0], 64); err != nil || float64(uptime) < shown-60 || float64(uptime) > shown {
		t.Errorf("uptime %d, and %q in /proc", uptime, got.Uptime)
	}
	if got.Info.Freeram == 0 || got.Info.Freeram > host.Totalram {
		t.Errorf("free %d of %d", got.Info.Freeram, host.Totalram)
	}
	want := unix.Sysinfo_t{Uptime: uptime, Totalram: host.Totalram &^ 1023, Freeram: got.Info.Freeram, Procs: 1, Unit: 1}
	if got.Info != want {
		t.Errorf("%+v, want %+v", got.Info, want)
	}
	if got.Shared != unix.EFAULT || got.Sealed != unix.EFAULT || got.Left != "" {
		t.Errorf("a file that can only be read %v, a sealed one %v, which has %q", got.Shared, got.Sealed, got.Left)
	}
	if got.Null != unix.EFAULT || got.Kernel != unix.EFAULT || got.Unmapped != unix.EFAULT || got.Hidden != unix.EPERM || got.Again != 0 {
		t.Errorf("bad addresses %v, %v and %v, not dumpable %v, dumpable again %v", got.Null, got.Kernel, got.Unmapped, got.Hidden, got.Again)
	}
}

// A flood of calls gets right answers and keeps the handler from nothing: processes start, are
// signalled and end. They get no hold of the thread that answers, although it has their file
// system ids.
func TestSysinfoFlood(t *testing.T) {
	d := newDomainWith(t, sysinfoFilter)
	flooding, out := d.start(helperPath(), partFlood)
	line := make([]byte, 200)
	n, err := out.Read(line)
	if got := string(line[:n]); err != nil || got != "flood\n" {
		t.Fatalf("%q, %v", got, err)
	}
	for range 20 {
		attack, out := d.start(helperPath(), partGrip)
		text, err := io.ReadAll(out)
		if err != nil || strings.Contains(string(text), "reached") || strings.Count(string(text), "tried") < spareThreads {
			t.Errorf("an attack on the handler: %q, %v", text, err)
		}
		d.wantExit(attack.ID, exitedWith(0))
	}
	d.send(wire.KillAll{Seq: 1})
	d.wantExit(flooding.ID, killedBy(syscall.SIGKILL))
	if m := d.recv(); m != (wire.Killed{Seq: 1}) {
		t.Errorf("%#v after the end of all", m)
	}
	again, out := d.start(helperPath(), partAsk)
	if text, err := io.ReadAll(out); err != nil || !strings.Contains(string(text), `"Again":0`) {
		t.Errorf("after the flood: %q, %v", text, err)
	}
	d.wantExit(again.ID, exitedWith(0))
}

// An answer goes into the memory that asked, or nowhere: never into that of the program which
// the process executes meanwhile.
func TestSysinfoAndExec(t *testing.T) {
	d := newDomainWith(t, sysinfoFilter)
	started, out := d.start(helperPath(), partCanary, "200")
	text, err := io.ReadAll(out)
	if err != nil || string(text) != "whole\n" {
		t.Errorf("%q, %v", text, err)
	}
	d.wantExit(started.ID, exitedWith(0))
}
