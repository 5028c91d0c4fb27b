// Command sdkgo makes clients of AWS as functions do, when it is started. See ../sdk_test.go.
package main

import (
	"context"
	"log"

	"github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

type answer struct {
	Region string `json:"region"`
	Key    string `json:"key"`
}

func main() {
	cfg, err := config.LoadDefaultConfig(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	client := s3.NewFromConfig(cfg)
	lambda.Start(func(ctx context.Context) (answer, error) {
		a := answer{Region: client.Options().Region}
		if c, err := client.Options().Credentials.Retrieve(ctx); err == nil {
			a.Key = c.AccessKeyID
		}
		return a, nil
	})
}
