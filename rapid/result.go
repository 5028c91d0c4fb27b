package rapid

import (
	"sync"
	"time"
)

// Invocation is one event for the function.
type Invocation struct {
	ID              string // made once, where the request comes in
	Payload         []byte
	ContentType     string // "" means application/json (RT-20)
	TraceID         string // X-Ray header value (RT-16)
	ClientContext   string // decoded JSON (RT-17)
	CognitoIdentity string // JSON (RT-18)
	TenantID        string // RT-19
	FunctionARN     string // as invoked (RT-15); "" means the function's
	Stream          bool   // the invoker takes the answer as it comes, if it comes as a stream (RT-69, RT-74)
	NoTail          bool   // nobody reads Result.Tail: it is empty, and need not be made
	Arrived         time.Time
}

// Result is the answer to one invocation.
type Result struct {
	Payload       []byte
	ContentType   string // as the runtime set it; "" if it set none (RT-31)
	FunctionError bool   // X-Amz-Function-Error: Unhandled (INV-10)
	ErrorType     string // for logs (RT-41); "" unless FunctionError
	Code          string // for the invoker of a stream (INV-32), "" if it is ErrorType
	Cause         []byte // X-Ray cause of RT-46, nil if there is none

	// Stream is the body of an answer that has only begun; it is nil unless the
	// Invocation asks for it. Then of the other fields only ContentType and Done are
	// set: the Result of the Stream has the rest.
	Stream *Stream

	// Done is closed when REPORT is written and the sandbox is free again, after
	// its reset if there is one.
	Done <-chan struct{}

	tail []byte // written before Done is closed
	over *over  // of an Invoke
}

// AfterDone arranges to call f when Done is closed, without a goroutine that waits: now if
// it is closed already, else in the goroutine that ends the invocation. That holds the
// token of the sandbox, so f must not block and must ask nothing of the sandbox except its
// State. AfterDone may be called once.
func (r *Result) AfterDone(f func()) {
	if r.over == nil { // not made by a Sandbox
		go func() {
			<-r.Done
			f()
		}()
		return
	}
	r.over.after(f)
}

// over is the end of an invocation.
type over struct {
	done chan struct{} // Result.Done

	mu    sync.Mutex
	ended bool
	then  func() // to be called at the end; nil for none
}

func (o *over) after(f func()) {
	o.mu.Lock()
	ended := o.ended
	o.then = f
	o.mu.Unlock()
	if ended {
		f()
	}
}

// end closes done and calls the function given to after. It is called once.
func (o *over) end() {
	o.mu.Lock()
	o.ended = true
	close(o.done)
	then := o.then
	o.mu.Unlock()
	if then != nil {
		then()
	}
}

// Tail returns the last 4,096 bytes of the invocation's log (INV-03), unless the
// Invocation said NoTail. Call it only after Done is closed.
func (r *Result) Tail() []byte { return r.tail }
