package rapid

import (
	"sync"
	"time"
)

// Invocation is one event for the function.
type Invocation struct {
	ID              string // created once, when the request arrives
	Payload         []byte
	TraceID         string // X-Ray header value (RT-16)
	ClientContext   string // decoded JSON (RT-17)
	CognitoIdentity string // JSON (RT-18)
	TenantID        string // RT-19
	FunctionARN     string // as invoked (RT-15); "" means that of Config.Function
	Stream          bool   // the caller accepts a streamed answer (RT-69, RT-74)
	NoTail          bool   // the caller does not need Result.Tail, which then is empty
	Arrived         time.Time
}

// Result is the result of one invocation.
type Result struct {
	Payload       []byte
	ContentType   string // set by the runtime; "" if it set none (RT-31)
	FunctionError bool   // the function failed (X-Amz-Function-Error, INV-10)
	ErrorType     string // for logs (RT-41); "" unless FunctionError
	Code          string // error code for the caller of a stream (INV-32); "" means ErrorType
	Cause         []byte // X-Ray cause of RT-46; nil if there is none

	// Stream is the body of an answer that has begun and is not complete. It is nil unless
	// Invocation.Stream is set. With a Stream only ContentType and Done are set besides; the
	// Result of the Stream has the rest.
	Stream *Stream
	// Done is closed when REPORT has been written and the sandbox is free again, after its
	// reset if there is one.
	Done <-chan struct{}

	fault *Fault // why the platform failed the invocation; nil if it did not, and for an error of the function's own
	tail  []byte // written before Done is closed
	over  *over  // nil if a Sandbox did not create the Result
}

// AfterDone arranges for f to be called when Done is closed. It calls f at once if Done is
// closed already. Otherwise the goroutine that ends the invocation calls f, so no goroutine
// has to wait. That goroutine holds the token of the sandbox: f must not block, and must not
// call any method of the sandbox except State. AfterDone may be called once.
func (r *Result) AfterDone(f func()) {
	if r.over == nil {
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
	then  func() // called by end; nil for none
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

// Tail returns the last 4,096 bytes of the invocation's log (INV-03), or nothing if
// Invocation.NoTail was set. Call it only after Done is closed.
func (r *Result) Tail() []byte { return r.tail }
