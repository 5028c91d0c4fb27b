package filetable

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The table has room afterwards for as many descriptors, and none is open more.
func TestFileTableGrows(t *testing.T) {
	want := 2 * fileTable(t)
	before := openFiles(t)
	if err := <-Grow(want); err != nil {
		t.Fatal(err)
	}
	if got := fileTable(t); got < want {
		t.Errorf("the table has room for %d descriptors, want %d", got, want)
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d descriptors are open, %d were", after, before)
	}
}

// What is beyond the limit of open files is not asked for.
func TestFileTableWithinLimit(t *testing.T) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	low := limit
	low.Cur = uint64(fileTable(t)) + 1
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	if err := <-Grow(int(low.Cur) + 1); err != nil {
		t.Fatal(err)
	}
	if got := fileTable(t); got < int(low.Cur) {
		t.Errorf("the table has room for %d descriptors, want %d", got, low.Cur)
	}
}

// fileTable is how many descriptors this process's table has room for.
func fileTable(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if size, ok := strings.CutPrefix(line, "FDSize:"); ok {
			n, err := strconv.Atoi(strings.TrimSpace(size))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("/proc/self/status has no FDSize")
	return 0
}

func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}
