package cases

import (
	"encoding/json"
	"fmt"
	"regexp"
	"time"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/conformance/suite"
)

var uuid = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)

// extension makes setups with one extension "watcher" of the given steps.
func extension(name string, list ...step) *suite.Setup {
	return &suite.Setup{Name: name, Extensions: map[string][][]step{"watcher": starts(list)}, Runtime: starts(lookAround)}
}

var (
	// watched has two extensions that take every event, one for SHUTDOWN only and one for
	// none, and a runtime that has noted what it sees.
	watched = &suite.Setup{Name: "extensions", Runtime: starts(lookAround), Env: map[string]string{"MINE": "$HOME"}, Extensions: map[string][][]step{
		"a.sh":   starts(append(append([]step{}, lookAround...), registerAs(both), step{Op: "print", Name: "printed", Data: "line of a.sh\n"}, serve(0))),
		"b":      watch(both),
		"ending": watch(`"SHUTDOWN"`),
		"idle":   watch(""),
	}}
	// refused is an extension that tries what it may not before it serves.
	refused = extension("refused calls of an extension",
		post("no identifier", extensionBase+"init/error", "", "Lambda-Extension-Function-Error-Type", "E"),
		get("bad identifier", extensionBase+"event/next", "Lambda-Extension-Identifier", "x"),
		get("unknown identifier", extensionBase+"event/next", "Lambda-Extension-Identifier", unknownID),
		post("bad JSON", extensionBase+"register", `{`, "Lambda-Extension-Name", "watcher"),
		post("bad event", extensionBase+"register", `{"events":["BOGUS"]}`, "Lambda-Extension-Name", "watcher"),
		post("keys", extensionBase+"register", `{"events":[],"configurationKeys":["a"]}`, "Lambda-Extension-Name", "watcher"),
		post("no name", extensionBase+"register", `{"events":[]}`),
		step{Op: "register", Headers: map[string]string{"Lambda-Extension-Accept-Feature": "other , accountId"}, Data: `{"events":["INVOKE","SHUTDOWN"]}`},
		post("twice", extensionBase+"register", `{"events":[]}`, "Lambda-Extension-Name", "watcher"),
		identified(post("no type", extensionBase+"init/error", "")),
		serve(1),
		identified(post("Running init/error", extensionBase+"init/error", "", "Lambda-Extension-Function-Error-Type", "E")),
		serve(0))
	// internal is a runtime that registers internal extensions.
	internal = &suite.Setup{Name: "internal extensions", Runtime: starts(append([]step{
		post("shutdown", extensionBase+"register", `{"events":["SHUTDOWN"]}`, "Lambda-Extension-Name", "bad"),
		{Op: "register", Name: "null", Path: "inner", Data: `{"events":null}`},
		post("again", extensionBase+"register", `{"events":[]}`, "Lambda-Extension-Name", "inner"),
		background(identified(get("blocked", extensionBase+"event/next"))),
	}, rest()...))}
)

// rest registers internal extensions until one is too many; none of them but the first
// would be ready, so each gets its event/next.
func rest() []step {
	var list []step
	for i := range 10 {
		list = append(list, step{Op: "register", Name: fmt.Sprintf("more %d", i), Path: fmt.Sprintf("more%d", i), Data: `{}`})
		if i < 9 {
			name := fmt.Sprintf("blocked %d", i)
			list = append(list, background(identified(get(name, extensionBase+"event/next"))), wait(name, 20))
		}
	}
	return list
}

// launchFails wants an invocation to fail with Extension.LaunchError before the runtime runs.
func launchFails(t *suite.T) {
	a := t.Invoke("1")
	t.FunctionError(a, "Extension.LaunchError", "")
}

var (
	notExecutable = &suite.Setup{Name: "an extension that is not executable", Needs: []string{suite.Extensions}, Files: map[string]suite.File{
		"layer/extensions/broken": {Text: "#!/bin/sh\n", Mode: 0o644}}}
	eleven = &suite.Setup{Name: "eleven extensions", Extensions: many(11)}
	ten    = &suite.Setup{Name: "ten extensions", Extensions: many(10)}
	off    = &suite.Setup{Name: "extensions disabled", Extensions: map[string][][]step{"watcher": watch(both)},
		Files: map[string]suite.File{"layer/disable-extensions-jwigqn8j": {Mode: 0o644}}}
)

func many(n int) map[string][][]step {
	m := make(map[string][][]step)
	for i := range n {
		m[fmt.Sprintf("ext%02d", i)] = watch(both)
	}
	return m
}

// extensionLaunch is section 2.1.
var extensionLaunch = []suite.Case{
	{ID: "EX-01", Setup: watched, Run: func(t *suite.T) {
		j := t.Journal()
		runtime := t.One(j.By("runtime"), "start")
		for _, who := range []string{"a.sh", "b", "ending", "idle"} {
			if e := t.One(j.By(who), "start"); e.At > runtime.At {
				t.Errorf("extension %s started after the runtime", who)
			}
		}
	}},
	{ID: "EX-02", Setup: watched, Run: func(t *suite.T) { t.Status(t.Journal().By("a.sh"), "register", 200) }},
	{ID: "EX-03", Setup: notExecutable, Run: func(t *suite.T) {
		t.FunctionError(t.Invoke("1"), "Extension.LaunchError", "RequestId: <id> Error: fork/exec /opt/extensions/broken: permission denied")
	}},
	{ID: "EX-04", Setup: eleven, Run: launchFails},
	{ID: "EX-05", Setup: off, Run: func(t *suite.T) {
		_, j := t.Play(post("register", extensionBase+"register", "{}", "Lambda-Extension-Name", "x"), get("next", extensionBase+"event/next"),
			put("telemetry", "/2022-07-01/telemetry", "{}"), put("logs", "/2020-08-15/logs", "{}"))
		for _, name := range []string{"register", "telemetry", "logs"} {
			suite.Equal(t, "body of "+name, t.Status(j, name, 404).Text, "")
		}
		suite.Equal(t, "entries of the extension", len(t.Journal().By("watcher")), 0)
	}},
	{ID: "EX-06", Setup: watched, Run: func(t *suite.T) {
		t.Journal()
		t.WaitLog("line of a.sh")
	}},
}

// register is section 2.2.
var register = []suite.Case{
	{ID: "EX-07", Setup: internal, Run: func(t *suite.T) {
		j := t.Journal().By("runtime")
		t.Status(j, "null", 200)
		t.Status(j, "more 0", 200)
	}},
	{ID: "EX-08", Setup: watched, Run: func(t *suite.T) {
		e := t.Status(t.Journal().By("b"), "register", 200)
		if id := e.Headers["Lambda-Extension-Identifier"]; !uuid.MatchString(id) {
			t.Errorf("identifier %q is no UUID", id)
		}
		var body map[string]string
		if err := json.Unmarshal([]byte(e.Text), &body); err != nil {
			t.Fatalf("body %q: %v", e.Text, err)
		}
		env := runtimeEnv(t)
		for key, name := range map[string]string{"functionName": "AWS_LAMBDA_FUNCTION_NAME", "functionVersion": "AWS_LAMBDA_FUNCTION_VERSION", "handler": "_HANDLER"} {
			want, _ := variable(env, name)
			suite.Equal(t, key, body[key], want)
		}
	}},
	{ID: "EX-09", Setup: refused, Run: func(t *suite.T) {
		e := t.Status(t.Journal().By("watcher"), "register", 200)
		var body struct{ AccountID *string }
		if err := json.Unmarshal([]byte(e.Text), &body); err != nil {
			t.Fatalf("body %q: %v", e.Text, err)
		}
		if ok, _ := regexp.MatchString(`^\d{12}$`, value(body.AccountID)); body.AccountID != nil && !ok {
			t.Errorf("accountId %q", *body.AccountID)
		}
	}},
	{ID: "EX-10", Setup: internal, Run: func(t *suite.T) { t.Status(t.Journal().By("runtime"), "null", 200) }},
	{ID: "EX-11", Setup: internal, Run: func(t *suite.T) {
		t.Status(t.Journal().By("runtime"), "shutdown", 403, "Extension.InvalidEventType")
	}},
	{ID: "EX-12", Setup: refused, Run: func(t *suite.T) {
		j := t.Journal().By("watcher")
		t.Status(j, "no name", 403, "Extension.InvalidExtensionName", "Empty extension name")
		t.Status(j, "bad JSON", 403, "InvalidRequestFormat")
		t.Status(j, "keys", 403, "InvalidRequestFormat")
		t.Status(j, "bad event", 403, "Extension.InvalidEventType")
	}},
	{ID: "EX-13", Setup: refused, Run: func(t *suite.T) {
		t.Status(t.Journal().By("watcher"), "twice", 403, "Extension.InvalidExtensionState")
	}},
	{ID: "EX-14", Setup: plain, Run: func(t *suite.T) {
		_, j := t.Play(post("late", extensionBase+"register", "{}", "Lambda-Extension-Name", "late"))
		t.Status(j, "late", 403, "Extension.RegistrationClosed", "Extension registration closed already")
	}},
	{ID: "EX-15", Setup: internal, Run: func(t *suite.T) {
		j := t.Journal().By("runtime")
		t.Status(j, "again", 403, "Extension.InvalidExtensionState", "Extension with this name already registered")
		t.Status(j, "more 8", 200)
		t.Status(j, "more 9", 403, "Extension.TooManyExtensions", "Extension limit (10) reached")
	}},
}

func value(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// invokes are the INVOKE events of an extension for one request.
func invokes(t *suite.T, j script.Entries, who, id string) []script.ExtensionEvent {
	var list []script.ExtensionEvent
	for _, e := range j.By(who).Named("INVOKE") {
		ev, err := e.Event()
		if err != nil {
			t.Errorf("%v", err)
		}
		if ev.RequestID == id {
			list = append(list, ev)
		}
	}
	return list
}

// extensionEvents is sections 2.3 and 2.4.
var extensionEvents = []suite.Case{
	{ID: "EX-16", Setup: internal, Run: func(t *suite.T) {
		t.Restart()
		suite.Equal(t, "answer", string(t.Invoke("1").Body), "1")
		suite.Equal(t, "blocked calls that ended", len(t.Journal().Named("blocked")), 0)
	}},
	{ID: "EX-17", Setup: refused, Run: func(t *suite.T) {
		j := t.Journal().By("watcher")
		t.Status(j, "no identifier", 403, "Extension.MissingExtensionIdentifier")
		t.Status(j, "bad identifier", 403, "Extension.InvalidExtensionIdentifier")
		t.Status(j, "unknown identifier", 403, "Extension.UnknownExtensionIdentifier")
	}},
	{ID: "EX-18", Setup: watched, Run: func(t *suite.T) {
		t.Invoke("1")
		seen := map[string]bool{}
		for _, e := range t.Journal().By("b").Named("INVOKE") {
			id := e.Headers["Lambda-Extension-Event-Identifier"]
			if !uuid.MatchString(id) || seen[id] {
				t.Errorf("event identifier %q", id)
			}
			seen[id] = true
			suite.Equal(t, "Content-Type", e.Headers["Content-Type"], "application/json")
		}
	}},
	{ID: "EX-19", Setup: watched, Run: func(t *suite.T) {
		const trace = "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=0"
		payload, play := t.Event(false)
		a := t.Invoke(payload, "X-Amzn-Trace-Id", trace)
		b, untraced := t.Play()
		j := t.Journal()
		got := t.One(j.Of(play), "next").Headers
		for _, who := range []string{"a.sh", "b"} {
			list := invokes(t, j, who, a.ID())
			if len(list) != 1 {
				t.Fatalf("%s got %d events for %s", who, len(list), a.ID())
			}
			suite.Equal(t, "deadlineMs", fmt.Sprint(list[0].DeadlineMs), got["Lambda-Runtime-Deadline-Ms"])
			suite.Equal(t, "invokedFunctionArn", list[0].InvokedFunctionARN, got["Lambda-Runtime-Invoked-Function-Arn"])
			if tr := list[0].Tracing; tr == nil || tr.Type != "X-Amzn-Trace-Id" || tr.Value != trace {
				t.Errorf("tracing %+v, want %s", tr, trace)
			}
			_, traced := t.One(untraced, "next").Headers["Lambda-Runtime-Trace-Id"]
			if list := invokes(t, j, who, b.ID()); len(list) != 1 || (list[0].Tracing != nil) != traced {
				t.Errorf("events %+v of an invocation whose event has a trace: %v", list, traced)
			}
		}
	}},
	{ID: "EX-20", Setup: watched, Run: func(t *suite.T) {
		t.Invoke("1")
		before := time.Now().UnixMilli()
		log := t.Stop()
		list := script.Printed(log, "ending", "SHUTDOWN")
		if len(list) != 1 {
			t.Fatalf("%d SHUTDOWN events, want 1", len(list))
		}
		var ev map[string]any
		if err := json.Unmarshal([]byte(list[0].Text), &ev); err != nil {
			t.Fatalf("event %q: %v", list[0].Text, err)
		}
		deadline, _ := ev["deadlineMs"].(float64)
		if len(ev) != 3 || ev["eventType"] != "SHUTDOWN" || ev["shutdownReason"] != "spindown" || int64(deadline) < before {
			t.Errorf("event %s", list[0].Text)
		}
	}},
	{ID: "EX-21", Setup: watched, Run: func(t *suite.T) {
		t.Invoke("1")
		t.Invoke("2")
		j := t.Journal()
		for _, who := range []string{"idle", "ending"} {
			suite.Equal(t, "events of "+who, len(j.By(who).Named("INVOKE")), 0)
			suite.Equal(t, "ends of its event/next", len(j.By(who).Named("serve")), 0)
		}
	}},
	{ID: "EX-22", Setup: refused, Run: func(t *suite.T) {
		t.Status(t.Journal().By("watcher"), "no type", 403, "Extension.MissingHeader", "Lambda-Extension-Function-Error-Type not found")
	}},
	{ID: "EX-25", Setup: refused, Run: func(t *suite.T) {
		t.Invoke("1")
		t.Invoke("2")
		e := t.Status(t.Journal().By("watcher"), "Running init/error", 403, "Extension.InvalidExtensionState", "State transition from Running to InitError failed for extension ")
		t.Contains("body", e.Text, " Error: State transition is not allowed")
	}},
	{ID: "EX-26", Setup: leaving, Run: func(t *suite.T) {
		payload, _ := t.Event(false, sleep(1000)) // in which nothing is frozen
		t.Invoke(payload)
		j := t.Journal().By("watcher")
		t.Status(j, "blocked", 403)
		t.Status(j, "exit/error", 202, `{"status":"OK"}`)
		t.Status(j, "exit/error again", 202)
		t.Status(j, "next after it", 403)
	}},
	{ID: "EX-27", Setup: &suite.Setup{Name: "extension over a reset", Extensions: map[string][][]step{"watcher": watch(both)}}, Run: func(t *suite.T) {
		t.PlayAnswered(exit(1))
		generations := t.Journal().By("watcher").Named("register")
		if len(generations) != 2 {
			t.Fatalf("%d registrations, want one before the reset and one after it", len(generations))
		}
		old, current := generations[0].Headers["Lambda-Extension-Identifier"], generations[1].Headers["Lambda-Extension-Identifier"]
		if old == current {
			t.Errorf("both generations have the identifier %s", old)
		}
		_, j := t.Play(get("old", extensionBase+"event/next", "Lambda-Extension-Identifier", old))
		t.Status(j, "old", 403)
	}},
}

// leaving posts exit/error while its event/next waits, and ends; later starts serve.
var leaving = &suite.Setup{Name: "exit/error while next waits", Extensions: map[string][][]step{"watcher": starts(
	steps(registerAs(`"SHUTDOWN"`), background(identified(get("blocked", extensionBase+"event/next"))), wait("blocked", 100),
		identified(post("exit/error", extensionBase+"exit/error", "", "Lambda-Extension-Function-Error-Type", "Mine.Exit")), wait("blocked", 2000),
		identified(post("exit/error again", extensionBase+"exit/error", "", "Lambda-Extension-Function-Error-Type", "Mine.Exit")),
		identified(get("next after it", extensionBase+"event/next")), exit(1)),
	steps(registerAs(both), serve(0)))}}

// crashing setups end an extension at the first INVOKE of its first start.
func crashing(name string, end ...step) *suite.Setup {
	return &suite.Setup{Name: name, Extensions: map[string][][]step{"watcher": starts(
		append([]step{registerAs(both), serve(1)}, end...), steps(registerAs(both), serve(0)))}}
}

var (
	exits0 = crashing("extension exits 0", exit(0))
	killed = crashing("extension is killed", signal(9))
	posts  = crashing("extension posts exit/error", identified(post("exit/error", extensionBase+"exit/error", `{"errorMessage":"m"}`,
		"Lambda-Extension-Function-Error-Type", "Mine.Exit")), exit(3))
	afterwards = crashing("extension exits after the answer", sleep(300), exit(1))
	initPosts  = &suite.Setup{Name: "extension posts init/error", Extensions: map[string][][]step{"watcher": starts(steps(registerAs(both),
		identified(post("init/error", extensionBase+"init/error", "", "Lambda-Extension-Function-Error-Type", "Mine.Init")), exit(1)))}}
)

// crashed wants an answer that says which extension has exited, and how.
func crashed(t *suite.T, a *suite.Answer, how string) {
	t.FunctionError(a, "Extension.Crash", "RequestId: <id> Error: extension watcher: "+how)
	t.WaitLog("RequestId: " + a.ID() + " Error: extension watcher: " + how + "\nExtension.Crash\n")
}

// extensionFailure is section 2.5.
var extensionFailure = []suite.Case{
	{ID: "EX-23", Setup: initPosts, Run: func(t *suite.T) {
		t.FunctionError(t.Invoke("1"), "Extension.InitError", "")
	}},
	{ID: "EX-28", Setup: exits0, Run: func(t *suite.T) {
		payload, _ := t.Event(false, sleep(2000))
		crashed(t, t.Invoke(payload), "exit code 0")
		suite.Equal(t, "answer after it", string(t.Invoke("1").Body), "1")
		suite.Equal(t, "starts of the extension", len(t.Journal().By("watcher").Named("start")), 2)
	}},
	{ID: "EX-30", Setup: posts, Run: func(t *suite.T) {
		payload, _ := t.Event(false, sleep(2000))
		t.FunctionError(t.Invoke(payload), "Extension.ExitError", "")
		t.Status(t.Journal().By("watcher"), "exit/error", 202, `{"status":"OK"}`)
	}},
	{ID: "EX-31", Setup: afterwards, Run: func(t *suite.T) {
		a := t.Invoke(`"early"`)
		suite.Equal(t, "answer", string(a.Body), `"early"`)
		suite.Equal(t, "X-Amz-Function-Error", a.Header.Get("X-Amz-Function-Error"), "")
		suite.Equal(t, "answer after it", string(t.Invoke("1").Body), "1")
		j := t.Journal()
		suite.Equal(t, "starts of the extension", len(j.By("watcher").Named("start")), 2)
		suite.Equal(t, "starts of the runtime", len(j.By("runtime").Named("start")), 2)
	}},
}
