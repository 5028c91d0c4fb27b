package layer

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// ruby installs by RubyGems. The gems are fetched, which runs nothing of them, compared with
// the lock file, and only then installed.
type ruby struct {
	*job
}

func (r *ruby) prepare() error {
	if err := r.tools([]string{"ruby", "gem"}, "ruby"); err != nil {
		return err
	}
	has, err := r.ask("ruby", "-e", "puts RUBY_VERSION")
	if err == nil && !strings.HasPrefix(has, r.runtime.version+".") {
		err = fmt.Errorf("the base has Ruby %s, and the layer of %s needs Ruby %s: make the layer of the version that the base has, or give another base with --rootfs",
			has, r.runtime.Name, r.runtime.version)
	}
	return err
}

// registries asks RubyGems. It looks versions up on a host below that of its source.
func (r *ruby) registries() ([]string, error) {
	out, err := r.ask("ruby", "-rrubygems", "-e", "puts Gem.sources.map(&:to_s)")
	if err != nil {
		return nil, err
	}
	sources := strings.Fields(out)
	for _, source := range slices.Clone(sources) {
		if u, err := url.Parse(source); err == nil && u.Host != "" {
			u.Host = "index." + u.Host
			sources = append(sources, u.String())
		}
	}
	return sources, nil
}

func (r *ruby) install() error {
	want, err := sums(filepath.Join(LockDir, "SHA256SUMS"))
	if err != nil {
		return err
	}
	gems := filepath.Join(workDir, "gems")
	if err := os.Mkdir(gems, 0o755); err != nil {
		return err
	}
	r.say("fetching %d gems", len(want))
	files := []string{}
	for file := range want {
		name, ok := strings.CutSuffix(file, ".gem")
		dash := strings.LastIndexByte(name, '-')
		if !ok || dash <= 0 {
			return fmt.Errorf("%s in the lock file is not a gem such as name-1.2.3.gem", file)
		}
		files = append(files, filepath.Join(gems, file))
		args := []string{"fetch", name[:dash], "--version", name[dash+1:], "--platform", "ruby", "--http-proxy", "http://" + ProxyAddr}
		if len(r.job.registries) > 0 {
			args = append(args, "--clear-sources", "--source", r.job.registries[0])
		}
		if err := r.do(gems, r.env(), "gem", args...); err != nil {
			return err
		}
	}
	if err := endOthers(); err != nil {
		return err
	}
	if err := verify(gems, want); err != nil {
		return err
	}
	slices.Sort(files)
	target := filepath.Join(outDir, "ruby/gems", r.runtime.version+".0")
	args := append([]string{"install", "--local", "--ignore-dependencies", "--no-document", "--no-user-install", "--no-format-executable", "--install-dir", target}, files...)
	if err := r.do(gems, r.env(), "gem", args...); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(target, "cache"))
}

// jobs is how many processes compile at once.
func jobs() int { return max(runtime.NumCPU(), 1) }
