package cases

import (
	"strings"

	"github.com/sandboxd/sandboxd/conformance/suite"
)

// failsAs is a case on the function error of a setup's first invocation.
func failsAs(id string, s *suite.Setup, kind string) suite.Case {
	return suite.Case{ID: id, Setup: s, Run: func(t *suite.T) { t.FunctionError(t.Invoke("1"), kind, "") }}
}

// failsWith is a case on the function error of steps, which REPORT names too.
func failsWith(id, kind string, s ...step) suite.Case {
	return suite.Case{ID: id, Setup: plain, Run: func(t *suite.T) {
		payload, _ := t.Event(true, s...)
		a := t.Invoke(payload, tail, asTail)
		t.FunctionError(a, kind, "")
		if m := reported(t, a); m[7] != "error" || m[8] != kind {
			t.Errorf("%q: want the error of the answer, %s", m[0], kind)
		}
	}}
}

// errorTypes is section 8: each type as the caller sees it.
var errorTypes = []suite.Case{
	failsWith("FE-01", "Runtime.ExitError", exit(3)),
	failsAs("FE-02", badBootstrap, "Runtime.InvalidEntrypoint"),
	failsWith("FE-05", "Runtime.TruncatedResponse", truncated("r", "Content-Length: 9", "1")),
	failsWith("FE-06", "Runtime.InvalidResponseModeHeader", answer("r", "1", modeHeader, "sideways")),
	failsWith("FE-08", "Function.ResponseSizeTooLarge", letters(answer("r", ""), sizeLimit+1), exit(1)), // as clients do that get no 202
	failsAs("FE-10", notExecutable, "Extension.LaunchError"),
	failsAs("FE-11", initPosts, "Extension.InitError"),
	{ID: "FE-12", Setup: killed, Run: func(t *suite.T) {
		payload, _ := t.Event(false, sleep(2000))
		crashed(t, t.Invoke(payload), "signal: killed")
	}},
	{ID: "FE-14", Setup: plain, Run: func(t *suite.T) {
		payload, _ := t.Event(true, sleep(60_000))
		t.FunctionError(t.Invoke(payload), "Sandbox.Timedout", "")
	}},
	{ID: "FE-22", Setup: plain, Run: func(t *suite.T) {
		_, j := t.PlayAnswered(post("id", runtimeBase+"invocation/"+unknownID+"/response", "1"), answer("r", "1"), answer("state", "1"))
		t.Status(j, "id", 400, `"errorType":"InvalidRequestID"`)
		t.Status(j, "state", 403, `"errorType":"InvalidStateTransition"`)
	}},
	{ID: "FE-24", Setup: plain, Run: func(t *suite.T) {
		for _, kind := range []string{"Runtime.ImportModuleError", "Runtime.HandlerNotFound", "Runtime.UserCodeSyntaxError", "Runtime.MarshalError"} {
			a, _ := t.PlayAnswered(fault("e", `{"errorType":"`+kind+`","errorMessage":"m"}`, "Lambda-Runtime-Function-Error-Type", kind))
			t.FunctionError(a, kind, "m")
		}
	}},
	{ID: "FE-30", Setup: plain, Run: func(t *suite.T) {
		a, _ := t.PlayAnswered(fault("e", customError))
		suite.Equal(t, "status of a customer's error", a.Status, 200)
		suite.Equal(t, "status of a client's error", t.Invoke("{").Status, 400)
	}},
	failsAs("FE-31", &suite.Setup{Name: "init error, exit 0", Runtime: starts(steps(
		post("init/error", initErrorPath, initErrorBody), exit(0)))}, "My.InitError"),
}

// supervision are the parts of section 9 that show on the wire.
var supervision = []suite.Case{
	{ID: "SUP-16", Setup: plain, Run: func(t *suite.T) {
		for n, name := range map[int64]string{9: "killed", 15: "terminated"} {
			payload, _ := t.Event(true, signal(n))
			t.FunctionError(t.Invoke(payload), "Runtime.ExitError", "RequestId: <id> Error: Runtime exited with error: signal: "+name)
		}
	}},
	{ID: "SUP-19", Setup: plain, Run: func(t *suite.T) {
		api, _ := variable(runtimeEnv(t), "AWS_LAMBDA_RUNTIME_API")
		if host, _, _ := strings.Cut(api, ":"); host != "127.0.0.1" && !strings.HasPrefix(host, "169.254.") {
			t.Errorf("the Runtime API is at %s, which others may reach", api)
		}
	}},
	{ID: "SUP-20", Setup: plain, Run: func(t *suite.T) {
		payload, _ := t.Event(true, step{Op: "daemon"}, exit(1))
		t.FunctionError(t.Invoke(payload), "Runtime.ExitError", "") // waiting for the grandchild would end in a timeout
	}},
}
