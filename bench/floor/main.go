// Command floor is the least that a Go server must do to invoke a function: it parks
// the runtime's GET next, forwards the invocation, and passes the response on. There is
// no isolation, no limit, no log line, no freeze and no check of anything, so that what
// a Lambda environment needs beyond it can be measured. It is good for nothing else.
//
//	floor [--cold] [--handler NAME] ADDRESS INSTANCES BOOTSTRAP
//
// It serves POST on any path at ADDRESS with as many processes as INSTANCES says, or,
// with --cold, with a new process for each request, and then tells in X-Exec-Time when
// the process was about to be made (by clock.Now, in nanoseconds).
package main

import (
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/sandboxd/sandboxd/bench/clock"
)

// invocation is one request on its way.
type invocation struct {
	id   string
	body []byte
	w    http.ResponseWriter
	done chan struct{} // closed when w has the answer
}

// floor is the server. Any process may take any invocation.
type floor struct {
	bootstrap string
	handler   string
	api       string // host:port
	queue     chan *invocation

	mu      sync.Mutex
	count   int
	running map[string]*invocation
}

// start runs the function, which ends with this process.
func (f *floor) start() (*exec.Cmd, error) {
	cmd := exec.Command(f.bootstrap)
	cmd.Env = append(os.Environ(), "AWS_LAMBDA_RUNTIME_API="+f.api, "_HANDLER="+f.handler)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd, cmd.Start()
}

// runtimeAPI is what the function talks to.
func (f *floor) runtimeAPI() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /2018-06-01/runtime/invocation/next", f.next)
	mux.HandleFunc("POST /2018-06-01/runtime/invocation/{id}/response", f.response)
	return mux
}

// next is GET …/invocation/next.
func (f *floor) next(w http.ResponseWriter, r *http.Request) {
	select {
	case inv := <-f.queue:
		h := w.Header()
		h.Set("Lambda-Runtime-Aws-Request-Id", inv.id)
		h.Set("Lambda-Runtime-Deadline-Ms", "9999999999999")
		h.Set("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:us-east-1:123456789012:function:function")
		_, _ = w.Write(inv.body) // a function that is gone shows as a request that is not answered
	case <-r.Context().Done():
	}
}

// response is POST …/invocation/ID/response.
func (f *floor) response(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	f.mu.Lock()
	inv := f.running[id]
	delete(f.running, id)
	f.mu.Unlock()
	if inv == nil {
		http.Error(w, "no such invocation", http.StatusBadRequest)
		return
	}
	inv.w.Header().Set("Content-Type", r.Header.Get("Content-Type"))
	if r.Header.Get("Lambda-Runtime-Function-Response-Mode") == "streaming" {
		_ = http.NewResponseController(inv.w).Flush() // a client that is gone needs nothing
	}
	_, _ = io.Copy(inv.w, r.Body)
	close(inv.done)
	w.WriteHeader(http.StatusAccepted)
}

// invoke passes a request to whichever process asks next.
func (f *floor) invoke(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	inv := &invocation{body: body, w: w, done: make(chan struct{})}
	f.mu.Lock()
	f.count++
	inv.id = strconv.Itoa(f.count)
	f.running[inv.id] = inv
	f.mu.Unlock()
	f.queue <- inv
	<-inv.done
}

// cold is invoke with a process of its own.
func (f *floor) cold(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Exec-Time", strconv.FormatInt(int64(clock.Now()), 10))
	cmd, err := f.start()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	f.invoke(w, r)
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // killed
}

func run(args []string) error {
	flags := flag.NewFlagSet("floor", flag.ContinueOnError)
	cold := flags.Bool("cold", false, "a new process for each request")
	handler := flags.String("handler", "", "_HANDLER of the function")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 3 {
		return fmt.Errorf("usage: floor [--cold] [--handler NAME] ADDRESS INSTANCES BOOTSTRAP, not %s", strings.Join(args, " "))
	}
	instances, err := strconv.Atoi(flags.Arg(1))
	if err != nil {
		return fmt.Errorf("INSTANCES: %w", err)
	}
	api, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	f := &floor{bootstrap: flags.Arg(2), handler: *handler, api: api.Addr().String(), queue: make(chan *invocation), running: map[string]*invocation{}}
	failed := make(chan error, 2)
	go func() { failed <- http.Serve(api, f.runtimeAPI()) }()
	for range instances {
		if _, err := f.start(); err != nil {
			return err
		}
	}
	serve := f.invoke
	if *cold {
		serve = f.cold
	}
	go func() { failed <- http.ListenAndServe(flags.Arg(0), http.HandlerFunc(serve)) }()
	return <-failed
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "floor:", err)
		os.Exit(1)
	}
}
