package main

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

// TestFloor plays the function: each event comes back to who sent it.
func TestFloor(t *testing.T) {
	f := &floor{queue: make(chan *invocation), running: map[string]*invocation{}}
	api, front := httptest.NewServer(f.runtimeAPI()), httptest.NewServer(http.HandlerFunc(f.invoke))
	defer api.Close()
	defer front.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel() // ends the parked next
	base := api.URL + "/2018-06-01/runtime/invocation/"
	for range 2 { // processes of the function
		go func() {
			for {
				ask, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"next", nil)
				if err != nil {
					t.Error(err)
					return
				}
				next, err := http.DefaultClient.Do(ask)
				if err != nil {
					return // the test is over
				}
				id := next.Header.Get("Lambda-Runtime-Aws-Request-Id")
				post, err := http.Post(base+id+"/response", "text/plain", next.Body)
				next.Body.Close()
				if err != nil {
					t.Error(err)
					return
				}
				post.Body.Close()
				if post.StatusCode != http.StatusAccepted {
					t.Errorf("response to %s: %s", id, post.Status)
				}
			}
		}()
	}
	var wg sync.WaitGroup
	for _, event := range []string{"one", "two", "three", "four"} {
		wg.Go(func() {
			resp, err := http.Post(front.URL, "application/json", strings.NewReader(event))
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil || string(body) != event || resp.Header.Get("Content-Type") != "text/plain" {
				t.Errorf("%s was answered with %q, %v, %v", event, body, resp.Header, err)
			}
		})
	}
	wg.Wait()
	resp, err := http.Post(base+"unknown/response", "text/plain", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest {
		t.Errorf("the response to no invocation: %s", resp.Status)
	}
}
