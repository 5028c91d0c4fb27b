//go:build integration

package clients

import (
	"fmt"
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

// ENV-38: what programs of a function's own bootstrap take for the memory and the
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
