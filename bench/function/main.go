// Command function is what the benchmark measures: on the unmodified aws-lambda-go it
// answers with the event it was given. It also knows when it began, and streams.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"

	"github.com/aws/aws-lambda-go/lambda"

	"github.com/sandboxd/sandboxd/bench/clock"
)

// stamps are the process's own times, by clock.Now, in nanoseconds.
var stamps struct {
	Main int64 `json:"main"` // main has begun
	Next int64 `json:"next"` // the first GET next is about to connect
}

// wantStamps is the event that is answered with the stamps.
const wantStamps = `"stamps"`

func handle(_ context.Context, event json.RawMessage) (any, error) {
	if string(event) == wantStamps {
		return stamps, nil
	}
	return event, nil
}

func main() {
	stamps.Main = int64(clock.Now())
	if os.Getenv("_HANDLER") == "stream" {
		fmt.Fprintln(os.Stderr, "function:", stream("http://"+os.Getenv("AWS_LAMBDA_RUNTIME_API")+"/2018-06-01/runtime/invocation/"))
		os.Exit(1)
	}
	// aws-lambda-go clones this transport.
	transport := http.DefaultTransport.(*http.Transport)
	dial, first := transport.DialContext, sync.OnceFunc(func() { stamps.Next = int64(clock.Now()) })
	transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		first()
		return dial(ctx, network, addr)
	}
	lambda.Start(handle)
}

// stream answers each event, a number, with that many bytes in a streamed response
// (RT-69), which aws-lambda-go does not make.
func stream(api string) error {
	for {
		next, err := http.Get(api + "next")
		if err != nil {
			return err
		}
		var size int64
		err = json.NewDecoder(next.Body).Decode(&size)
		next.Body.Close()
		if err != nil {
			return fmt.Errorf("the event is not a number of bytes: %w", err)
		}
		post, err := http.NewRequest(http.MethodPost, api+next.Header.Get("Lambda-Runtime-Aws-Request-Id")+"/response", io.LimitReader(zeros{}, size))
		if err != nil {
			return err
		}
		post.Header.Set("Lambda-Runtime-Function-Response-Mode", "streaming")
		post.Header.Set("Content-Type", "application/octet-stream")
		answer, err := http.DefaultClient.Do(post)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, answer.Body)
		answer.Body.Close()
		if err != nil {
			return err
		}
	}
}

// zeros is an endless body.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
