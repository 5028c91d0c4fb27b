package rootfs

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
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
	// version tells the interpreter's version; "" if it cannot be told.
	version func(v *view, prog node) (string, error)
	strict  bool     // another version than the asked one is an error, not a warning
	clients []string // files that start the runtime client, best first; * may stand in the last name
	install string   // command that installs the client
	script  string   // shell: sets up the environment and "$@"; $I and $C are interpreter and client
}

// languages are the runtimes that are not provided.*, by the beginning of the name.
var languages = map[string]*language{
	"nodejs": {
		suffix:       ".x",
		versions:     []string{"18", "20", "22", "24"},
		interpreters: []string{"node", "nodejs"},
		version:      nodeVersion,
		clients: underEach([]string{"/var/task/node_modules", "/opt/nodejs/node$V/node_modules", "/opt/nodejs/node_modules", "/opt/node_modules", "/var/runtime/node_modules"},
			"aws-lambda-ric/bin/index.mjs", "aws-lambda-ric/index.mjs"), // RIC-03, RIC-02
		install: "npm install aws-lambda-ric",
		// The heap follows the function's memory as on Lambda: inside there is no
		// /sys that V8 could read a limit from.
		script: `export NODE_PATH="${NODE_PATH:-/opt/nodejs/node$V/node_modules:/opt/nodejs/node_modules:/opt/node_modules:/var/runtime/node_modules:/var/runtime:/var/task}"
set -- '$I' '$C' "$_HANDLER"
case "${NODE_OPTIONS:-}" in
*max-old-space-size* | *max_old_space_size*) ;;
*)
	interpreter=$1 heap=$((AWS_LAMBDA_FUNCTION_MEMORY_SIZE * 90 / 100))
	shift
	set -- "$interpreter" "--max-old-space-size=$heap" "$@"
	;;
esac
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
		script: `export PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}/var/task:/opt/python/lib/python$V/site-packages:/opt/python:/var/runtime"
set -- '$I' -m awslambdaric "$_HANDLER"
`,
	},
	"java": {
		versions:     []string{"11", "17", "21", "25"},
		interpreters: []string{"java"},
		version:      javaVersion,
		clients: append([]string{"/var/task/com/amazonaws/services/lambda/runtime/api/client/AWSLambda.class"}, // a jar with all in it, unpacked
			underEach([]string{"/var/task/lib", "/opt/java/lib", "/var/runtime/lib"}, "aws-lambda-java-runtime-interface-client-*.jar")...), // RIC-05
		install: "mvn dependency:copy-dependencies -DoutputDirectory=lib, with com.amazonaws:aws-lambda-java-runtime-interface-client in pom.xml",
		// The client itself finds the function's classes in /var/task, /var/task/lib and
		// /opt/java/lib. Heap, compiler and collector follow the function's memory as on
		// Lambda: inside there is no /sys that the JVM could read a limit from, so that it
		// would take the host's memory for its own.
		script: `client='$C'
case "$client" in
*.jar) client="${client%/*}/*" ;;
*) client='/var/task' ;;
esac
set -- -cp "$client" com.amazonaws.services.lambda.runtime.api.client.AWSLambda "$_HANDLER"
memory=$((AWS_LAMBDA_FUNCTION_MEMORY_SIZE * 1024))
case "${JAVA_TOOL_OPTIONS:-}" in *-Xmx* | *MaxHeapSize* | *MaxRAM*) ;; *) set -- "-XX:MaxHeapSize=$((memory * 85 / 100))k" "$@" ;; esac
case "${JAVA_TOOL_OPTIONS:-}" in *ReservedCodeCacheSize*) ;; *) set -- "-XX:ReservedCodeCacheSize=$((memory * 5 / 100))k" "$@" ;; esac
case "${JAVA_TOOL_OPTIONS:-}" in *TieredStopAtLevel*) ;; *) set -- -XX:TieredStopAtLevel=1 "$@" ;; esac
case "${JAVA_TOOL_OPTIONS:-}" in *-XX:+Use*GC*) ;; *) set -- -XX:+UseSerialGC "$@" ;; esac
set -- '$I' "$@"
`,
	},
}

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
	known := []string{"provided", "provided.al2", "provided.al2023"}
	if name == "" || slices.Contains(known, name) {
		return nil, "", nil
	}
	for _, prefix := range []string{"nodejs", "python", "java"} {
		for _, v := range languages[prefix].versions {
			full := prefix + v + languages[prefix].suffix
			if full == name {
				return languages[prefix], v, nil
			}
			known = append(known, full)
		}
	}
	return nil, "", &invalid.Error{Kind: invalid.ErrRuntime, File: "runtime", Entry: name, Reason: "is not known",
		Fix: "known are " + strings.Join(known, ", ")}
}

// findBootstrap looks for the bootstrap of a runtime that the code brings itself,
// in the order of ENV-23.
func findBootstrap(v *view, code pkg) (string, error) {
	for _, dir := range []string{taskDir, optDir, runtimeDir} {
		n, err := v.resolve(dir + "/bootstrap")
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("look for the bootstrap of %s: %w", code.given, err)
		}
		return dir + "/bootstrap", checkProgram(v, code.given, n)
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
func makeBootstrap(v *view, scratch string, code pkg, name, version string, lang *language) (dir string, warnings []string, err error) {
	fill := func(s string) string { return strings.ReplaceAll(s, "$V", version) }
	if _, err := v.resolve("/bin/sh"); err != nil {
		return "", nil, &invalid.Error{Kind: invalid.ErrRuntime, File: "runtime", Entry: name, Reason: "needs /bin/sh, which the base does not have",
			Fix: "give a base with a shell"}
	}
	interpreter, warnings, err := findInterpreter(v, name, version, lang)
	if err != nil {
		return "", nil, err
	}
	client := ""
	var inPackage []string
	for _, c := range lang.clients {
		if client = findFile(v, fill(c)); client != "" {
			break
		}
		if rel, ok := strings.CutPrefix(fill(c), taskDir+"/"); ok {
			inPackage = append(inPackage, rel)
		}
	}
	if client == "" {
		missing := &invalid.Error{Kind: invalid.ErrClient, File: code.given, Entry: name,
			Reason: "the runtime client is neither in the package nor in a layer nor in the base", Fix: "in the package's folder: " + lang.install}
		if folder := nestedFolder(v, inPackage); folder != "" {
			missing.Reason += fmt.Sprintf("; it is in the package's folder %q", invalid.Shorten(folder))
			missing.Fix = fixNested(code, folder)
		}
		return "", nil, missing
	}
	script := "#!/bin/sh\n# Starts the client of " + name + ". Made by sandboxd.\n" + lang.script + bootstrapEnd
	script = strings.NewReplacer("$V", version, "'$I'", shellQuote(interpreter), "'$C'", shellQuote(client)).Replace(script)
	if dir, err = os.MkdirTemp(scratch, "runtime-"); err != nil {
		return "", nil, fmt.Errorf("make bootstrap: %w", err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", nil, fmt.Errorf("make bootstrap: %w", err)
	}
	return dir, warnings, writeFile(filepath.Join(dir, "bootstrap"), script, 0o755)
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
		file := path.Join(path.Dir(pattern), name)
		if ok, _ := path.Match(pattern, file); !ok {
			continue
		}
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
func findInterpreter(v *view, name, version string, lang *language) (found string, warnings []string, err error) {
	other := ""
	for _, interpreter := range lang.interpreters {
		for _, dir := range programDirs {
			candidate := path.Join(dir, strings.ReplaceAll(interpreter, "$V", version))
			prog, err := v.resolve(candidate)
			if err != nil || !prog.mode.IsRegular() || prog.mode.Perm()&0o001 == 0 {
				continue
			}
			has, err := lang.version(v, prog)
			if err != nil {
				return "", nil, fmt.Errorf("version of %s: %w", candidate, err)
			}
			if has == version {
				return candidate, nil, nil
			}
			if lang.strict && has != "" {
				other = fmt.Sprintf("; %s is version %s", candidate, has)
				continue
			}
			if found == "" {
				found = candidate
				warnings = []string{fmt.Sprintf("runtime %s is asked for, %s of the base is version %s", name, candidate, cmp.Or(has, "unknown"))}
			}
		}
	}
	if found != "" {
		return found, warnings, nil
	}
	return "", nil, &invalid.Error{Kind: invalid.ErrRuntime, File: "runtime", Entry: name,
		Reason: "its interpreter is not in the base" + other,
		Fix:    "install it below /usr of the base, give another base, or name the runtime that the base has"}
}

var pythonName = regexp.MustCompile(`^python(3\.[0-9]{1,3})$`)

// pythonVersion reads the version off the name of the program, once links are
// followed.
func pythonVersion(_ *view, prog node) (string, error) {
	if m := pythonName.FindStringSubmatch(path.Base(prog.path)); m != nil {
		return m[1], nil
	}
	return "", nil
}

// nodeVersion finds the major version in the address of Node's source package,
// which every official and Debian build carries.
func nodeVersion(_ *view, prog node) (string, error) {
	f, err := prog.open()
	if err != nil {
		return "", err
	}
	defer f.Close()
	return scanVersion(f, []byte("/download/release/v"))
}

var javaRelease = regexp.MustCompile(`(?m)^JAVA_VERSION="([0-9]{1,4})\b`)

// javaVersion reads the version from the file `release` of the Java installation.
func javaVersion(v *view, prog node) (string, error) {
	release, err := v.resolve(path.Join(path.Dir(path.Dir(prog.path)), "release"))
	if err != nil || !release.mode.IsRegular() {
		return "", nil
	}
	f, err := release.open()
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return "", err
	}
	if m := javaRelease.FindSubmatch(text); m != nil {
		return string(m[1]), nil
	}
	return "", nil
}

// scanVersion gives the digits that follow the first mark in r, "" if there is no
// mark with a digit in its first 512 MiB.
func scanVersion(r io.Reader, mark []byte) (string, error) {
	const chunk, most, digits = 1 << 20, 512 << 20, 4
	r = io.LimitReader(r, most)
	buf := make([]byte, 0, chunk+len(mark)+digits)
	for {
		n, err := io.ReadFull(r, buf[len(buf):len(buf)+chunk])
		buf = buf[:len(buf)+n]
		last := err == io.EOF || err == io.ErrUnexpectedEOF
		if err != nil && !last {
			return "", err
		}
		if i := bytes.Index(buf, mark); i >= 0 && (last || i+len(mark)+digits <= len(buf)) {
			rest := buf[i+len(mark):]
			end := 0
			for end < len(rest) && end < digits && '0' <= rest[end] && rest[end] <= '9' {
				end++
			}
			if end > 0 {
				return string(rest[:end]), nil
			}
		}
		if last {
			return "", nil
		}
		keep := min(len(buf), len(mark)+digits)
		buf = append(buf[:0], buf[len(buf)-keep:]...)
	}
}
