//go:build integration

package clients

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// wrapper inserts $1 of the environment before the last argument, and has another handler
// called, as the wrappers of tracing layers do.
const wrapper = `#!/bin/sh
last=$#
for argument; do
	shift
	[ "$((last -= 1))" -gt 0 ] || set -- "$@" $INSERTED
	set -- "$@" "$argument"
done
export ORIGINAL="$_HANDLER" _HANDLER="$OTHER"
exec "$@"
`

// wrappedAnswer is what the handlers behind the wrapper answer.
type wrappedAnswer struct {
	Original string
	Inserted bool     // the option is in force
	Command  []string // of the process
	Path     []string // where Python looks for modules
}

// ENV-26, RIC-03, RIC-04: the last argument of an interpreter is a file that reads _HANDLER.
func TestClientWrapper(t *testing.T) {
	t.Parallel()
	layer := t.TempDir()
	for name, text := range map[string]string{
		"python/wrapped.py": `import os, sys
def handler(event, context):
    command = open("/proc/self/cmdline").read().rstrip("\0").split("\0")
    return {"original": os.environ["ORIGINAL"], "inserted": sys.flags.dev_mode, "command": command, "path": sys.path}
`,
		"wrapped.mjs": `export const handler = async () => ({
  original: process.env.ORIGINAL, inserted: process.execArgv.includes("--no-deprecation"), command: [process.argv0, ...process.execArgv, process.argv[1]],
});
`,
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(layer, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		harness.WriteFile(t, filepath.Join(layer, name), []byte(text), 0o644)
	}
	harness.WriteFile(t, filepath.Join(layer, "wrap"), []byte(wrapper), 0o755)
	python := pythonRuntime(t)
	for _, tt := range []struct {
		client, runtime, handler, other, inserted string
		want                                      []string
	}{
		{"python", python, "app.handler", "wrapped.handler", "-X dev", []string{"/usr/bin/" + python, "-X", "dev", "/var/runtime/bootstrap.py"}},
		{"node3", "nodejs20.x", "index.handler", "/opt/wrapped.handler", "--no-deprecation", []string{
			"/usr/bin/node", "--expose-gc", "--max-http-header-size", "81920", "--max-semi-space-size=25", "--max-old-space-size=461",
			"--no-experimental-require-module", "--no-deprecation", "/var/runtime/index.mjs",
		}},
	} {
		t.Run(tt.client, func(t *testing.T) {
			d := harness.Start(t, "--memory=512", "--timeout=30s", "--runtime="+tt.runtime, "--handler="+tt.handler, "--layer", layer,
				"--env=AWS_LAMBDA_EXEC_WRAPPER=/opt/wrap", "--env=OTHER="+tt.other, "--env=INSERTED="+tt.inserted, clientDir(t, tt.client))
			a := d.Invoke(map[string]string{})
			var got wrappedAnswer
			if err := json.Unmarshal(a.Body, &got); err != nil || got.Original != tt.handler || !got.Inserted || !slices.Equal(got.Command, tt.want) {
				t.Errorf("%s, %v; want %s, and the command %q", a.Body, err, tt.handler, tt.want)
			}
			if tt.client == "python" && got.Path[0] != "/var/task" {
				t.Errorf("Python looks for modules in %q; want /var/task first", got.Path)
			}
		})
	}
}

// ENV-26: Python finds the client and the function also if a wrapper sets PYTHONPATH, or has
// Python ignore it.
func TestClientWrapperOfPythonPath(t *testing.T) {
	t.Parallel()
	python := pythonRuntime(t)
	layer, code := t.TempDir(), t.TempDir()
	if err := os.CopyFS(filepath.Join(layer, "python"), os.DirFS(clientDir(t, "python"))); err != nil {
		t.Fatal(err)
	}
	harness.WriteFile(t, filepath.Join(layer, "python", "shared.py"), []byte("value = 7\n"), 0o644)
	harness.WriteFile(t, filepath.Join(code, "fn.py"), []byte("import shared, sys\ndef handler(event, context):\n    return [shared.value, sys.flags.isolated]\n"), 0o644)
	for name, tt := range map[string]struct{ script, want string }{
		"isolated": {`exec "$1" -I "$2"`, "[7, 1]"},
		"replaced": {`PYTHONPATH=/opt/other exec "$@"`, "[7, 0]"},
		"removed":  {`unset PYTHONPATH; exec "$@"`, "[7, 0]"},
	} {
		t.Run(name, func(t *testing.T) {
			wrap := t.TempDir()
			harness.WriteFile(t, filepath.Join(wrap, "wrap"), []byte("#!/bin/sh\n"+tt.script+"\n"), 0o755)
			d := harness.Start(t, "--memory=256", "--timeout=30s", "--runtime="+python, "--handler=fn.handler", "--layer", layer, "--layer", wrap,
				"--env=AWS_LAMBDA_EXEC_WRAPPER=/opt/wrap", code)
			if a := d.Invoke(map[string]string{}); strings.TrimSpace(string(a.Body)) != tt.want {
				t.Errorf("answer %s; want %s", a.Body, tt.want)
			}
		})
	}
}

// RIC-05, RT-72: the hooks of org.crac run before the snapshot and after the restore.
func TestClientJavaHooks(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, "--memory=512", "--timeout=60s", "--runtime="+javaRuntime(t), "--handler=Hooks", "--snap-start", clientDir(t, "java"))
	a := d.Invoke(map[string]string{})
	if strings.TrimSpace(string(a.Body)) != `["before","after"]` {
		t.Errorf("hooks that ran: %s; want before and after", a.Body)
	}
}

// ENV-26: for Java the handler is the last argument, as on Lambda, where wrappers replace it.
func TestClientWrapperOfJava(t *testing.T) {
	t.Parallel()
	layer := t.TempDir()
	harness.WriteFile(t, filepath.Join(layer, "wrap"), []byte("#!/bin/bash\nexec \"${@//$_HANDLER/Hooks}\"\n"), 0o755)
	d := harness.Start(t, "--memory=512", "--timeout=60s", "--runtime="+javaRuntime(t), "--handler=Handler", "--layer", layer,
		"--env=AWS_LAMBDA_EXEC_WRAPPER=/opt/wrap", "--snap-start", clientDir(t, "java"))
	if a := d.Invoke(map[string]string{}); strings.TrimSpace(string(a.Body)) != `["before","after"]` {
		t.Errorf("answer %s; want that of Hooks", a.Body)
	}
}

// A function of nodejs20.x cannot require an ES module, unless NODE_OPTIONS says so, as on
// Lambda.
func TestClientNodeRequireModule(t *testing.T) {
	t.Parallel()
	layer := t.TempDir()
	harness.WriteFile(t, filepath.Join(layer, "module.mjs"), []byte("export const value = 1;\n"), 0o644)
	harness.WriteFile(t, filepath.Join(layer, "require.cjs"), []byte("exports.handler = async () => require('./module.mjs').value;\n"), 0o644)
	run := func(env ...string) harness.Answer {
		flags := append([]string{"--memory=512", "--timeout=30s", "--runtime=nodejs20.x", "--handler=/opt/require.handler", "--layer", layer}, env...)
		return harness.Start(t, append(flags, clientDir(t, "node3"))...).Invoke(map[string]string{})
	}
	if a := run(); !strings.Contains(string(a.Body), "ERR_REQUIRE_ESM") && !strings.Contains(string(a.Body), "require() of ES Module") {
		t.Errorf("answer %s; want an error of require", a.Body)
	}
	if a := run("--env=NODE_OPTIONS=--experimental-require-module"); string(a.Body) != "1" {
		t.Errorf("answer %s; want 1", a.Body)
	}
}

// ES modules of the function and of /tmp find packages in layers; those for the runtime's version
// come first.
func TestClientNodeModulesOfLayers(t *testing.T) {
	t.Parallel()
	layer := writeFiles(t, map[string]string{
		"nodejs/node20/node_modules/both/main.mjs": "export default 'both of node20';\n",
		"nodejs/node_modules/both/main.mjs":        "export default 'both';\n",
		"nodejs/node_modules/one/package.json":     `{"exports": "./main.mjs"}`,
		"nodejs/node_modules/one/main.mjs":         "export {default} from 'deep/main.mjs';\n",
		"nodejs/node_modules/deep/main.mjs":        "export default 'one';\n",
	})
	code := writeFiles(t, map[string]string{"app.mjs": `import { writeFile } from 'node:fs/promises';
import both from 'both/main.mjs';
import one from 'one';
await writeFile('/tmp/late.mjs', "export {default} from 'one';\n");
export const handler = async () => [both, one, (await import('/tmp/late.mjs')).default];
`})
	d := harness.Start(t, "--memory=512", "--timeout=30s", "--runtime=nodejs20.x", "--handler=app.handler", "--layer", clientDir(t, "node3"), "--layer", layer, code)
	if a := d.Invoke(map[string]string{}); string(a.Body) != `["both of node20","one","one"]` {
		t.Errorf("answer %s", a.Body)
	}
}
