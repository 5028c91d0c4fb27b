package cases

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/sandboxd/sandboxd/conformance/suite"
)

// slowSubscriber subscribes long after another extension is ready.
var slowSubscriber = &suite.Setup{Name: "slow subscriber", Extensions: map[string][][]step{
	"ready": watch(both),
	"slow": starts(steps(registerAs(both), sleep(300), step{Op: "listen", Name: "telemetry", Method: "http", N: sinkPort},
		subscribe("subscribed", telemetryPath, subscription("")), serve(0)))}}

// noWrapper is a bootstrap that executes what is not there, as a language's does with a
// wrapper that is missing.
var noWrapper = &suite.Setup{Name: "missing wrapper", NoRuntime: true, Files: map[string]suite.File{
	"function/bootstrap": {Text: "#!/bin/sh\nexec /opt/no-such-wrapper \"$@\"\n", Mode: 0o755}}}

// innerExit is a runtime with an internal extension that waits.
var innerExit = &suite.Setup{Name: "internal extension posts exit/error", Runtime: starts(steps(
	step{Op: "register", Path: "inner", Data: `{"events":[]}`}, background(identified(get("blocked", extensionBase+"event/next")))))}

// agent begins with the headers by which a runtime tells what it is.
var agent = &suite.Setup{Name: "runtime that tells its release", Runtime: starts(steps(
	get("first", pingPath, "User-Agent", "aws-lambda-mine/1.0 more", "Lambda-Runtime-Features", "a b")))}

// singles are cases of all sections that need a setup or a helper of their own.
var singles = []suite.Case{
	{ID: "RT-11", Setup: agent, Run: func(t *suite.T) {
		suite.Equal(t, "answer", string(t.Invoke("1").Body), "1")
		t.Status(t.Journal().By("runtime"), "first", 200)
	}},
	{ID: "RT-58", Setup: plain, Run: func(t *suite.T) { // one asks and goes away with the event; another gets the same
		first, play := t.Event(true, answer("r", "1"), background(get("asks", nextPath)), wait("asks", 2000), get("again", nextPath), answer("r2", "2"))
		t.Invoke(first)
		suite.Equal(t, "answer", string(t.Invoke(`"event"`).Body), "2")
		j := t.Journal().Of(play)
		suite.Equal(t, "event of the second", t.Status(j, "again", 200).Text, `"event"`)
	}},
	{ID: "EX-33", Setup: innerExit, Run: func(t *suite.T) {
		a, j := t.Play(identified(post("exit/error", extensionBase+"exit/error", "", "Lambda-Extension-Function-Error-Type", "Mine.Exit")))
		t.Status(j, "exit/error", 202)
		suite.Equal(t, "X-Amz-Function-Error", a.Header.Get("X-Amz-Function-Error"), "")
		suite.Equal(t, "starts of the runtime", len(t.Journal().By("runtime").Named("start")), 1)
	}},
	{ID: "FE-23", Setup: refused, Run: func(t *suite.T) {
		j := t.Journal().By("watcher")
		for name, kind := range map[string]string{"no name": "Extension.InvalidExtensionName", "bad JSON": "InvalidRequestFormat", "no identifier": "Extension.MissingExtensionIdentifier"} {
			t.Status(j, name, 403, `"errorType":"`+kind+`"`)
		}
	}},
	{ID: "INV-27", Setup: plain, Run: func(t *suite.T) { // off unless it is asked for
		t.Quiet()
		for i := range 30 {
			t.Quiet()
			suite.Equal(t, fmt.Sprint("status of quick invocation ", i), t.Invoke("1").Status, 200)
		}
	}},
	{ID: "INV-35", Setup: plain, Run: func(t *suite.T) {
		if t.Invoke("1").Header.Get("X-Amz-Executed-Version") != "" {
			t.Unsupported("the endpoint is that of the Invoke API, not of a direct-invoke emulator")
		}
		suite.Equal(t, "End-Of-Response", t.Trailer("1").Get("End-Of-Response"), "Complete")
	}},
	{ID: "LC-04", Setup: plain, Run: func(t *suite.T) { // it never did, and it is served
		suite.Equal(t, "registrations of the runtime", len(t.Journal().By("runtime").Named("register")), 0)
	}},
	{ID: "LC-13", Setup: watched, Run: func(t *suite.T) {
		payload, _ := t.Event(false, print("on stdout\n"), step{Op: "stderr", Data: "on stderr\n"})
		t.Invoke(payload)
		t.WaitLog("on stdout\n")
		t.WaitLog("on stderr\n")
		t.WaitLog("line of a.sh\n")
	}},
	{ID: "LC-14", Setup: slowSubscriber, Run: func(t *suite.T) {
		t.Invoke("1")
		if s := t.One(t.Journal().By("slow"), "subscribed"); s.Status != 200 && s.Status != 202 { // 202: not offered (TL-11)
			t.Errorf("subscription before the extension was ready: status %d %s", s.Status, s.Text)
		}
	}},
	{ID: "LC-42", Setup: subscribers, Run: func(t *suite.T) {
		id, list := delivered(t, "telemetry")
		done, end := find(t, list, "platform.runtimeDone", id), find(t, list, "platform.report", id)
		if done.raw.At > end.raw.At || done.Time > end.Time {
			t.Errorf("platform.runtimeDone (%s) is later than platform.report (%s)", done.Time, end.Time)
		}
		suite.Equal(t, "status", fmt.Sprint(done.fields(t)["status"]), "success")
	}},
	{ID: "LC-49", Setup: posts, Run: func(t *suite.T) {
		t.Restart()
		payload, _ := t.Event(false, sleep(2000))
		t.FunctionError(t.Invoke(payload), "Extension.ExitError", "") // not Extension.Crash of the exit that follows
		suite.Equal(t, "answer of the next generation", string(t.Invoke("1").Body), "1")
	}},
	{ID: "LC-50", Setup: obedient, Run: func(t *suite.T) {
		t.Restart()
		payload, _ := t.Event(true, sleep(60_000))
		t.FunctionError(t.Invoke(payload), "Sandbox.Timedout", "") // its SIGTERM makes the runtime exit
		a := t.Invoke("1")
		suite.Equal(t, "answer after it", string(a.Body), "1")
		t.WaitLog("REPORT RequestId: " + a.ID())
		if strings.Contains(t.Log(), "Runtime.ExitError") {
			t.Errorf("an exit while shutting down counts as an error")
		}
	}},
	{ID: "LC-72", Setup: subscribers, Run: func(t *suite.T) {
		payload, _ := t.Event(true, exit(1))
		id := t.Invoke(payload).ID()
		t.Play(sleep(100))
		for _, e := range t.Journal().Named("logs") { // its listener outlives SHUTDOWN a little
			if strings.Contains(e.Text, `"platform.runtimeDone"`) && strings.Contains(e.Text, id) {
				t.Contains("runtimeDone", e.Text, `"status":"failure"`)
				return
			}
		}
		t.Errorf("no platform.runtimeDone of an invocation that ended in a reset")
	}},
	{ID: "LOG-05", Setup: plain, Run: func(t *suite.T) { // each frame of the actor is two writes
		var list []step
		for i := range 20 {
			list = append(list, frame(frameText, 1_700_000_000_000, fmt.Sprintf("frame %d of 20\n", i)))
		}
		text := framed(t, list...)
		for i := range 20 {
			suite.Equal(t, fmt.Sprintf("events of frame %d", i), strings.Count(text, fmt.Sprintf("frame %d of 20\n", i)), 1)
		}
	}},
	{ID: "LOG-07", Setup: subscribers, Run: func(t *suite.T) {
		payload, play := t.Event(false, frame(frameText, 1_700_000_000_123, "from the past"), sleep(100))
		t.Invoke(payload)
		if e := t.One(t.Journal().Of(play), "frame"); e.Error != "" {
			t.Fatalf("frame: %s", e.Error)
		}
		_, list := delivered(t, "telemetry")
		for _, r := range list {
			if strings.Contains(string(r.Record), "from the past") {
				suite.Equal(t, "time of the event", r.Time, time.UnixMilli(1_700_000_000_123).UTC().Format("2006-01-02T15:04:05.000Z"))
				return
			}
		}
		t.Errorf("the framed message did not come")
	}},
	{ID: "LOG-08", Setup: plain, Run: func(t *suite.T) {
		fd, there := variable(runtimeEnv(t), "_LAMBDA_TELEMETRY_LOG_FD")
		if !there {
			t.Fatalf("there is no _LAMBDA_TELEMETRY_LOG_FD")
		}
		_, j := t.Play(step{Op: "stat", Path: "/proc/self/fd/" + fd})
		suite.Equal(t, "/proc/self/fd/"+fd, t.One(j, "stat").Error, "")
	}},
	{ID: "LOG-43", Setup: plain, Run: func(t *suite.T) { // a frame of the lowest level, TRACE, is not dropped
		t.Contains("tail", framed(t, frame(0xA55A0007, 1_700_000_000_000, "of level TRACE")), "of level TRACE")
	}},
	{ID: "ENV-27", Setup: noWrapper, Run: func(t *suite.T) { t.FunctionError(t.Invoke("1"), "Runtime.ExitError", "") }},
	{ID: "TL-31", Setup: subscribers, Run: func(t *suite.T) {
		const trace = "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1"
		id := t.Invoke("1", "X-Amzn-Trace-Id", trace).ID()
		_, list := delivered(t, "telemetry")
		m, _ := json.Marshal(find(t, list, "platform.start", id).fields(t)["tracing"])
		t.Contains("tracing", string(m), `"type":"X-Amzn-Trace-Id"`)
		t.Contains("tracing", string(m), trace)
	}},
	{ID: "TL-52", Setup: subscribers, Run: func(t *suite.T) {
		id, list := delivered(t, "logs")
		suite.Equal(t, "status of a good invocation", fmt.Sprint(find(t, list, "platform.runtimeDone", id).fields(t)["status"]), "success")
	}},
}
