// Command testextension is the external extension of the end-to-end tests. Its
// behaviour comes from an environment variable that is named after its file (see
// package integration/script), so that one binary plays every part.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/sandboxd/sandboxd/integration/script"
)

// extension is one running test extension.
type extension struct {
	name string
	base string // of the Extensions API
	id   string // given by register
	conf script.Extension
}

func main() {
	log.SetFlags(0)
	name := filepath.Base(os.Args[0])
	log.SetPrefix(name + ": ")
	e := &extension{name: name, base: "http://" + os.Getenv("AWS_LAMBDA_RUNTIME_API") + "/2020-01-01/extension"}
	if text := os.Getenv(script.ExtensionVariable + name); text != "" {
		if err := json.Unmarshal([]byte(text), &e.conf); err != nil {
			log.Fatalf("%s%s: %v", script.ExtensionVariable, name, err)
		}
	}
	if err := posture("/tmp/" + name + ".posture"); err != nil {
		log.Print(err)
	}
	e.note("start")
	if err := e.live(); err != nil {
		log.Fatal(err)
	}
}

// live registers and serves events until the configuration says otherwise.
func (e *extension) live() error {
	time.Sleep(time.Duration(e.conf.RegisterAfterMS) * time.Millisecond)
	if e.conf.ExitBefore == "register" {
		os.Exit(e.conf.ExitStatus)
	}
	e.note("register") // before: the runtime may start before this process hears the answer
	if err := e.register(); err != nil {
		return err
	}
	e.note("registered", "id", e.id)
	if e.conf.Telemetry != nil {
		if err := e.listen(); err != nil {
			return err
		}
		e.subscribe("subscribed")
	}
	if e.conf.InitError != "" {
		if err := e.initError(); err != nil {
			return err
		}
		os.Exit(e.conf.ExitStatus)
	}
	time.Sleep(time.Duration(e.conf.NextAfterMS) * time.Millisecond)
	if e.conf.ExitBefore == "next" {
		os.Exit(e.conf.ExitStatus)
	}
	for invokes := 0; ; {
		e.note("next")
		ev, err := e.next()
		if err != nil {
			return err
		}
		e.note(ev.EventType, "request", ev.RequestID, "deadline", strconv.FormatInt(ev.DeadlineMs, 10), "reason", ev.ShutdownReason)
		if ev.EventType == "SHUTDOWN" {
			for e.conf.IgnoreShutdown {
				e.note("heartbeat")
				time.Sleep(10 * time.Millisecond)
			}
			return nil
		}
		invokes++
		if invokes == 1 && e.conf.Telemetry != nil {
			e.subscribe("late")
		}
		if invokes == e.conf.ExitOnInvoke {
			e.note("exit")
			os.Exit(e.conf.ExitStatus)
		}
		if invokes == 1 && e.conf.Calls != nil {
			if err := e.makeCalls(ev.RequestID); err != nil {
				return err
			}
		}
		time.Sleep(time.Duration(e.conf.InvokeMS) * time.Millisecond)
	}
}

func (e *extension) note(what string, pairs ...string) {
	if err := script.Take(e.name, what, pairs...); err != nil {
		log.Print(err)
	}
}

// event is what next answers.
type event struct {
	EventType      string `json:"eventType"`
	DeadlineMs     int64  `json:"deadlineMs"`
	RequestID      string `json:"requestId"`
	ShutdownReason string `json:"shutdownReason"`
}

// register makes the extension known to the API.
func (e *extension) register() error {
	header, _, err := e.call("POST", "/register", script.Encode(map[string]any{"events": e.conf.Events}), "Lambda-Extension-Name", e.name)
	if err != nil {
		return err
	}
	e.id = header.Get("Lambda-Extension-Identifier")
	return nil
}

// next waits for the next event.
func (e *extension) next() (event, error) {
	var ev event
	_, body, err := e.call("GET", "/event/next", "", "Lambda-Extension-Identifier", e.id)
	if err == nil {
		err = json.Unmarshal(body, &ev)
	}
	return ev, err
}

// initError reports that the extension cannot start.
func (e *extension) initError() error {
	_, _, err := e.call("POST", "/init/error", "", "Lambda-Extension-Identifier", e.id, "Lambda-Extension-Function-Error-Type", e.conf.InitError)
	return err
}

// makeCalls makes the requests of the configuration, and leaves what is answered.
func (e *extension) makeCalls(id string) error {
	var results []script.Result
	for _, c := range e.conf.Calls {
		url := "http://" + os.Getenv("AWS_LAMBDA_RUNTIME_API") + strings.ReplaceAll(c.Path, "{id}", id)
		req, err := http.NewRequest(c.Method, url, strings.NewReader(c.Data))
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			return err
		}
		e.note("answered", "path", c.Path, "status", strconv.Itoa(resp.StatusCode))
		results = append(results, script.Result{Op: c.Op, Status: resp.StatusCode, Text: string(text)})
	}
	file := script.CallLog(e.name)
	if err := os.WriteFile(file+".new", []byte(script.Encode(results)), 0o644); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

// call makes one request with the given header lines and wants a good answer.
func (e *extension) call(method, path, body string, header ...string) (http.Header, []byte, error) {
	req, err := http.NewRequest(method, e.base+path, strings.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode/100 != 2 {
		err = fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, text)
	}
	return resp.Header, text, err
}
