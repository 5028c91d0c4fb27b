// Command testruntime is the function of the end-to-end tests: a plain Runtime API
// client, without any SDK, that does what the steps of each event say (package
// integration/script). It is built static and is the `bootstrap` of the test
// function.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/sandboxd/sandboxd/integration/inside"
	"github.com/sandboxd/sandboxd/integration/script"
)

// testRuntime is the state of the process, or of one worker in managed mode. Its steps
// run one at a time.
type testRuntime struct {
	base     string // of the Runtime API, without a path
	client   *http.Client
	started  time.Time
	fds      []string // what was inherited
	id       string   // of the current invocation
	previous string   // id of the invocation before
	answered bool     // a response or error for id was accepted
	init     []script.Result
	last     []script.Result // of the invocation before
	held     [][]byte        // memory that stays allocated
	ticks    *ticker

	connections []net.Conn // of hold
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("testruntime: ")
	if len(os.Args) > 1 {
		child(os.Args[1:])
		return
	}
	r := &testRuntime{
		base:    "http://" + os.Getenv("AWS_LAMBDA_RUNTIME_API"),
		client:  &http.Client{Transport: &http.Transport{}},
		started: time.Now(),
		fds:     inside.InheritedFDs(),
	}
	if err := script.Take("runtime", "start", "pid", strconv.Itoa(os.Getpid())); err != nil {
		log.Print(err)
	}
	if text := os.Getenv(script.InitVariable); text != "" {
		var steps []script.Step
		if err := json.Unmarshal([]byte(text), &steps); err != nil {
			log.Fatalf("%s: %v", script.InitVariable, err)
		}
		r.init = r.run(steps)
	}
	workers, _ := strconv.Atoi(os.Getenv("AWS_LAMBDA_MAX_CONCURRENCY")) // absent in classic mode (RT-67)
	for range workers - 1 {
		worker := *r
		go worker.work()
	}
	r.work()
}

// work takes one event after the other.
func (r *testRuntime) work() {
	for {
		if err := r.invocation(); err != nil {
			log.Fatal(err)
		}
	}
}

// invocation takes one event and does what it says.
func (r *testRuntime) invocation() error {
	resp, err := r.client.Get(r.base + "/2018-06-01/runtime/invocation/next")
	if err != nil {
		return err
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("next: %s: %s", resp.Status, body)
	}
	received := time.Now().UnixMilli()
	deadline, err := strconv.ParseInt(resp.Header.Get("Lambda-Runtime-Deadline-Ms"), 10, 64)
	if err != nil {
		return fmt.Errorf("next: deadline: %w", err)
	}
	r.previous, r.id, r.answered = r.id, resp.Header.Get("Lambda-Runtime-Aws-Request-Id"), false

	var event script.Event
	if json.Unmarshal(body, &event) != nil || event.Steps == nil {
		return r.respond(body)
	}
	results := r.run(event.Steps)
	previous := r.last
	r.last = results
	if r.answered {
		return nil
	}
	return r.respond([]byte(script.Encode(script.Report{
		ID:        r.id,
		PID:       os.Getpid(),
		Started:   r.started.UnixNano(),
		Received:  received,
		Deadline:  deadline,
		LogStream: os.Getenv("AWS_LAMBDA_LOG_STREAM_NAME"),
		Init:      r.init,
		Results:   results,
		Previous:  previous,
	})))
}

// respond posts the answer of the current invocation.
func (r *testRuntime) respond(body []byte) error {
	resp, err := r.client.Post(r.base+r.expand("/2018-06-01/runtime/invocation/{id}/response"), "application/json", strings.NewReader(string(body)))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusGone { // RT-63: too late
		note("late", "id", r.id)
		return nil
	}
	if resp.StatusCode != http.StatusAccepted {
		text, _ := io.ReadAll(resp.Body)
		return fmt.Errorf("response: %s: %s", resp.Status, text)
	}
	return nil
}

// expand puts request ids, and the token of snap-start, into text of an API call.
func (r *testRuntime) expand(text string) string {
	return strings.NewReplacer("{id}", r.id, "{previous}", r.previous, "{token}", os.Getenv("AWS_CONTAINER_AUTHORIZATION_TOKEN")).Replace(text)
}

// run does the steps in order, each whatever became of the one before.
func (r *testRuntime) run(steps []script.Step) []script.Result {
	results := make([]script.Result, 0, len(steps))
	for _, s := range steps {
		var result script.Result
		do, ok := operations[s.Op]
		if ok {
			do(r, s, &result)
		} else {
			result.Error = "no such operation"
		}
		result.Op = s.Op
		results = append(results, result)
	}
	return results
}
