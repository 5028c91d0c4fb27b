// Package descriptor borrows the descriptors of open files for system calls. The number
// that [os.File.Fd] returns may be closed, and be another file's, before the call is made:
// by whoever closes the file, or by the collector, once nobody else has the file.
package descriptor

import "os"

// Use calls use with the descriptor of f and returns what use returns. Until then the
// descriptor stays open, even if f is closed meanwhile. The mode of the file stays as it
// is, which Fd makes blocking. If f is closed the error is [os.ErrClosed].
func Use(f *os.File, use func(fd int) error) error {
	return UseAll([]*os.File{f}, func(fds []int) error { return use(fds[0]) })
}

// UseAll is [Use] for the descriptors of several files, in their order.
func UseAll(files []*os.File, use func(fds []int) error) error {
	return borrow(files, make([]int, 0, len(files)), use)
}

// borrow is UseAll with the descriptors of the first files borrowed.
func borrow(files []*os.File, fds []int, use func(fds []int) error) error {
	if len(fds) == len(files) {
		return use(fds)
	}
	f := files[len(fds)]
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var used error
	if raw.Control(func(fd uintptr) { used = borrow(files, append(fds, int(fd)), use) }) != nil {
		return &os.PathError{Op: "use", Path: f.Name(), Err: os.ErrClosed} // its only error, which package os does not name
	}
	return used
}
