package confine

import "golang.org/x/sys/unix"

// libcCalls are what the C library calls where Go makes newer calls that are allowed too.
var libcCalls = []uintptr{unix.SYS_UNLINK}
