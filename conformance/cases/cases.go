// Package cases holds the cases of the conformance suite, one for each requirement of
// the specification that can be seen over the wire. A file has those of one section.
package cases

import (
	"slices"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/conformance/suite"
)

// All returns every case, in an order that shares environments.
func All() []suite.Case {
	return slices.Concat(transport, next, response, handlerError, initError, states, streaming,
		extensionLaunch, register, extensionEvents, extensionFailure, telemetry,
		initialization, dispatch, endOfInvocation, shutdown,
		invoke, invokeErrors, invokeStream, functionURL,
		environment, launch, frames, platformLines, jsonLines, errorTypes, supervision, singles)
}

const (
	runtimeBase   = "/2018-06-01/runtime/"
	extensionBase = "/2020-01-01/extension/"
	nextPath      = runtimeBase + "invocation/next"
	responsePath  = runtimeBase + "invocation/{id}/response"
	errorPath     = runtimeBase + "invocation/{id}/error"
	initErrorPath = runtimeBase + "init/error"
	pingPath      = "/2018-06-01/ping"
	unknownID     = "00000000-0000-4000-8000-000000000000"
)

// plain is the environment of most cases. Its runtime looks around when it starts.
var plain = &suite.Setup{Name: "plain", Runtime: starts(lookAround)}

// lookAround is what a process can tell of itself before it does anything else.
var lookAround = []step{get("first", pingPath), {Op: "env"}, {Op: "fds"}, {Op: "ids"}, {Op: "cwd"}, {Op: "rlimit"}}

type step = script.Step

// starts makes the lists of the starts of an actor.
func starts(lists ...[]step) [][]step { return lists }

// steps is a list of steps.
func steps(list ...step) []step { return list }

func headers(pairs []string) map[string]string {
	m := make(map[string]string)
	for i := 0; i+1 < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	return m
}

// get is a GET request whose entry has a name.
func get(name, path string, header ...string) step {
	return step{Op: "call", Name: name, Method: "GET", Path: path, Headers: headers(header)}
}

// post is a POST request whose entry has a name.
func post(name, path, data string, header ...string) step {
	return step{Op: "call", Name: name, Method: "POST", Path: path, Data: data, Headers: headers(header)}
}

// put is a PUT request whose entry has a name.
func put(name, path, data string, header ...string) step {
	return step{Op: "call", Name: name, Method: "PUT", Path: path, Data: data, Headers: headers(header)}
}

// answer responds to the current invocation.
func answer(name, data string, header ...string) step {
	return post(name, responsePath, data, header...)
}

// fault posts an error of the current invocation.
func fault(name, data string, header ...string) step { return post(name, errorPath, data, header...) }

func background(s step) step {
	s.Background = true
	return s
}

func sleep(ms int64) step               { return step{Op: "sleep", MS: ms} }
func exit(status int64) step            { return step{Op: "exit", N: status} }
func signal(n int64) step               { return step{Op: "signal", N: n} }
func wait(name string, ms int64) step   { return step{Op: "wait", Name: name, MS: ms} }
func cancel(name string) step           { return step{Op: "cancel", Name: name} }
func print(text string) step            { return step{Op: "print", Data: text} }
func registerAs(events string) step     { return step{Op: "register", Data: `{"events":[` + events + `]}`} }
func serve(n int64, each ...step) step  { return step{Op: "serve", N: n, Steps: each} }
func identified(s step) step            { s.Headers["Lambda-Extension-Identifier"] = "{ext}"; return s }
func watch(events string) [][]step      { return starts(steps(registerAs(events), serve(0))) }
func onShutdown(s step, l ...step) step { s.Last = l; return s }

const both = `"INVOKE","SHUTDOWN"`
