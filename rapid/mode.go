package rapid

import (
	"context"
	"regexp"
	"strconv"
	"time"

	"github.com/sandboxd/sandboxd/rapid/telemetry"
)

// A mode is one of the two ways in which a sandbox works on invocations: [classicMode], one at a
// time, and [managedMode], many at once. It owns what it knows of them. What both do alike is in
// Sandbox: the start and the end of the processes, registration, records of an
// initialization, the waiting.
//
// The holder of the token calls the methods. None of them blocks but run, which Run alone
// calls.
type mode interface {
	// run lives a state that not both modes have, and returns the next state.
	run(ctx context.Context, st State) State

	// admit takes an invocation up, now or when the initialization is over, or refuses it.
	admit(*invokeMsg)
	// next answers or parks a runtime's call of next, or refuses it.
	next(*nextMsg)
	// undelivered takes back an event that has not reached the runtime (RT-25).
	undelivered(*nextMsg)
	// beginAnswer opens the answer to an invocation, finishAnswer takes its body.
	beginAnswer(*beginAnswerMsg)
	finishAnswer(*finishAnswerMsg)

	// beginInit prepares an initialization. It returns the phase that its records name and
	// how long it may take.
	beginInit() (telemetry.Phase, time.Duration)
	// initialized says which state follows an initialization that has succeeded after took.
	initialized(took time.Duration) State
	// initTimedOut answers whoever should not wait for another initialization after one
	// that took too long.
	initTimedOut()
	// initFailed does the same after one that failed with f.
	initFailed(f *Fault)

	// abandon answers everybody with err, which is no failure of the function's.
	abandon(err error)
	// end closes Result.Done of whatever is over: the sandbox is dead.
	end()
}

// traits are what differs between the modes and does not change.
type traits struct {
	Rules
	new func(*Sandbox) mode

	framedLog    bool           // the runtime has a descriptor for framed messages (LOG-01, LOG-11)
	invokeEvents bool           // agents may register for INVOKE (EX-11)
	agentErrors  *regexp.Regexp // what the error type of an agent must match; nil for anything (EX-24)
	schema       string         // the only one that a subscription may have; "" for any (RT-66)
	recordARN    bool           // records name the function by its ARN too (TL-32, TL-35)

	// environment adds to and takes from the runtime's variables.
	environment func(*Config, map[string]string)
}

// Rules are what the Runtime, Extensions and Telemetry APIs of a sandbox allow, as far as that
// depends on how it works on invocations.
type Rules struct {
	LogsAPI       bool  // the Logs API exists (RT-66)
	EmptyGET      bool  // a GET must not have a body (RT-64)
	CountsWaiters bool  // the end of a connection whose next waits must be noticed when it comes (RT-60)
	ErrorBody     int64 // most bytes of a posted error: of an invocation, an initialization or a restore
	ExtensionBody int64 // most bytes of what an extension posts
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

// traitsOf returns the traits of the mode that goes with an initialization.
func traitsOf(i Initialization) *traits {
	if i == Managed {
		return &managedTraits
	}
	return &classicTraits
}
