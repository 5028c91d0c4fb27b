// Package suite runs conformance cases against a target: something that provides a
// Lambda environment and an endpoint that invokes the function in it. It knows no
// case, and nothing of any implementation.
package suite

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/sandboxd/sandboxd/conformance/script"
)

// Setup is the function and the environment that a group of cases needs. Cases that
// have the same *Setup share one start. The zero value is a function that only plays
// what events say, without extensions, with the target's defaults.
type Setup struct {
	Name       string
	Timeout    int                        // of the function in seconds; 0 is 3
	Memory     int                        // in MB; 0 is 1769, one CPU
	Env        map[string]string          // customer variables
	Handler    string                     // "" is "app.handler"
	Runtime    [][]script.Step            // what the runtime does before its first next, by start
	Extensions map[string][][]script.Step // external extensions by file name, the same
	Files      map[string]File            // further files, by their path below the folder of both: function/… or layer/…
	NoRuntime  bool                       // leave the bootstrap out
	URL        bool                       // the function has a URL, see T.Front
	Needs      []string                   // features that a target may lack, see Target.Features
	Args       []string                   // further arguments for the command, for targets that take them (placeholder {args})
}

// File is one file of a function or layer.
type File struct {
	Text string
	Mode uint32 // permission bits
}

func (s *Setup) timeout() time.Duration {
	if s.Timeout == 0 {
		return 3 * time.Second
	}
	return time.Duration(s.Timeout) * time.Second
}

// Target starts environments.
type Target interface {
	// Start provides the environment of s and returns when its endpoint answers.
	Start(ctx context.Context, s *Setup) (Instance, error)
	// Features are the optional things that the target has (Setup.Needs).
	Features() []string
}

// Features that a target may or may not have.
const (
	Extensions = "extensions" // the layer is seen as /opt
	Variables  = "variables"  // customer variables can be set
	Arguments  = "arguments"  // it takes the arguments in Setup.Args, those of sandboxd
	URLs       = "urls"       // a function can have a URL (Setup.URL)
)

// Instance is one running environment. Its owner calls Stop.
type Instance interface {
	// URL is that of the endpoint, without a path.
	URL() string
	// Log is everything that the target has printed so far.
	Log() string
	// WaitLog waits until the target has printed a line with text in it; false when
	// that does not happen in time or cannot happen any more.
	WaitLog(text string, limit time.Duration) bool
	// Stop ends the environment in order and waits for it. It may be called twice.
	Stop() error
}

// Fronted is an Instance whose function has a URL.
type Fronted interface {
	// FrontURL is that URL, without a path.
	FrontURL() string
}

// quote makes one word for a shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// Place puts the values of a start into a command for a shell. See [Placeholders].
func Place(command string, v Values) (string, error) {
	var out strings.Builder
	for {
		before, rest, found := strings.Cut(command, "{")
		out.WriteString(before)
		if !found {
			return out.String(), nil
		}
		name, after, closed := strings.Cut(rest, "}")
		if !closed {
			return "", fmt.Errorf("command %q: a brace is not closed", command)
		}
		text, known := v.get(name)
		if !known {
			return "", fmt.Errorf("command: there is no placeholder {%s}; there are:\n%s", name, Placeholders)
		}
		out.WriteString(text)
		command = after
	}
}

// Placeholders says what may stand in the command of an exec target.
const Placeholders = `  {dir}         folder of the function: the environment shows it as /var/task, and runs bootstrap in it
  {layer}       folder of the layer: the environment shows it as /opt, extensions/ in it; it is empty for most cases
  {layer:FLAG}  FLAG and the folder, or nothing when the layer is empty
  {listen}      host:port for the invoke endpoint; {host} and {port} are its parts
  {http:FLAG}   FLAG and host:port at which the function answers HTTP requests, or nothing if it shall not
  {timeout}     of the function, in seconds
  {memory}      of the function, in MB
  {handler}     handler string of the function
  {env:FLAG}    FLAG and K=V for each customer variable; they are in the command's environment too
  {args}        further arguments, those of sandboxd run`

// Values are what placeholders stand for at one start.
type Values struct {
	Dir, Layer, Host, Port, Handler string
	HTTP                            string // host:port; "" without a URL
	LayerUsed                       bool
	TimeoutSeconds, MemoryMB        int
	Env, Args                       []string // K=V
}

func (v Values) get(name string) (string, bool) {
	name, flag, _ := strings.Cut(name, ":")
	switch name {
	case "dir":
		return quote(v.Dir), true
	case "layer":
		if flag == "" {
			return quote(v.Layer), true
		}
		if !v.LayerUsed {
			return "", true
		}
		return flag + " " + quote(v.Layer), true
	case "listen":
		return quote(v.Host + ":" + v.Port), true
	case "host":
		return quote(v.Host), true
	case "port":
		return v.Port, true
	case "http":
		if v.HTTP == "" {
			return "", true
		}
		return flag + " " + quote(v.HTTP), true
	case "timeout":
		return fmt.Sprint(v.TimeoutSeconds), true
	case "memory":
		return fmt.Sprint(v.MemoryMB), true
	case "handler":
		return quote(v.Handler), true
	case "env":
		var words []string
		for _, kv := range v.Env {
			words = append(words, flag+" "+quote(kv))
		}
		return strings.Join(words, " "), true
	case "args":
		var words []string
		for _, a := range v.Args {
			words = append(words, quote(a))
		}
		return strings.Join(words, " "), true
	}
	return "", false
}
