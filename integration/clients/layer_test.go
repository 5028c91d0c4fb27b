//go:build integration

package clients

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// makeLayer runs sandboxd layer and returns the path of the zip, whether it exists or not.
func makeLayer(t *testing.T, runtime string, args ...string) (file string, out harness.Outcome) {
	t.Helper()
	f := harness.NewFolders(t)
	file = filepath.Join(t.TempDir(), "layer.zip")
	out = harness.SandboxdCommand(t, "", append([]string{"layer", runtime, "--output", file, "--state-dir", f.State, "--run-dir", f.Run}, args...)...)
	return file, out
}

// wantLayer is makeLayer that succeeds.
func wantLayer(t *testing.T, runtime string, args ...string) string {
	t.Helper()
	file, out := makeLayer(t, runtime, args...)
	if out.Code != 0 || out.Stdout != file+"\n" {
		t.Fatalf("sandboxd layer %s: %+v", runtime, out)
	}
	return file
}

// wantNoLayer is makeLayer that fails with a message that has the text.
func wantNoLayer(t *testing.T, text, runtime string, args ...string) {
	t.Helper()
	file, out := makeLayer(t, runtime, args...)
	if out.Code != 2 || !strings.Contains(out.Stderr, text) || out.Stdout != "" {
		t.Errorf("sandboxd layer %s: %+v; want code 2 and %q", runtime, out, text)
	}
	if left, err := os.ReadDir(filepath.Dir(file)); err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
}

// writeFiles makes a folder with files.
func writeFiles(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		harness.WriteFile(t, filepath.Join(dir, name), []byte(text), 0o644)
	}
	return dir
}

// RIC-04: a package without anything beside it has the client and the SDK.
func TestClientLayerPython(t *testing.T) {
	t.Parallel()
	runtime := pythonRuntime(t)
	file := wantLayer(t, runtime)
	code := writeFiles(t, map[string]string{"app.py": `import boto3, sys
def handler(event, context):
    client = boto3.client("s3", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
    return {"client": type(client).__name__, "bytecode": boto3.__spec__.cached is not None and __import__("os").path.exists(boto3.__spec__.cached)}
`})
	d := harness.Start(t, "--memory=512", "--timeout=30s", "--runtime="+runtime, "--handler=app.handler", "--layer", file, code)
	if a := d.Invoke(map[string]string{}); strings.TrimSpace(string(a.Body)) != `{"client": "S3", "bytecode": true}` {
		t.Errorf("answer %s", a.Body)
	}
}

// The times of a zip's files are kept: Python takes the bytecode beside a source for valid only
// if the source has the time that the bytecode has noted.
func TestClientPythonBytecode(t *testing.T) {
	t.Parallel()
	const source = "def handler(event, context):\n    return %q\n"
	dir := writeFiles(t, map[string]string{"python/fn.py": fmt.Sprintf(source, "bytecode")})
	file, when := filepath.Join(dir, "python/fn.py"), time.Date(2021, 3, 4, 5, 6, 7, 0, time.UTC)
	date := func() {
		if err := os.Chtimes(file, when, when); err != nil {
			t.Fatal(err)
		}
	}
	date()
	runtime := pythonRuntime(t)
	runIn(t, dir, "/usr/bin/"+runtime, "-m", "py_compile", file)
	harness.WriteFile(t, file, fmt.Appendf(nil, source, "a source"), 0o644) // of the same size, which is noted too
	date()
	var b bytes.Buffer
	archive := zip.NewWriter(&b)
	if err := archive.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := archive.Close(); err != nil {
		t.Fatal(err)
	}
	layer := filepath.Join(t.TempDir(), "layer.zip")
	harness.WriteFile(t, layer, b.Bytes(), 0o644)
	d := harness.Start(t, "--memory=512", "--timeout=30s", "--runtime="+runtime, "--handler=fn.handler", "--layer", layer, clientDir(t, "python"))
	if a := d.Invoke(map[string]string{}); string(a.Body) != `"bytecode"` {
		t.Errorf("answer %s", a.Body)
	}
}

// A source package is not built: its setup.py would run.
func TestClientLayerPythonWheelsOnly(t *testing.T) {
	t.Parallel()
	source := tarball(t, map[string]string{"evil-1.0/setup.py": "raise SystemExit('setup.py ran')\n", "evil-1.0/PKG-INFO": "Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n"})
	sum := fmt.Sprintf("%x", sha256.Sum256(source))
	index := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, ".tar.gz") {
			_, _ = w.Write(source)
			return
		}
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, `<a href="/evil-1.0.tar.gz#sha256=%s">evil-1.0.tar.gz</a>`, sum)
	}))
	defer index.Close()
	lock := writeFiles(t, map[string]string{"requirements.txt": "evil==1.0 --hash=sha256:" + sum + "\n"})
	wantNoLayer(t, "No matching distribution found for evil==1.0", pythonRuntime(t), "--registry", index.URL, "--lock", lock)
}

// RIC-03: a package of a handler alone, with a callback, has the SDK by require and by import.
// scripts/clients.sh has made the layer, since its client takes minutes to compile.
func TestClientLayerNode(t *testing.T) {
	t.Parallel()
	layer := t.TempDir()
	runIn(t, "/", "cp", "-r", clientDir(t, "node3"), filepath.Join(layer, "nodejs"))
	code := writeFiles(t, map[string]string{"index.js": `const {DynamoDBClient} = require('@aws-sdk/client-dynamodb');
exports.handler = (event, context, callback) => import('@aws-sdk/client-s3').then(({S3Client}) => callback(null, [new DynamoDBClient({}), new S3Client({})].map((c) => c.constructor.name)));
`})
	d := harness.Start(t, "--memory=512", "--timeout=30s", "--runtime=nodejs20.x", "--handler=index.handler", "--layer", layer, code)
	if a := d.Invoke(map[string]string{}); string(a.Body) != `["DynamoDBClient","S3Client"]` {
		t.Errorf("answer %s", a.Body)
	}
}

// RIC-05: a package of a handler alone.
func TestClientLayerJava(t *testing.T) {
	t.Parallel()
	file := wantLayer(t, javaRuntime(t))
	code := t.TempDir()
	for _, class := range []string{"Handler.class", "Refused.class"} {
		harness.WriteFile(t, filepath.Join(code, class), harness.ReadFile(t, filepath.Join(clientDir(t, "java"), class)), 0o644)
	}
	d := harness.Start(t, "--memory=1769", "--timeout=60s", "--runtime="+javaRuntime(t), "--handler=Handler", "--layer", file, code)
	wantClientAnswer(d, 1)
}

// rubyClient stands in for AWS's client, which is on no registry that the test machines
// reach (RIC-12).
const rubyClient = `require 'json'
require 'net/http'
module AwsLambdaRIC
  class Bootstrap
    def start
      api = "http://#{ENV['AWS_LAMBDA_RUNTIME_API']}/2018-06-01/runtime/invocation"
      file, method = ENV['_HANDLER'].split('.')
      require file
      http = Net::HTTP.new(*ENV['AWS_LAMBDA_RUNTIME_API'].split(':'))
      http.read_timeout = 3600
      loop do
        invocation = http.get("#{api}/next")
        answer = Object.new.send(method, event: JSON.parse(invocation.body), context: nil)
        http.post("#{api}/#{invocation['Lambda-Runtime-Aws-Request-Id']}/response", answer.to_json)
      end
    end
  end
end
`

// gemServer serves a gem server with the stand-in on loopback, and returns a lock folder for
// it.
func gemServer(t *testing.T) (address, lock string) {
	dir := writeFiles(t, map[string]string{
		"lib/aws_lambda_ric.rb": rubyClient,
		"a.gemspec": `Gem::Specification.new do |s|
  s.name, s.version, s.summary, s.authors, s.files = 'aws_lambda_ric', '3.0.0', 'stand-in', ['nobody'], ['lib/aws_lambda_ric.rb']
end
`,
	})
	served := t.TempDir()
	gem := filepath.Join(served, "gems/aws_lambda_ric-3.0.0.gem")
	if err := os.Mkdir(filepath.Dir(gem), 0o755); err != nil {
		t.Fatal(err)
	}
	runIn(t, dir, "/usr/bin/gem", "build", "--output", gem, "a.gemspec")
	runIn(t, served, "/usr/bin/gem", "generate_index", "-d", served)
	s := httptest.NewServer(http.FileServer(http.Dir(served)))
	t.Cleanup(s.Close)
	return s.URL, writeFiles(t, map[string]string{"SHA256SUMS": fmt.Sprintf("%x  aws_lambda_ric-3.0.0.gem\n", sha256.Sum256(harness.ReadFile(t, gem)))})
}

// RIC-07.
func TestClientLayerRuby(t *testing.T) {
	t.Parallel()
	runtime := "ruby" + strings.TrimSpace(runIn(t, "/", "/usr/bin/ruby", "-e", "puts RUBY_VERSION[/^[0-9]+\\.[0-9]+/]"))
	address, lock := gemServer(t)
	file := wantLayer(t, runtime, "--registry", address, "--lock", lock)
	code := writeFiles(t, map[string]string{"app.rb": "def handler(event:, context:)\n  [event['hello'], RUBY_VERSION, $0]\nend\n"})
	d := harness.Start(t, "--memory=512", "--timeout=30s", "--runtime="+runtime, "--handler=app.handler", "--layer", file, code)
	a := d.Invoke(map[string]string{"hello": "there"})
	var got []string
	if err := json.Unmarshal(a.Body, &got); err != nil || len(got) != 3 || got[0] != "there" || !strings.HasPrefix(got[1], strings.TrimPrefix(runtime, "ruby")) || got[2] != "/var/runtime/index.rb" {
		t.Errorf("answer %s, %v", a.Body, err)
	}
	wantNoLayer(t, "no lock file for "+runtime, runtime)
	wrong := writeFiles(t, map[string]string{"SHA256SUMS": strings.Repeat("0", 64) + "  aws_lambda_ric-3.0.0.gem\n"})
	wantNoLayer(t, "the lock file wants 000", runtime, "--registry", address, "--lock", wrong)
}

// hostile is the install script of a package. It tries what an attacker would, and notes
// what worked in a file that gets into the layer.
const hostile = `const fs = require('fs'), http = require('http'), net = require('net'), cp = require('child_process');
const got = {};
const attempt = (name, f) => { try { f(); got[name] = true; } catch (e) {} };
attempt('read shadow', () => fs.readFileSync('/etc/shadow'));
attempt('read root home', () => fs.readdirSync('/root'));
attempt('read home', () => { if (fs.readdirSync('/home').length) return; throw 0; });
attempt('write usr', () => fs.writeFileSync('/usr/bin/evil', 'x'));
attempt('write task', () => fs.writeFileSync('/var/task/evil', 'x'));
attempt('kill init', () => { process.kill(1, 'SIGKILL'); });
attempt('trace the installer', () => fs.readFileSync('/proc/2/environ'));
attempt('namespaces', () => { cp.execFileSync('unshare', ['-U', 'true'], {stdio: 'ignore'}); });
attempt('operator', () => { if (!JSON.stringify(process.env).includes('operators-secret')) throw 0; });
process.stderr.write('\u001b]0;owned\u0007');
cp.spawn('sleep', ['3600'], {detached: true, stdio: 'ignore'}).unref();
const direct = (port, done) => net.connect(port, '127.0.0.1').on('connect', () => { got['direct ' + port] = true; done(); }).on('error', done);
const proxied = (options, name, done) => http.request({host: '127.0.0.1', port: 9001, ...options})
  .on('response', (r) => { if (r.statusCode < 300) got[name] = true; r.resume(); r.on('end', done); })
  .on('connect', (r, s) => { if (r.statusCode < 300) got[name] = true; s.destroy(); done(); }).on('error', done);
const SECRET = %d, REGISTRY = %d;
const steps = [
  (done) => direct(SECRET, done),
  (done) => direct(REGISTRY, done),
  (done) => proxied({path: 'http://127.0.0.1:' + SECRET + '/'}, 'forward', done).end(),
  (done) => proxied({method: 'CONNECT', path: '127.0.0.1:' + SECRET}, 'connect', done).end(),
  (done) => proxied({method: 'PUT', path: '/allow'}, 'allow', done).end('127.0.0.1:' + SECRET + '\n'),
  (done) => proxied({path: 'http://127.0.0.1:' + SECRET + '/'}, 'forward after allow', done).end(),
  (done) => proxied({path: 'http://127.0.0.1:' + REGISTRY + '/ping'}, 'registry', done).end(),
  (done) => require('dns').lookup('example.com', (e) => { if (!e) got['names'] = true; done(); }),
];
const next = () => { const step = steps.shift(); if (step) step(() => next()); else { fs.mkdirSync('dist', {recursive: true}); fs.writeFileSync('dist/got.json', JSON.stringify(got)); process.exit(0); } };
next();
`

// npmRegistry is a registry of npm with two packages: the client, with the hostile script, and
// one of the SDK with a script that must not run.
type npmRegistry struct {
	*httptest.Server
	packages map[string][]byte
}

func newRegistry(t *testing.T) *npmRegistry {
	r := &npmRegistry{packages: map[string][]byte{}}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

// add adds a package of version 1.0.0.
func (r *npmRegistry) add(t *testing.T, name, scripts string, files map[string]string) {
	files["package/package.json"] = fmt.Sprintf(`{"name": %q, "version": "1.0.0", "scripts": %s}`, name, scripts)
	r.packages[name] = tarball(t, files)
}

func (r *npmRegistry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	name, file, _ := strings.Cut(strings.TrimPrefix(q.URL.Path, "/"), "/-/")
	text, ok := r.packages[name]
	switch {
	case q.URL.Path == "/ping":
	case !ok:
		http.NotFound(w, q)
	case file != "":
		_, _ = w.Write(text)
	default:
		fmt.Fprintf(w, `{"name": %q, "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": {"name": %[1]q, "version": "1.0.0", "hasInstallScript": true, "dist": {"tarball": "%s/%[1]s/-/%[1]s-1.0.0.tgz", "integrity": %q}}}}`,
			name, r.URL, integrity(text))
	}
}

func integrity(text []byte) string {
	sum := sha512.Sum512(text)
	return "sha512-" + base64.StdEncoding.EncodeToString(sum[:])
}

// lock returns the files of a project that depends on a package.
func (r *npmRegistry) lock(folder, name, integrity string, files map[string]string) {
	files[folder+"/package.json"] = fmt.Sprintf(`{"name": "x", "private": true, "dependencies": {%q: "1.0.0"}, "allowScripts": {"aws-lambda-ric": true}}`, name)
	files[folder+"/package-lock.json"] = fmt.Sprintf(`{"name": "x", "lockfileVersion": 3, "requires": true, "packages": {
 "": {"name": "x", "dependencies": {%q: "1.0.0"}},
 "node_modules/%[1]s": {"version": "1.0.0", "integrity": %q, "hasInstallScript": true}}}`, name, integrity)
}

// tarball makes a .tar.gz.
func tarball(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	packed := gzip.NewWriter(&b)
	archive := tar.NewWriter(packed)
	for name, text := range files {
		if err := archive.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(archive, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := archive.Close(); err != nil {
		t.Fatal(err)
	}
	if err := packed.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestClientLayerHostileScript: the script of a package that may run one gets nothing but the
// registry and its own folder; that of another package does not run.
func TestClientLayerHostileScript(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	secret := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer secret.Close()
	port := func(s *httptest.Server) (n int) {
		_, err := fmt.Sscanf(s.URL, "http://127.0.0.1:%d", &n)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	registry := newRegistry(t)
	registry.add(t, "aws-lambda-ric", `{"preinstall": "node hostile.js"}`, map[string]string{
		"package/hostile.js": fmt.Sprintf(hostile, port(secret), port(registry.Server)), "package/bin/index.mjs": "",
	})
	registry.add(t, "sdk", `{"preinstall": "touch ran"}`, map[string]string{"package/index.js": ""})
	lock := map[string]string{}
	registry.lock("client", "aws-lambda-ric", integrity(registry.packages["aws-lambda-ric"]), lock)
	registry.lock("sdk", "sdk", integrity(registry.packages["sdk"]), lock)
	f := harness.NewFolders(t)
	file := filepath.Join(t.TempDir(), "layer.zip")
	cmd := exec.Command(harness.Sandboxd, "layer", "nodejs20.x", "--output", file, "--state-dir", f.State, "--run-dir", f.Run,
		"--registry", registry.URL, "--lock", writeFiles(t, lock))
	cmd.Env = append(os.Environ(), "NPM_TOKEN=operators-secret")
	out := harness.Finish(t, "", cmd)
	if out.Code != 0 || strings.ContainsRune(out.Stderr, '\x1b') || strings.ContainsRune(out.Stderr, '\a') {
		t.Fatalf("%+v; want success, and no escape sequence", out)
	}
	archive, err := zip.OpenReader(file)
	if err != nil {
		t.Fatal(err)
	}
	defer archive.Close()
	names := map[string]*zip.File{}
	for _, file := range archive.File {
		names[strings.TrimPrefix(file.Name, "nodejs/node_modules/")] = file
	}
	if names["sdk/index.js"] == nil || names["sdk/ran"] != nil || names["aws-lambda-ric/dist/got.json"] == nil {
		t.Fatalf("the layer has %v; want sdk without what its script makes, and what the client's script has noted", names)
	}
	noted, err := names["aws-lambda-ric/dist/got.json"].Open()
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(noted)
	if err != nil || string(text) != `{"registry":true}` {
		t.Errorf("the script got %s, %v; want the registry alone", text, err)
	}
	if n := asked.Load(); n > 0 {
		t.Errorf("another server of the host was asked %d times", n)
	}
}

// A package that has another hash than the lock file is not installed, and its script does
// not run.
func TestClientLayerWrongHash(t *testing.T) {
	t.Parallel()
	registry := newRegistry(t)
	registry.add(t, "aws-lambda-ric", `{"preinstall": "echo the script ran >&2"}`, map[string]string{"package/bin/index.mjs": ""})
	lock := map[string]string{}
	registry.lock("client", "aws-lambda-ric", integrity([]byte("another")), lock)
	wantNoLayer(t, "EINTEGRITY", "nodejs20.x", "--registry", registry.URL, "--lock", writeFiles(t, lock))
}
