package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

const mib = 1 << 20

// LOG-26: looks at all memory and at that of processes, and what is reported after each.
func TestMemoryUsed(t *testing.T) {
	type look struct{ current, peak, own, want uint64 } // MiB
	for _, tt := range []struct {
		name  string
		looks []look
	}{
		{"memory that grows", []look{{30, 30, 20, 20}, {130, 130, 120, 120}, {30, 130, 20, 120}}},
		{"memory that came and went between looks", []look{{30, 30, 20, 20}, {30, 230, 20, 220}}},
		{"a file that is written", []look{{30, 30, 20, 20}, {330, 330, 20, 20}, {330, 330, 20, 20}}},
		{"a file that is written and removed", []look{{30, 30, 20, 20}, {330, 330, 20, 20}, {30, 340, 20, 30}}},
		{"memory instead of a file", []look{{330, 330, 20, 20}, {330, 330, 300, 300}}},
		{"a warm and a cold cache", []look{{25, 25, 20, 20}}},
		{"a cold cache", []look{{125, 125, 20, 20}}},
		{"a stat that is newer than the rest", []look{{30, 30, 40, 40}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var m memory
			for i, l := range tt.looks {
				m.note(time.Time{}, l.current*mib, l.peak*mib, l.own*mib)
				if m.most != l.want*mib {
					t.Fatalf("look %d: %d MiB, want %d", i, m.most/mib, l.want)
				}
			}
		})
	}
}

// The files of both cgroup versions are read, memory.stat only when there is a reason.
func TestMemoryFiles(t *testing.T) {
	for _, tt := range []struct {
		name, stat, later string
	}{
		{"v2", "anon %d\nfile 900\nkernel 700\nkernel_stack 1\npagetables 2\nsec_pagetables 3\nsock 4\nshmem 5\nfile_mapped 800\nslab_reclaimable 600\nslab_unreclaimable 6\n", "anon 0\n"},
		{"v1", "cache 900\nrss %d\nrss_huge 0\nshmem 21\nmapped_file 800\ntotal_cache 900\ntotal_rss 77\ntotal_shmem 5\n", "rss 0\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			file := func(role Role, name, text string) File {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				f, err := os.Open(filepath.Join(dir, name))
				if err != nil {
					t.Fatal(err)
				}
				return File{role, f}
			}
			h, err := Open([]File{file(Freeze, "freeze", ""), file(Events, "events", ""),
				file(Memory, "current", fmt.Sprint(20*mib)), file(MemoryPeak, "peak", fmt.Sprint(20*mib)), file(MemoryStat, "stat", fmt.Sprintf(tt.stat, 10*mib))})
			if err != nil {
				t.Fatal(err)
			}
			defer h.Close()
			h.Add(file(MemoryStat, "second", fmt.Sprintf(tt.stat, 3*mib)))
			h.Add(file(OOMEvents, "oom", "oom_kill 0\n"))
			want := func(what string, want uint64) {
				t.Helper()
				if got, err := h.MemoryUsed(); err != nil || got != want {
					t.Errorf("%s: %d, %v; want %d", what, got, err, want)
				}
			}
			own := uint64(13*mib + 2*21)
			want("first", own)
			file(MemoryStat, "second", fmt.Sprintf(tt.stat, 4*mib)).Close()
			want("nothing changed", own)
			h.memory.read = h.memory.read.Add(-2 * memoryAge)
			want("after a while", own+mib)
			file(MemoryStat, "second", tt.later).Close()
			file(Memory, "current", fmt.Sprint(25*mib)).Close()
			want("less", own+mib)
			file(OOMEvents, "oom", "oom_kill 1\n").Close()
			file(MemoryPeak, "peak", fmt.Sprint(128*mib)).Close()
			want("out of memory", 128*mib)
			if n := len(h.Files()); n != 7 {
				t.Errorf("%d files, want 7", n)
			}
		})
	}
}
