//go:build integration

package clients

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// loopBootstrap is the bootstrap of a function that answers each event with the output of
// its program look.
const loopBootstrap = `#!/bin/sh
api=http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime/invocation
while curl -sS -D /tmp/head -o /tmp/event "$api/next"; do
	id=$(tr -d '\r' </tmp/head | sed -n 's/^lambda-runtime-aws-request-id: *//ip')
	"$LAMBDA_TASK_ROOT/look" >/tmp/answer 2>&1
	curl -sS -o /dev/null --data-binary @/tmp/answer "$api/$id/response"
done
`

// lookFunction makes a function whose answers are the output of a shell script.
func lookFunction(t *testing.T, look string) string {
	t.Helper()
	dir := harness.ShellFunction(t, []byte(loopBootstrap))
	harness.WriteFile(t, filepath.Join(dir, "look"), []byte("#!/bin/sh\n"+look), 0o755)
	return dir
}

// ENV-40: what programs of a function's own bootstrap take for the memory and the
// processors of their machine, by which they size heaps and pools, is the sandbox's.
func TestClientProgramsSeeLimits(t *testing.T) {
	const look = `python3 -c 'import os; print("python", os.cpu_count(), len(os.sched_getaffinity(0)))'
node -p '"node " + Math.round(os.totalmem() / 1048576) + " " + os.cpus().length + " " + os.availableParallelism()'
java -XX:+PrintFlagsFinal -version 2>/dev/null | awk '$2 == "MaxHeapSize" { print "java", $4 / 1048576 <= '$AWS_LAMBDA_FUNCTION_MEMORY_SIZE' / 2 }'
nproc
free -m | awk '/^Mem:/ { print "free", $2 }'
`
	for _, mb := range []int{512, 1769, 3008} {
		t.Run(fmt.Sprint(mb), func(t *testing.T) {
			cpus := min(2, runtime.NumCPU())
			got := string(harness.Start(t, fmt.Sprintf("--memory=%d", mb), "--timeout=60s", lookFunction(t, look)).Invoke("x").Body)
			want := fmt.Sprintf("python %[1]d %[1]d\nnode %[2]d %[1]d %[1]d\njava 1\n%[1]d\nfree %[2]d\n", cpus, mb)
			if got != want {
				t.Errorf("the programs say %q, want %q", got, want)
			}
		})
	}
}

// textJava prints by the default charset, and makes a file, with names beyond ASCII.
const textJava = `import java.nio.charset.Charset;
import java.nio.file.*;

public class Text {
	public static void main(String[] args) throws Exception {
		Files.writeString(Path.of("/tmp/" + args[0]), "x");
		System.out.println("java " + Charset.defaultCharset() + " " + args[0] + " " + args[0].length() + " " + System.getenv("GREETING") + " " + new String("grün".getBytes()).length());
	}
}
`

// ENV-10: text, arguments, variables and names of files beyond ASCII stay what they are, in
// languages that go by the locale of the process.
func TestClientProgramsKeepText(t *testing.T) {
	const look = `cd /tmp
java -cp "$LAMBDA_TASK_ROOT" Text grün-日本
perl -e 'use I18N::Langinfo qw(langinfo CODESET); print "perl ", langinfo(CODESET), "\n"'
ruby -e 'File.write("ruby-ñ", "ñandú"); puts "ruby #{Encoding.default_external} #{File.read("ruby-ñ").upcase} #{Dir["ruby-*"][0].length}"'
python3 -c 'import locale, os; open("python-é", "w").write("ü"); print("python", locale.getpreferredencoding(), [n for n in os.listdir() if n.startswith("python-")])'
printf 'bash %s\n' "$(bash -c 'x=grün; echo ${#x}')"
`
	dir := lookFunction(t, look)
	harness.WriteFile(t, filepath.Join(dir, "Text.java"), []byte(textJava), 0o644)
	if out, err := exec.Command("javac", "-encoding", "UTF-8", "-d", dir, filepath.Join(dir, "Text.java")).CombinedOutput(); err != nil {
		t.Fatalf("javac: %v\n%s", err, out)
	}
	got := string(harness.Start(t, "--memory=1769", "--timeout=60s", "--env=GREETING=grüß", dir).Invoke("x").Body)
	const want = "java UTF-8 grün-日本 7 grüß 4\nperl UTF-8\nruby UTF-8 ÑANDÚ 6\npython UTF-8 ['python-é']\nbash 4\n"
	if got != want {
		t.Errorf("the programs say\n%s\nwant\n%s", got, want)
	}
}
