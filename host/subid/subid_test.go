package subid

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestLeasesAreDistinctAndReturn(t *testing.T) {
	runDir := t.TempDir()
	owner, other := filepath.Join(runDir, "owner"), filepath.Join(runDir, "other")
	for _, dir := range []string{owner, other} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	const n = 64
	leases, err := OpenLeases(filepath.Join(runDir, "ids"), Pool{Base: DefaultIDBase, Ranges: n})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	seen := map[uint32]bool{}
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			base, err := leases.Acquire(owner)
			mu.Lock()
			defer mu.Unlock()
			if err != nil || seen[base] || base < DefaultIDBase || (base-DefaultIDBase)%RangeSize != 0 {
				t.Errorf("lease %d (seen %v): %v", base, seen[base], err)
			}
			seen[base] = true
		})
	}
	wg.Wait()
	const returned = DefaultIDBase + 7*RangeSize
	if err := leases.Release(returned); err != nil {
		t.Fatal(err)
	}
	if base, err := leases.Acquire(owner); err != nil || base != returned {
		t.Errorf("after a release: %d, %v; want %d", base, err, returned)
	}

	// Leases end with their daemon's folder, also where nobody released them.
	if err := os.Remove(owner); err != nil {
		t.Fatal(err)
	}
	if _, err := leases.Acquire(other); err != nil {
		t.Errorf("void lease: %v", err)
	}
}

// A range that was leased before is leased again if it is one of the pool and free.
func TestAcquireAt(t *testing.T) {
	owner := t.TempDir()
	leases, err := OpenLeases(filepath.Join(t.TempDir(), "ids"), Pool{Base: DefaultIDBase, Ranges: 3})
	if err != nil {
		t.Fatal(err)
	}
	const second = DefaultIDBase + RangeSize
	for _, c := range []struct {
		base uint32
		want bool
	}{
		{second, true}, {second, false}, {DefaultIDBase, true}, {DefaultIDBase + 1, false}, {DefaultIDBase - RangeSize, false}, {DefaultIDBase + 3*RangeSize, false}, {0, false},
	} {
		if got, err := leases.AcquireAt(owner, c.base); got != c.want || err != nil {
			t.Errorf("%d: %v, %v; want %v", c.base, got, err, c.want)
		}
	}
	if base, err := leases.Acquire(owner); err != nil || base != DefaultIDBase+2*RangeSize {
		t.Errorf("the free one: %d, %v", base, err)
	}
	if err := leases.Release(second); err != nil {
		t.Fatal(err)
	}
	if got, err := leases.AcquireAt(owner, second); !got || err != nil {
		t.Errorf("after its release: %v, %v", got, err)
	}
}

func TestNewPool(t *testing.T) {
	tests := map[string]struct {
		base           uint32
		subuid, subgid string
		ranges         uint32 // 0: an error that names want
		want           string
	}{
		"default":              {base: DefaultIDBase, subuid: "ann:100000:65536\n", ranges: 4094},
		"not aligned":          {base: DefaultIDBase + 1, want: "multiple of 65536"},
		"host users":           {base: 0, want: "host's own users"},
		"container range":      {base: 1 << 20, want: "systemd's container range"},
		"foreign range":        {base: 0x7FFE0000, want: "systemd's foreign range"},
		"kernel":               {base: 0xFFFF0000, want: "kernel"},
		"cut by foreign range": {base: DefaultIDBase + 10*RangeSize, ranges: 4084},
		"cut by subuid":        {base: DefaultIDBase, subuid: fmt.Sprintf("# c\nbad\nann:%d:10\n", DefaultIDBase+3*RangeSize+5), ranges: 3},
		"behind a long line":   {base: DefaultIDBase, subuid: "# " + strings.Repeat("x", 1<<17) + "\nann:1000000000:1000000000\n", want: "belong to ann"},
		"in subuid":            {base: DefaultIDBase, subuid: "ann:1000000000:1000000000\n", want: "belong to ann"},
		"in subgid":            {base: DefaultIDBase, subgid: "bob:1000000000:1000000000\n", want: "belong to bob"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			os.Mkdir(filepath.Join(root, "etc"), 0o755)
			os.WriteFile(filepath.Join(root, "etc/subuid"), []byte(tt.subuid), 0o644)
			os.WriteFile(filepath.Join(root, "etc/subgid"), []byte(tt.subgid), 0o644)
			pool, err := NewPool(tt.base, root)
			if tt.ranges == 0 {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Fatalf("%+v, %v; want an error with %q", pool, err, tt.want)
				}
				return
			}
			if err != nil || pool != (Pool{tt.base, tt.ranges}) {
				t.Fatalf("%+v, %v; want %d ranges", pool, err, tt.ranges)
			}
		})
	}
}
