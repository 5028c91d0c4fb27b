//go:build integration

package recovery

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// soakReport collects what a soak did and saw.
type soakReport struct {
	cycles int
	seed   uint64
	began  time.Time

	phases []phase
	faults map[string]int // faulted cycles by kind
	rss    []float64      // KiB, at even distances of the plain cycles
	starts []time.Duration
}

// phase is one part of a soak, with what the daemon held before and after.
type phase struct {
	name          string
	cycles        int
	took          time.Duration
	before, after census
	requests      [lost + 1]int
}

// soakLanes are the callers and sandboxes at once. As many are kept ready, so that the
// pool is the same before and after.
const soakLanes = 4

// plain makes cycles without faults, on the binary that is shipped.
func (r *soakReport) plain(t *testing.T, cycles int) {
	began := time.Now()
	s := newSoak(t, r.seed)
	s.args = []string{"--tenant-isolation", "--concurrency=4", "--pool=4", "--linger=0s", "--memory=256", "--timeout=60s",
		harness.Config(t, "idle-timeout: 10ms\n"), harness.Function(t)}
	serve := func() census {
		s.use(harness.StartIn(t, s.folders, s.args...))
		work(soakLanes, 4*soakLanes, func(int) { s.echo() })
		return s.rest(soakLanes)
	}
	serve()
	few := goroutines(s.daemon)
	before := serve()
	_, threads := sizeOf(s.daemon)
	work(soakLanes, cycles, func(i int) {
		s.echo()
		if i%1000 == 999 {
			t.Logf("%d cycles after %v", i+1, time.Since(began).Round(time.Second))
		}
		if i%max(cycles/100, 1) == 0 {
			rss, _ := sizeOf(s.daemon)
			s.mu.Lock()
			r.rss = append(r.rss, float64(rss))
			s.mu.Unlock()
		}
	})
	after := s.settle(before, harness.Patience)
	wantNoGrowth(t, before, after)
	_, now := sizeOf(s.daemon)
	before["threads"], after["threads"] = threads, now
	if now > threads+runtime.NumCPU()+soakLanes { // the Go runtime keeps what was needed at once
		t.Errorf("%d threads, %d before", now, threads)
	}
	if slope := r.slope(); cycles >= 1000 && slope > 1 {
		t.Errorf("the daemon grows by %.2f KiB a cycle", slope)
	}
	many := goroutines(s.daemon)
	for by, n := range many {
		before["goroutines"] += few[by]
		after["goroutines"] += n
		if n > few[by] {
			t.Errorf("%d goroutines created by %s, %d before", n, by, few[by])
		}
	}
	harness.StartIn(t, s.folders, s.args...).Stop() // removes what SIGQUIT has left
	r.phases = append(r.phases, phase{"plain cycles", cycles, time.Since(began), before, after, s.ledger()})
}

// slope is by how many KiB the daemon's memory grew with each plain cycle, by least
// squares over the last three quarters.
func (r *soakReport) slope() float64 {
	from := len(r.rss) / 4
	var n, sx, sy, sxx, sxy float64
	for i, y := range r.rss[from:] {
		x := float64(i) * float64(max(r.cycles/100, 1))
		n, sx, sy, sxx, sxy = n+1, sx+x, sy+y, sxx+x*x, sxy+x*y
	}
	if d := n*sxx - sx*sx; d != 0 {
		return (n*sxy - sx*sy) / d
	}
	return 0
}

func (s *soak) settle(before census, limit time.Duration) census {
	s.client.CloseIdleConnections()
	return settle(s.daemon, before, limit)
}

func (s *soak) rest(ready int) census {
	s.client.CloseIdleConnections()
	return atRest(s.daemon, ready)
}

func wantNoGrowth(t *testing.T, before, after census) {
	t.Helper()
	if grown := after.grown(before); len(grown) > 0 {
		t.Errorf("leaked:\n\t%s", strings.Join(grown, "\n\t"))
	}
}

// faulted makes cycles with faults, on the build that has fail-points, with the state
// folder on a small file system of its own.
func (r *soakReport) faulted(t *testing.T, cycles int) {
	began := time.Now()
	s := newSoak(t, r.seed)
	s.folders.State = filepath.Join(mountImage(t, "256m"), "state")
	s.args = []string{"--tenant-isolation", "--concurrency=4", "--pool=4", "--linger=0s", "--memory=512", "--timeout=5s",
		harness.Config(t, "idle-timeout: 10ms\n"), "--layer", harness.Layer(t, harness.Extensions{"watcher": harness.Idle()}), harness.Function(t)}
	s.use(startFaulty(t, s.folders, s.args...))
	work(soakLanes, 2*soakLanes, func(int) { s.echo() })
	before := s.rest(soakLanes)
	r.faults = map[string]int{}
	work(soakLanes, cycles, func(i int) {
		f := soakFaults[s.faultOf(i)]
		s.mu.Lock()
		r.faults[f.name]++
		s.mu.Unlock()
		f.cycle(s)
		if i%100 == 99 {
			t.Logf("%d cycles after %v", i+1, time.Since(began).Round(time.Second))
		}
	})
	after := s.settle(before, 2*harness.Patience) // a quarantine tries at least once a minute
	wantNoGrowth(t, before, after)
	s.daemon.Stop()
	for _, d := range s.daemons {
		harness.WantNothingLeft(t, d.Instance)
	}
	r.phases = append(r.phases, phase{"faulted cycles", cycles, time.Since(began), before, after, s.ledger()})
}

// kills kills the daemon at random moments of its start and of cycles (S-02); the
// next start is the next victim, after it has removed what was left.
func (r *soakReport) kills(t *testing.T, kills int) {
	began := time.Now()
	s := newSoak(t, r.seed)
	s.args = []string{"--tenant-isolation", "--concurrency=2", "--pool=2", "--linger=0s", "--memory=256", "--timeout=60s",
		harness.Config(t, "idle-timeout: 10ms\n"), harness.Function(t)}
	s.use(harness.StartIn(t, s.folders, s.args...))
	s.echo()
	before := s.rest(2)
	s.daemon.Crash()
	var starts []time.Duration
	marks := []string{s.folders.State, s.folders.Run}
	for i := range kills {
		start := time.Now()
		d := harness.Launch(t, s.folders, s.args...)
		if typical := median(starts); typical > 0 && s.random.below(3) == 0 { // somewhere in its start
			time.Sleep(time.Duration(s.random.below(int(typical))))
			d.Crash()
			continue
		}
		d.Listening()
		starts = append(starts, time.Since(start))
		marks = append(marks, d.Instance)
		s.use(d)
		var callers = make(chan struct{})
		go func() {
			defer close(callers)
			work(2, 2, func(int) { s.drive(d) })
		}()
		time.Sleep(time.Duration(s.random.below(150)) * time.Millisecond)
		d.Crash()
		<-callers
		if i%50 == 49 {
			t.Logf("%d kills after %v", i+1, time.Since(began).Round(time.Second))
		}
	}
	last := harness.StartIn(t, s.folders, s.args...)
	s.use(last)
	s.echo()
	s.rest(2)
	after := s.settle(before, harness.Patience)
	wantNoGrowth(t, before, after)
	last.Stop()
	harness.WantNothingLeft(t, append(marks, last.Instance)...)
	r.starts = starts
	r.phases = append(r.phases, phase{"kills of the daemon", kills, time.Since(began), before, after, s.ledger()})
}

func median(list []time.Duration) time.Duration {
	if len(list) == 0 {
		return 0
	}
	return slices.Sorted(slices.Values(list))[len(list)/2]
}

// mountImage makes an ext4 file system of that size and mounts it until the test ends,
// in a folder that is nobody's: what other daemons of the host see of it meanwhile
// is no leftover of a test's daemon.
func mountImage(t *testing.T, size string, options ...string) (dir string) {
	t.Helper()
	image, dir := filepath.Join(t.TempDir(), "image"), t.TempDir()
	for _, argv := range [][]string{
		append(append([]string{"mke2fs", "-q", "-F", "-t", "ext4", "-m", "0"}, options...), image, size),
		{"mount", "-o", "loop", image, dir},
	} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", argv, err, out)
		}
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// soakEnd is the end of what a run writes. What follows it on the page, a person has written.
const soakEnd = "\n<!-- what make soak writes ends here -->\n"

// write writes the report to a page, and keeps the end of it.
func (r *soakReport) write(t *testing.T, path string) {
	t.Helper()
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(old), soakEnd)
	harness.WriteFile(t, path, []byte(r.text()+soakEnd+rest), 0o644)
}

// text is the page docs/reliability.md up to soakEnd.
func (r *soakReport) text() string {
	var b strings.Builder
	var uts unix.Utsname
	_ = unix.Uname(&uts)
	fmt.Fprintf(&b, `# Reliability

What one run of the soak did and saw. Repeat it as root with `+"`make soak N=%d SEED=%d`"+`; the seed gives the same
faults, in the order in which %d callers meet them.

A *cycle* is the life of one sandbox: a tenant of its own asks for it, it answers, and it is removed. Plain cycles and kills
run on the binary that is shipped; faulted cycles on one that can be told to fail (package `+"`failpoint`"+`), with
its state folder on a small disk. The *leak budget is 0*: after each part the daemon and the host hold no more of anything
than before it, counted from what the kernel says. That the check sees a leak is itself a test (`+"`TestPlantedLeaks`"+`).

- Kernel %s, %s, %d CPUs, cgroups %s
- %s, %s in all
`, r.cycles, r.seed, soakLanes, unix.ByteSliceToString(uts.Release[:]), unix.ByteSliceToString(uts.Machine[:]), runtime.NumCPU(), cgroupMode(),
		r.began.UTC().Format("2 January 2006"), time.Since(r.began).Round(time.Second))
	fmt.Fprintf(&b, "- The daemon's memory after %d plain cycles: %.1f MiB, slope %.2f KiB a cycle\n", r.cycles, last(r.rss)/1024, r.slope())
	fmt.Fprintf(&b, "- Start after a kill, with the removal of what was left, until it serves: median %v, longest %v\n\n",
		median(r.starts).Round(time.Millisecond), slices.Max(append(r.starts, 0)).Round(time.Millisecond))

	b.WriteString("## Cycles and the ledger\n\nEvery request is in one column; each id has at most one START, END and REPORT, exactly one if it was accepted by a daemon that\nlived on, and every payload came back to its own caller.\n\n")
	b.WriteString("| part | cycles | time | answered | failed, as it had to | connection lost | refused and asked again |\n|---|---|---|---|---|---|---|\n")
	for _, p := range r.phases {
		fmt.Fprintf(&b, "| %s | %d | %v | %d | %d | %d | %d |\n", p.name, p.cycles, p.took.Round(time.Second),
			p.requests[answered], p.requests[failed], p.requests[lost], p.requests[refused])
	}
	b.WriteString("\n## Faults\n\n| fault | cycles |\n|---|---|\n")
	for _, f := range soakFaults {
		fmt.Fprintf(&b, "| %s | %d |\n", f.name, r.faults[f.name])
	}
	b.WriteString("\n## Invariants\n\nBefore and after each part, with no sandbox but those of the pool.\n\n| what |")
	for _, p := range r.phases {
		fmt.Fprintf(&b, " %s |", p.name)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(r.phases)) + "\n")
	kinds := map[string]bool{}
	for _, p := range r.phases {
		for kind := range p.before {
			kinds[kind] = true
		}
	}
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		fmt.Fprintf(&b, "| %s |", kind)
		for _, p := range r.phases {
			if _, counted := p.before[kind]; counted {
				fmt.Fprintf(&b, " %d → %d |", p.before[kind], p.after[kind])
			} else {
				b.WriteString(" |")
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}

func last(list []float64) float64 {
	if len(list) == 0 {
		return math.NaN()
	}
	return list[len(list)-1]
}

// cgroupMode names how the host mounts its cgroups.
func cgroupMode() string {
	switch {
	case harness.Exists(filepath.Join(harness.CgroupRoot, "cgroup.controllers")):
		return "v2"
	case harness.Exists(filepath.Join(harness.CgroupRoot, "unified")):
		return "hybrid"
	}
	return "v1"
}
