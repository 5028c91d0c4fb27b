// Command go-sigterm is a Lambda function that cleans up before its environment
// ends. aws-lambda-go registers an internal extension for it, which is what makes
// the platform send SIGTERM and wait a little before SIGKILL.
//
//	CGO_ENABLED=0 go build -o fn/bootstrap ./examples/go-sigterm
//	sandboxd run fn
package main

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/aws/aws-lambda-go/lambda"
)

func handle(_ context.Context, event json.RawMessage) (json.RawMessage, error) { return event, nil }

func main() {
	lambda.StartWithOptions(handle, lambda.WithEnableSIGTERM(func() {
		fmt.Println("SIGTERM: cleaning up")
	}))
}
