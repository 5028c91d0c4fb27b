// Command go is the function of the clients matrix on aws-lambda-go. What all functions
// of the matrix do is said in ../../clients_test.go.
package main

import (
	"context"
	"io"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-lambda-go/lambdacontext"
)

// Refused is the error of a function that was asked to fail.
type Refused struct{}

func (Refused) Error() string { return "as asked" }

var (
	calls  int
	logger = lambdacontext.NewLogger()
)

func main() { lambda.Start(handle) }

func handle(ctx context.Context, event map[string]any) (any, error) {
	calls++
	lc, _ := lambdacontext.FromContext(ctx)
	switch event["do"] {
	case "fail":
		return nil, Refused{}
	case "log":
		logger.WarnContext(ctx, "a message")
	case "stream":
		return io.MultiReader(strings.NewReader("first "), &gate{}, strings.NewReader("second")), nil
	case "sleep":
		time.Sleep(time.Hour)
	}
	return map[string]any{
		"requestId": lc.AwsRequestID, "function": lambdacontext.FunctionName, "version": lambdacontext.FunctionVersion,
		"memory": lambdacontext.MemoryLimitInMB, "calls": calls, "event": event,
	}, nil
}

// gate is a reader that ends, empty, as soon as the test has read the first chunk.
type gate struct{}

func (*gate) Read([]byte) (int, error) {
	for {
		if _, err := os.Stat("go-on"); err == nil {
			return 0, io.EOF
		}
		time.Sleep(5 * time.Millisecond)
	}
}
