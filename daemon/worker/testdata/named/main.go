// Command named is a function that responds with its variable WHO. For an event {"ms": N}
// it waits N milliseconds first.
package main

import (
	"encoding/json"
	"log"
	"net/http"
	"os"
	"strings"
	"time"
)

func main() {
	base := "http://" + os.Getenv("AWS_LAMBDA_RUNTIME_API") + "/2018-06-01/runtime/invocation/"
	for {
		next, err := http.Get(base + "next")
		if err != nil {
			log.Fatal(err)
		}
		var event struct{ MS int }
		_ = json.NewDecoder(next.Body).Decode(&event)
		next.Body.Close()
		time.Sleep(time.Duration(event.MS) * time.Millisecond)
		id := next.Header.Get("Lambda-Runtime-Aws-Request-Id")
		resp, err := http.Post(base+id+"/response", "application/json", strings.NewReader(`"`+os.Getenv("WHO")+`"`))
		if err != nil {
			log.Fatal(err)
		}
		resp.Body.Close()
	}
}
