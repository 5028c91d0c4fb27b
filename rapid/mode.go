package rapid

import (
	"context"
	"regexp"
	"strconv"
	"time"

	"github.com/sandboxd/sandboxd/rapid/telemetry"
)

// A mode is one of the two ways in which a sandbox runs invocations: one at a time
// ([classicMode]) or many at once ([managedMode]). It owns the state of the invocations. What
// both modes do in the same way is in Sandbox: starting and stopping processes, registration,
// records of an initialization, and waiting.
//
// The holder of the token calls the methods. Only run may block, and only Run calls it.
type mode interface {
	// run runs st, a state of this mode, and returns the next state.
	run(ctx context.Context, st State) State

	// admit accepts an invocation, which starts now or after the initialization, or refuses it.
	admit(*invokeMsg)
	// next answers, parks or refuses a runtime's call of next.
	next(*nextMsg)
	// undelivered takes back an event that did not reach the runtime (RT-25).
	undelivered(*nextMsg)
	// beginAnswer begins the answer to an invocation; finishAnswer completes it with the body.
	beginAnswer(*beginAnswerMsg)
	finishAnswer(*finishAnswerMsg)

	// beginInit prepares an initialization. It returns the phase for its records, and its time
	// limit.
	beginInit() (telemetry.Phase, time.Duration)
	// initialized returns the state that follows a successful initialization of duration took.
	initialized(took time.Duration) State
	// initTimedOut is called after an initialization that took too long. It answers the
	// invocations that must not wait for another initialization.
	initTimedOut()
	// initFailed does the same after an initialization that failed with f.
	initFailed(f *Fault)

	// abandon answers all invocations with err, which the function did not cause.
	abandon(err error)
	// end closes Result.Done of finished invocations when the sandbox is dead.
	end()
}

// traits are the constant properties of a mode.
type traits struct {
	Rules
	new func(*Sandbox) mode

	framedLog    bool           // the runtime has a descriptor for framed messages (LOG-01, LOG-11)
	invokeEvents bool           // agents may register for INVOKE (EX-11)
	agentErrors  *regexp.Regexp // valid error types of an agent; nil allows any (EX-24)
	schema       string         // only valid schema of a subscription; "" allows any (RT-66)
	recordARN    bool           // records contain the function's ARN (TL-32, TL-35)

	// environment changes the runtime's variables.
	environment func(*Config, map[string]string)
}

// Rules are the rules of the Runtime, Extensions and Telemetry APIs that depend on the mode
// of the sandbox.
type Rules struct {
	LogsAPI       bool  // the Logs API exists (RT-66)
	EmptyGET      bool  // a GET request must not have a body (RT-64)
	CountsWaiters bool  // parked calls of next are counted, so a closed connection must be noticed at once (RT-60)
	ErrorBody     int64 // largest error of an invocation, an initialization or a restore, in bytes
	ExtensionBody int64 // largest request body of an extension, in bytes
}

var classicTraits = traits{
	Rules: Rules{LogsAPI: true, ErrorBody: MaxPayload, ExtensionBody: 64 << 10}, // RT-43; a registration or subscription is a short list
	new:   newClassic,

	framedLog: true, invokeEvents: true,
	environment: func(*Config, map[string]string) {},
}

var managedTraits = traits{
	Rules: Rules{EmptyGET: true, CountsWaiters: true, ErrorBody: 1 << 20, ExtensionBody: 1 << 20}, // RT-64
	new:   newManaged,

	agentErrors: regexp.MustCompile(`Extension\.[A-Z][a-zA-Z]+`),
	schema:      "2025-01-29",
	recordARN:   true,
	environment: func(c *Config, env map[string]string) { // ENV-12, RT-67, LOG-11
		env["AWS_LAMBDA_MAX_CONCURRENCY"] = strconv.Itoa(c.MaxConcurrency)
		delete(env, "_LAMBDA_TELEMETRY_LOG_FD")
	},
}

// traitsOf returns the traits of the mode for an initialization type.
func traitsOf(i Initialization) *traits {
	if i == Managed {
		return &managedTraits
	}
	return &classicTraits
}
