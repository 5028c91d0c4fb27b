// Package confine takes from a process what it does not need, for good. [Thread] does
// what children inherit, before the process exists; [Process] does what the process can
// only do to itself, once it holds all that it needs; [Files] is that for an extractor.
package confine

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Needs are what a confined process may still reach by a path or a port. The zero value
// is nothing but what it takes to start a program.
type Needs struct {
	// Folders may be used in all ways, with what is in them.
	Folders []*os.File
	// Readable may be read, with what is in them.
	Readable []*os.File
	// Links says that a file in Folders may get a second name in another folder of these,
	// which Landlock can allow from its version 2 on (Linux 5.19).
	Links bool
	// Files are paths that may be read, folders with what is in them. What does not exist
	// is left out.
	Files []string
	// Connect allows TCP connections to other hosts and to this one.
	Connect bool
}

// Thread confines the calling thread, and with it every process that it starts: no
// capability can be gained any more (the bounding set is empty, no_new_privs is on), and
// Landlock lets it open nothing but what is needed to start a program, and what is in
// the folders. An error that says that the host lacks [host.Landlock] means that all but
// Landlock is in force. The caller has locked the thread, and never unlocks it.
func Thread(folders ...*os.File) error { return Needs{Folders: folders}.Thread() }

// Thread is the function of that name, with all that is needed left.
func (n Needs) Thread() error {
	for c := uintptr(0); ; c++ {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break // there is no such capability
		}
		if err != nil {
			return fmt.Errorf("bounding set: %w", err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	return n.landlock()
}

// Process confines the calling process, all threads of it, those to come too: it opens
// no file, makes no socket, connects to nowhere and starts no process. It makes only the
// system calls of a server that lives on what it holds. no_new_privs must be on.
func Process() error {
	if err := undumpable(); err != nil {
		return err
	}
	return server.filter()
}

// undumpable keeps the memory of the calling process from others of its user.
func undumpable() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl", err)
	}
	return os.NewSyscallError("setrlimit", unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}))
}

// Files confines the calling process, all threads of it, those to come too, to what it
// takes to read and write files: no socket, no other process, no prctl, and nothing by
// which a file takes more of the disk than its size says. What files it may open is
// [Thread]'s to say. no_new_privs must be on.
func Files() error { return files.filter() }

// Store confines the calling process, all threads of it, those to come too, to what it takes
// to keep files and to serve the connections that it is given: no socket of its own, no
// connection, no other process. What files it may open is [Thread]'s to say. no_new_privs must
// be on.
func Store() error {
	if err := undumpable(); err != nil {
		return err
	}
	return store.filter()
}

// FilesAndNetwork is [Files] that leaves connections to hosts, and none to what has a path.
func FilesAndNetwork() error { return connected.filter() }
