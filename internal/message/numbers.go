package message

import "time"

// The paths of what control asks the worker, beside SwitchPath.
const (
	NumbersPath = "/numbers"    // GET, with the query functions, how many at most; answered with Numbers
	ForgetPath  = "/forget-key" // POST of ForgetKey; answered with 204 when it is in force
)

// ForgetKey tells the worker that an access key was revoked. Requests that arrive after the
// answer are verified by no key that was derived from it before.
type ForgetKey struct{ AccessKeyID string }

// Numbers are what the worker counts. Those that only grow begin with 0 in each worker.
type Numbers struct {
	Start     int    // which worker of this daemon it is, from 1 on
	Sandboxes int    // that exist
	Idle      int    // of these, those that wait for invocations
	Bytes     uint64 // of memory that the functions of the sandboxes may use
	Known     int    // functions that the worker knows
	Logs      LogNumbers

	Total     FunctionNumbers   // of all functions
	Functions []FunctionNumbers // those invoked within NumbersAge, the last invoked first
}

// NumbersAge is how long after its last invocation a function has numbers of its own.
const NumbersAge = time.Hour

// FunctionNumbers are the numbers of one function. Each invocation that was begun is in
// Invocations, and by its result in Errors if it failed.
type FunctionNumbers struct {
	Name        string
	Invocations uint64            // that have ended
	Errors      map[string]uint64 // of these, those that failed, by one of ErrorKinds
	Throttles   uint64            // requests that were refused because of a limit
	Seconds     float64           // that the invocations took together
	Durations   []uint64          // invocations, by the first of DurationBounds that they did not exceed; the last one is of longer ones
}

// The kinds of errors in FunctionNumbers.
const (
	FunctionError = "function" // the function failed, also by a time-out
	PlatformError = "platform" // no sandbox could be made, or it broke down
)

// DurationBounds are the upper bounds of FunctionNumbers.Durations.
var DurationBounds = []time.Duration{
	time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond,
	50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
	time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second, 30 * time.Second,
	time.Minute, 5 * time.Minute, 15 * time.Minute,
}
