package rootfs

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

// Where things are inside (ENV-05, ENV-23, ENV-29).
const (
	taskDir    = "/var/task"
	optDir     = "/opt"
	runtimeDir = "/var/runtime"
)

// programDirs is where interpreters are looked for: the PATH of ENV-10.
var programDirs = []string{"/var/lang/bin", "/usr/local/bin", "/usr/bin", "/bin", "/opt/bin"}

// language is a runtime whose client runs on an interpreter of the base. In paths
// and scripts $V stands for the version, such as 20 or 3.11.
type language struct {
	suffix       string   // of the runtime's name, after the version
	versions     []string // that Lambda has or had
	interpreters []string // names, best first
	// version tells the interpreter's version, whose beginning is compared with the
	// runtime's; "" if it cannot be told.
	version func(v *view, prog node) (string, error)
	strict  bool     // another version than the asked one is an error, not a warning
	clients []string // files that start the runtime client, best first; * may stand in the last name
	install string   // command that installs the client into the package
	// launcher is a file in /var/runtime that starts the client $C with the handler of
	// _HANDLER; name "" if the client's main class is named on the command line. Its
	// path is the last argument, as on Lambda: wrappers (ENV-26) insert options before the
	// last argument, and change _HANDLER.
	launcher file
	// script is shell. It calls option for each option that the operator's own ones do not
	// replace, and sets "$@" to the command. $I and $C are interpreter and client.
	script string
	// warn returns what the operator should know of the client, or ""; nil is never.
	warn func(name, version, client string) string
	// options returns what stands for $O in the script, for an interpreter of version has;
	// nil is nothing.
	options func(version, has string) string
}

// file is the name and the content of a file that is made.
type file struct{ name, content string }

// languages are the runtimes that are not provided.*, by the beginning of the name.
var languages = map[string]*language{
	"nodejs": {
		suffix:       ".x",
		versions:     []string{"18", "20", "22", "24"},
		interpreters: []string{"node", "nodejs"},
		version:      nodeVersion,
		clients: underEach([]string{"/var/task/node_modules", "/opt/nodejs/node$V/node_modules", "/opt/nodejs/node_modules", "/opt/node_modules", "/var/runtime/node_modules"},
			"aws-lambda-ric/bin/index.mjs", "aws-lambda-ric/index.mjs"), // RIC-03, RIC-02
		install: "npm install aws-lambda-ric@3 (for nodejs24.x aws-lambda-ric@4)",
		// Version 3 of the client wants the handler as an argument, version 4 reads _HANDLER.
		launcher: file{"index.mjs", `// Starts the runtime client. Made by sandboxd.
process.argv[2] = process.env._HANDLER;
await import('$C');
`},
		warn:    nodeClientWarning,
		options: nodeOptions,
		// The options of Lambda's bootstrap. The heap follows the function's memory as there:
		// a tenth is for new objects.
		script: `export NODE_PATH="${NODE_PATH:-/opt/nodejs/node$V/node_modules:/opt/nodejs/node_modules:/var/runtime/node_modules:/var/runtime:/var/task}"
own="${NODE_OPTIONS:-}"
new=$((AWS_LAMBDA_FUNCTION_MEMORY_SIZE / 10))
option expose[-_]gc --expose-gc
option max-http-header-size "--max-http-header-size 81920"
option max[-_]semi[-_]space[-_]size "--max-semi-space-size=$((new / 2))"
option max[-_]old[-_]space[-_]size "--max-old-space-size=$((AWS_LAMBDA_FUNCTION_MEMORY_SIZE - new))"
$Oset -- '$I' $options /var/runtime/index.mjs
`,
	},
	"python": {
		versions:     []string{"3.9", "3.10", "3.11", "3.12", "3.13", "3.14"},
		interpreters: []string{"python$V", "python3"},
		version:      pythonVersion,
		strict:       true,
		clients: underEach([]string{"/var/task", "/opt/python/lib/python$V/site-packages", "/opt/python", "/var/runtime"},
			"awslambdaric/__main__.py"), // RIC-04
		install: "pip install awslambdaric -t .",
		// The function's folder comes first, not that of this file. A wrapper may have changed
		// PYTHONPATH, or have Python ignore it (-I, -E); Lambda's Python finds its client then too.
		launcher: file{"bootstrap.py", `# Starts the runtime client. Made by sandboxd.
import os
import runpy
import sys

if sys.path[0] == "/var/runtime":
    del sys.path[0]
sys.path.insert(0, "/var/task")
for folder in ("/opt/python/lib/python$V/site-packages", "/opt/python", "/var/runtime"):
    if folder not in sys.path:
        sys.path.append(folder)
sys.argv[:] = ["awslambdaric", os.environ["_HANDLER"]]
runpy.run_module("awslambdaric", run_name="__main__", alter_sys=True)
`},
		script: `export PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}/var/task:/opt/python/lib/python$V/site-packages:/opt/python:/var/runtime"
set -- '$I' /var/runtime/bootstrap.py
`,
	},
	"java": {
		versions:     []string{"11", "17", "21", "25"},
		interpreters: []string{"java"},
		version:      javaVersion,
		clients: append([]string{"/var/task/com/amazonaws/services/lambda/runtime/api/client/AWSLambda.class"}, // a jar with all in it, unpacked
			underEach([]string{"/var/task/lib", "/opt/java/lib", "/var/runtime/lib"}, "aws-lambda-java-runtime-interface-client-*.jar")...), // RIC-05
		install: "mvn dependency:copy-dependencies -DoutputDirectory=lib, with com.amazonaws:aws-lambda-java-runtime-interface-client in pom.xml",
		options: javaOptions,
		// The client itself finds the function's classes in /var/task, /var/task/lib and
		// /opt/java/lib. The options are those of Lambda's command line. The heap follows the
		// function's memory.
		script: `own="${JAVA_TOOL_OPTIONS:-} ${JDK_JAVA_OPTIONS:-}"
client='$C'
case "$client" in
*.jar) client="${client%/*}/*" ;;
*) client='/var/task' ;;
esac
memory=$((AWS_LAMBDA_FUNCTION_MEMORY_SIZE * 1024))
heap="-XX:MaxHeapSize=$((memory * 85 / 100))k"
case "$own" in *MaxHeapSize* | *MaxRAM*) ;; *) option -Xmx "$heap" ;; esac
option -XX:+Use*GC -XX:+UseSerialGC
$Ooption java.base/java.io= --add-opens=java.base/java.io=ALL-UNNAMED
option -Dorg.crac.Core.Compat= -Dorg.crac.Core.Compat=com.amazonaws.services.lambda.crac
option -Djava.net.preferIPv4Stack= -Djava.net.preferIPv4Stack=true
set -- '$I' $options -classpath "$client" com.amazonaws.services.lambda.runtime.api.client.AWSLambda "$_HANDLER"
`,
	},
	"ruby": {
		versions:     []string{"3.1", "3.2", "3.3", "3.4"},
		interpreters: []string{"ruby$V", "ruby"},
		version:      rubyVersion,
		strict:       true,
		clients: append(underEach([]string{"/var/task/vendor/bundle/ruby/$V.0", "/opt/ruby/gems/$V.0", "/var/runtime/gems"},
			"specifications/aws_lambda_ric-*.gemspec"), "/var/task/aws_lambda_ric.rb", "/opt/ruby/lib/aws_lambda_ric.rb"), // RIC-07
		install: "bundle config set --local path vendor/bundle && bundle add aws_lambda_ric",
		// Not the client's own program, which wants a Gemfile.
		launcher: file{"index.rb", `# Starts the runtime client. Made by sandboxd.
require 'aws_lambda_ric'
AwsLambdaRIC::Bootstrap.new.start
`},
		script: `export GEM_PATH="${GEM_PATH:-/var/task/vendor/bundle/ruby/$V.0:/opt/ruby/gems/$V.0:/var/runtime/gems}"
export RUBYLIB="${RUBYLIB:-/var/task:/var/runtime/lib:/opt/ruby/lib}"
set -- '$I' /var/runtime/index.rb
`,
	},
}

// bootstrapStart defines option of language.script.
const bootstrapStart = `# option PATTERN OPTION: passes OPTION, unless one of $own has PATTERN.
options=
option() { case "$own" in *$1*) ;; *) options="$options $2" ;; esac; }
`

// bootstrapEnd honours the wrapper of ENV-26.
const bootstrapEnd = `if [ -n "${AWS_LAMBDA_EXEC_WRAPPER:-}" ]; then
	exec "$AWS_LAMBDA_EXEC_WRAPPER" "$@"
fi
exec "$@"
`

// underEach joins each folder with each file, folders in order.
func underEach(dirs []string, files ...string) (paths []string) {
	for _, dir := range dirs {
		for _, file := range files {
			paths = append(paths, dir+"/"+file)
		}
	}
	return paths
}

// findRuntime gives the language and version of a runtime's name; lang is nil for
// runtimes whose code brings its own bootstrap.
func findRuntime(name string) (lang *language, version string, err error) {
	if name == "" || slices.Contains(providedRuntimes, name) {
		return nil, "", nil
	}
	for _, prefix := range languageNames {
		for _, v := range languages[prefix].versions {
			if prefix+v+languages[prefix].suffix == name {
				return languages[prefix], v, nil
			}
		}
	}
	return nil, "", &invalid.Error{Kind: invalid.ErrRuntime, File: "runtime", Entry: name, Reason: "is not known",
		Fix: "known are " + strings.Join(RuntimeNames(), ", ")}
}

// providedRuntimes are the names of runtimes whose code brings its own bootstrap, and
// languageNames the keys of languages in the order of messages.
var (
	providedRuntimes = []string{"provided", "provided.al2", "provided.al2023"}
	languageNames    = []string{"nodejs", "python", "java", "ruby"}
)

// RuntimeNames returns the names of all runtimes that are known.
func RuntimeNames() []string {
	names := slices.Clone(providedRuntimes)
	for _, prefix := range languageNames {
		for _, v := range languages[prefix].versions {
			names = append(names, prefix+v+languages[prefix].suffix)
		}
	}
	return names
}

// bootstrapDirs are the folders that may have the bootstrap of a runtime that the code brings
// itself, in the order of ENV-23.
var bootstrapDirs = []string{taskDir, optDir, runtimeDir}

// findBootstrap looks for the bootstrap of a runtime that the code brings itself,
// in the order of ENV-23.
func findBootstrap(v *view, code pkg) (string, error) {
	for _, dir := range bootstrapDirs {
		n, err := v.resolve(dir + "/bootstrap")
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("look for the bootstrap of %s: %w", code.given, err)
		}
		return dir + "/bootstrap", checkProgram(v, code.given, dir+"/bootstrap", n)
	}
	missing := &invalid.Error{Kind: invalid.ErrNoBootstrap, File: code.given, Entry: taskDir + "/bootstrap",
		Reason: "does not exist, nor do /opt/bootstrap and /var/runtime/bootstrap",
		Fix:    "put an executable file named bootstrap at the top of the package, or name a runtime such as nodejs20.x, python3.11 or java17"}
	if folder := nestedFolder(v, []string{"bootstrap"}); folder != "" {
		missing.Reason += fmt.Sprintf("; there is one at %q", invalid.Shorten(folder+"/bootstrap"))
		missing.Fix = fixNested(code, folder)
	}
	return "", missing
}

// makeBootstrap makes a folder below scratch with the bootstrap of a language,
// from what the view has: interpreter, client and shell.
func makeBootstrap(v *view, scratch string, code pkg, name, version, handler string, lang *language) (dir string, warnings []string, err error) {
	if err := needShell(v, name); err != nil {
		return "", nil, err
	}
	interpreter, has, warnings, err := findInterpreter(v, name, version, lang)
	if err != nil {
		return "", nil, err
	}
	client, inPackage := lang.findClient(v, version)
	if client == "" {
		missing := &invalid.Error{Kind: invalid.ErrClient, File: code.given, Entry: name,
			Reason: "the runtime client is neither in the package nor in a layer nor in the base",
			Fix:    fmt.Sprintf("'sudo sandboxd layer %[1]s' makes a layer with it: add --layer %[1]s-layer.zip; or, in the package's folder: %[2]s", name, lang.install)}
		if folder := nestedFolder(v, inPackage); folder != "" {
			missing.Reason += fmt.Sprintf("; it is in the package's folder %q", invalid.Shorten(folder))
			missing.Fix = fixNested(code, folder)
		} else if folder := nestedHandler(v, name, handler); folder != "" {
			missing.Reason += fmt.Sprintf("; the file of handler %q is not at the top of the package either, but in its folder %q", invalid.Shorten(handler), invalid.Shorten(folder))
			missing.Fix = fixNested(code, folder) + "; " + missing.Fix
		}
		return "", nil, missing
	}
	if lang.warn != nil {
		if warning := lang.warn(name, version, client); warning != "" {
			warnings = append(warnings, warning)
		}
	}
	dir, err = lang.write(scratch, name, version, interpreter, has, client)
	return dir, warnings, err
}

// needShell returns an error if the view has no shell for the bootstrap of the runtime name.
func needShell(v *view, name string) error {
	if _, err := v.resolve("/bin/sh"); err != nil {
		return &invalid.Error{Kind: invalid.ErrRuntime, File: "runtime", Entry: name, Reason: "needs /bin/sh, which the base does not have",
			Fix: "give a base with a shell"}
	}
	return nil
}

// findClient returns the path of the runtime client, "" if there is none, and the paths below
// /var/task that it could have there.
func (lang *language) findClient(v *view, version string) (client string, inPackage []string) {
	for _, c := range lang.clients {
		c = strings.ReplaceAll(c, "$V", version)
		if client = findFile(v, c); client != "" {
			break
		}
		if rel, ok := strings.CutPrefix(c, taskDir+"/"); ok {
			inPackage = append(inPackage, rel)
		}
	}
	return client, inPackage
}

// write makes a folder below scratch with the bootstrap of the runtime name. has is the
// version of the interpreter.
func (lang *language) write(scratch, name, version, interpreter, has, client string) (dir string, err error) {
	options := ""
	if lang.options != nil {
		options = lang.options(version, has)
	}
	script := "#!/bin/sh\n# Starts the client of " + name + ". Made by sandboxd.\n" + bootstrapStart + lang.script + bootstrapEnd
	filler := strings.NewReplacer("$V", version, "$O", options, "'$I'", shellQuote(interpreter), "'$C'", shellQuote(client))
	if dir, err = os.MkdirTemp(scratch, "runtime-"); err != nil {
		return "", fmt.Errorf("make bootstrap: %w", err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", fmt.Errorf("make bootstrap: %w", err)
	}
	if lang.launcher.name != "" {
		if err := writeFile(filepath.Join(dir, lang.launcher.name), filler.Replace(lang.launcher.content), 0o644); err != nil {
			return "", err
		}
	}
	return dir, writeFile(filepath.Join(dir, "bootstrap"), filler.Replace(script), 0o755)
}

// findFile gives the regular file of that name, whose last part may be a pattern of
// path.Match; "" if there is none.
func findFile(v *view, pattern string) string {
	names := []string{path.Base(pattern)}
	if strings.Contains(pattern, "*") {
		dir, err := v.resolve(path.Dir(pattern))
		if err != nil || !dir.mode.IsDir() {
			return ""
		}
		if names, err = v.list(dir); err != nil {
			return ""
		}
	}
	for _, name := range names {
		if ok, _ := path.Match(path.Base(pattern), name); !ok && name != path.Base(pattern) {
			continue
		}
		file := path.Join(path.Dir(pattern), name)
		if n, err := v.resolve(file); err == nil && n.mode.IsRegular() {
			return file
		}
	}
	return ""
}

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// findInterpreter finds the language's interpreter in the view, one of the version
// asked for wherever it is, and another only if there is none. Versions are read
// from files: the daemon runs nothing of a base.
func findInterpreter(v *view, name, version string, lang *language) (found, has string, warnings []string, err error) {
	other := ""
	for _, interpreter := range lang.interpreters {
		for _, dir := range programDirs {
			candidate := path.Join(dir, strings.ReplaceAll(interpreter, "$V", version))
			prog, err := v.resolve(candidate)
			if err != nil || !prog.mode.IsRegular() || prog.mode.Perm()&0o001 == 0 {
				continue
			}
			its, err := lang.version(v, prog)
			if err != nil {
				return "", "", nil, fmt.Errorf("version of %s: %w", candidate, err)
			}
			if its == version || strings.HasPrefix(its, version+".") {
				return candidate, its, nil, nil
			}
			if lang.strict && its != "" {
				other = fmt.Sprintf("; %s is version %s", candidate, its)
				continue
			}
			if found == "" {
				found, has = candidate, its
				warnings = []string{fmt.Sprintf("runtime %s is asked for, %s of the base is version %s", name, candidate, cmp.Or(its, "unknown"))}
			}
		}
	}
	if found != "" {
		return found, has, warnings, nil
	}
	return "", "", nil, &invalid.Error{Kind: invalid.ErrRuntime, File: "runtime", Entry: name,
		Reason: "its interpreter is not in the base" + other,
		Fix:    "install it below /usr of the base, give another base, or name the runtime that the base has"}
}
