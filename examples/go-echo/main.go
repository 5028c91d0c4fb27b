// Command go-echo is a Lambda function on the unmodified aws-lambda-go: it answers
// with the event it was given and the request id.
//
//	CGO_ENABLED=0 go build -o fn/bootstrap ./examples/go-echo
//	sandboxd run fn
package main

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-lambda-go/lambdacontext"
)

// answer is what the caller gets.
type answer struct {
	RequestID string          `json:"requestId"`
	Event     json.RawMessage `json:"event"`
}

func handle(ctx context.Context, event json.RawMessage) (answer, error) {
	lc, ok := lambdacontext.FromContext(ctx)
	if !ok {
		return answer{}, fmt.Errorf("no Lambda context")
	}
	fmt.Printf("handling %d bytes\n", len(event))
	return answer{RequestID: lc.AwsRequestID, Event: event}, nil
}

func main() { lambda.Start(handle) }
