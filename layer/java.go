package layer

import (
	"archive/zip"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// java installs by Maven. Maven's plugins are not locked; what they have installed is
// compared with the lock file once they have ended.
type java struct {
	*job
	home string // of Maven
}

func (j *java) prepare() error {
	if err := j.tools([]string{"java", "mvn"}, "default-jre-headless maven"); err != nil {
		return err
	}
	path, err := exec.LookPath("mvn")
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	j.home = filepath.Dir(filepath.Dir(path))
	return err
}

// modelURL finds the address of the central repository in the model that every project of
// Maven inherits.
var modelURL = regexp.MustCompile(`<url>\s*(https?://[^<\s]+)\s*</url>`)

func (j *java) registries() ([]string, error) {
	jars, err := filepath.Glob(filepath.Join(j.home, "lib/maven-model-builder*.jar"))
	if err != nil || len(jars) == 0 {
		return nil, fmt.Errorf("%s/lib has no maven-model-builder", j.home)
	}
	archive, err := zip.OpenReader(jars[0])
	if err != nil {
		return nil, err
	}
	defer archive.Close()
	for _, f := range archive.File {
		if !strings.HasPrefix(f.Name, "org/apache/maven/model/pom-4.0.0") {
			continue
		}
		model, err := f.Open()
		if err != nil {
			return nil, err
		}
		defer model.Close()
		text, err := io.ReadAll(io.LimitReader(model, 1<<20))
		if err != nil {
			return nil, err
		}
		if m := modelURL.FindSubmatch(text); m != nil {
			return []string{string(m[1])}, nil
		}
	}
	return nil, fmt.Errorf("%s names no repository", jars[0])
}

// settings are Maven's: it takes its proxy from nowhere else.
const settings = `<settings>
  <localRepository>%s</localRepository>
  <interactiveMode>false</interactiveMode>
  <proxies>
    <proxy><id>http</id><active>true</active><protocol>http</protocol><host>%[2]s</host><port>%[3]s</port></proxy>
    <proxy><id>https</id><active>true</active><protocol>https</protocol><host>%[2]s</host><port>%[3]s</port></proxy>
  </proxies>
%[4]s</settings>
`

func (j *java) install() error {
	want, err := sums(filepath.Join(LockDir, "SHA256SUMS"))
	if err != nil {
		return err
	}
	dir := filepath.Join(workDir, "java")
	if err := os.CopyFS(dir, os.DirFS(LockDir)); err != nil {
		return err
	}
	host, port, _ := strings.Cut(ProxyAddr, ":")
	mirror := ""
	if len(j.job.registries) > 0 {
		mirror = "  <mirrors><mirror><id>registry</id><mirrorOf>*</mirrorOf><url>" + escape(j.job.registries[0]) + "</url></mirror></mirrors>\n"
	}
	path := filepath.Join(dir, "settings.xml")
	if err := os.WriteFile(path, fmt.Appendf(nil, settings, workDir+"/m2", host, port, mirror), 0o644); err != nil {
		return err
	}
	target := filepath.Join(outDir, "java/lib")
	j.say("installing by Maven")
	if err := j.do(dir, j.env(), "mvn", "-q", "-B", "-C", "-Dstyle.color=never", "-s", path, "dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory="+target); err != nil {
		return err
	}
	if err := endOthers(); err != nil {
		return err
	}
	return verify(target, want)
}

// escape makes text of XML.
func escape(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(s)
}
