package main

import (
	"io"
	"net/http"
	"os"
	"time"

	"github.com/sandboxd/sandboxd/integration/script"
)

// stream posts the response in parts as they come (RT-69): those of Argv with MS
// between them, then N letters, and Trailers at the end. With Data "exit" the process
// ends instead of the body, with "hang" nothing does. The answer is noted as call does.
func stream(t *testRuntime, s script.Step, r *script.Result) {
	body, w := io.Pipe()
	req, err := http.NewRequest(http.MethodPost, t.base+t.expand("/2018-06-01/runtime/invocation/{id}/response"), body)
	if err != nil {
		fail(r, err)
		return
	}
	req.Header.Set("Lambda-Runtime-Function-Response-Mode", "streaming")
	req.Trailer = make(http.Header)
	for k := range s.Trailers {
		req.Trailer[http.CanonicalHeaderKey(k)] = nil // announced
	}
	go func() {
		for i, part := range s.Argv {
			if i > 0 {
				time.Sleep(millis(s))
			}
			if _, err := io.WriteString(w, part); err != nil {
				return // send has the error
			}
		}
		switch s.Data {
		case "exit":
			time.Sleep(millis(s)) // for the parts to get through
			os.Exit(int(s.N))
		case "hang":
			return
		}
		if _, err := io.Copy(w, io.LimitReader(zeros{}, s.N)); err != nil {
			return
		}
		for k, v := range s.Trailers {
			req.Trailer.Set(k, v)
		}
		_ = w.Close() // of a pipe: cannot fail
	}()
	t.send(req, s, r)
}
