package layer

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
)

// python installs by pip: wheels only, so that nothing of a package runs.
type python struct {
	*job
	interpreter string
}

func (p *python) prepare() error {
	p.interpreter = p.runtime.Name
	if err := p.tools([]string{p.interpreter}, p.interpreter); err != nil {
		return err
	}
	if _, err := p.ask(p.interpreter, "-m", "pip", "--version"); err != nil {
		return errors.New("making the layer of " + p.runtime.Name + " needs pip for it, which the base does not have below /usr; on Debian: apt-get install python3-pip")
	}
	return nil
}

// registries asks pip's own table. The index names files of a second host.
func (p *python) registries() ([]string, error) {
	out, err := p.ask(p.interpreter, "-c", "from pip._internal.models.index import PyPI\nprint(PyPI.url)\nprint('https://' + PyPI.file_storage_domain)")
	return strings.Fields(out), err
}

func (p *python) install() error {
	target := filepath.Join(outDir, "python/lib", p.runtime.Name, "site-packages")
	args := []string{
		"-m", "pip", "install", "--isolated", "--no-input", "--disable-pip-version-check", "--no-cache-dir", "--no-compile", "--progress-bar", "off",
		"--require-hashes", "--only-binary", ":all:", "--no-deps", "--proxy", "http://" + ProxyAddr,
		"--target", target, "-r", filepath.Join(LockDir, "requirements.txt"),
	}
	if len(p.job.registries) > 0 {
		args = append(args, "--index-url", p.job.registries[0])
	}
	if _, err := os.Stat(caFile); err == nil {
		args = append(args, "--cert", caFile)
	}
	p.say("installing by pip")
	if err := p.do(workDir, p.env(), p.interpreter, args...); err != nil {
		return err
	}
	// Bytecode that is valid whatever the times of the files are.
	return p.do(workDir, p.env(), p.interpreter, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "-s", outDir, "-p", "/opt", target)
}
