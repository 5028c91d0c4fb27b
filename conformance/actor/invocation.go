package actor

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/sandboxd/sandboxd/conformance/script"
)

const runtimeBase = "/2018-06-01/runtime/"

// invocation takes one event, does what it says, and answers.
func (a *Actor) invocation() error {
	resp, err := a.client.Get("http://" + a.API + runtimeBase + "invocation/next")
	if err != nil {
		return fmt.Errorf("next: %w", err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		return fmt.Errorf("next: %w", err)
	}
	received := time.Now()
	var event script.Event
	if err := json.Unmarshal(body, &event); err != nil {
		event = script.Event{} // an echo
	}
	if inner, ok := ofRequest(body); ok {
		event = inner
	}
	a.begin(event.Play, resp.Header)
	if !event.Journal && !event.Report && !a.process.program.Quiet {
		a.Note(script.Entry{Name: "next", Status: resp.StatusCode, Headers: flat(resp.Header), Text: clip(string(body)), N: int64(len(body))})
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("next: %s: %s", resp.Status, body)
	}
	switch {
	case event.Journal:
		if body, err = a.readJournal(); err != nil {
			return err
		}
	case event.Report:
		report := a.report(event.Steps, received, resp.Header)
		body = []byte(script.Encode(report))
	case event.Play != "":
		a.Do(event.Steps)
		body = []byte(script.Encode(map[string]string{"play": event.Play}))
	}
	if event.Answered {
		return nil
	}
	return a.respond(body)
}

// ofRequest returns the event that the body of an HTTP request has, if body is the event of
// such a request (section 5.5 of the specification).
func ofRequest(body []byte) (event script.Event, ok bool) {
	var request struct {
		Version, Body string
	}
	if err := json.Unmarshal(body, &request); err != nil || request.Version == "" {
		return event, false
	}
	err := json.Unmarshal([]byte(request.Body), &event)
	return event, err == nil && event.Play != ""
}

// begin makes an event the current one.
func (a *Actor) begin(play string, header http.Header) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.play = play
	a.vars["previous"], a.vars["id"] = a.vars["id"], header.Get(requestHeader)
	a.vars["nonce"] = header.Get("Lambda-Runtime-Invocation-Id")
}

// report does steps and tells what became of them.
func (a *Actor) report(steps []script.Step, received time.Time, header http.Header) script.Report {
	results := script.Entries{}
	a.do(steps, func(s script.Step, e script.Entry) {
		if s.Op == "note" {
			e = a.Announce(e)
		} else {
			e = a.stamp(e)
		}
		results = append(results, e)
	})
	deadline, _ := strconv.ParseInt(header.Get("Lambda-Runtime-Deadline-Ms"), 10, 64) // 0 tells that there is none
	r := script.Report{
		ID: header.Get(requestHeader), PID: os.Getpid(), Started: a.process.started.UnixNano(), Received: received.UnixMicro(), Deadline: deadline,
		LogStream: os.Getenv("AWS_LAMBDA_LOG_STREAM_NAME"), Init: a.process.init, Results: results, Previous: a.previous,
	}
	a.previous = results
	return r
}

// respond answers the current invocation.
func (a *Actor) respond(body []byte) error {
	url := "http://" + a.API + a.Expand(runtimeBase+"invocation/{id}/response")
	resp, err := a.client.Post(url, "application/json", bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("response: %w", err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	switch {
	case resp.StatusCode/100 == 2: // which 2xx it is, is for the cases to judge
		return nil
	case resp.StatusCode == http.StatusGone: // too late, and the worker goes on (RT-63)
		a.Note(script.Entry{Name: "late", Status: resp.StatusCode, Text: string(text)})
		return nil
	}
	a.Note(script.Entry{Name: "refused", Status: resp.StatusCode, Text: string(text)})
	return fmt.Errorf("response: %s: %s", resp.Status, text)
}

// flat keeps the first value of each header.
func flat(h http.Header) map[string]string {
	m := make(map[string]string, len(h))
	for k := range h {
		m[k] = h.Get(k)
	}
	return m
}

// clip keeps what a case may want to see of a body.
func clip(s string) string { return s[:min(len(s), clipped)] }

const clipped = 64 << 10
