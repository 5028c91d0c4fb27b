package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/sandboxd/sandboxd/bench/load"
	"github.com/sandboxd/sandboxd/internal/cli"
	"github.com/sandboxd/sandboxd/internal/exit"
)

// benchOptions holds the flags of `bench`.
type benchOptions struct {
	target, payload, tenant, output string
	stream                          bool
	connections, requests, warmup   int
	duration, pause, timeout        time.Duration
}

func benchCommand() *cobra.Command {
	o := benchOptions{connections: 1, warmup: 10, timeout: time.Minute}
	cmd := &cobra.Command{
		Use:   "bench --target URL",
		Short: "Measure an invoke endpoint: latency, rate and errors",
		Long: `bench invokes a function over HTTP and prints the latency of the responses. It opens
--connections connections and sends one request at a time on each. It can measure any
endpoint that implements Invoke of the Lambda API, such as the AWS emulator. If the
target has no path, bench uses ` + load.Path + `.

Exit codes: 0 success; 1 a request failed; 2 any other error, such as an
invalid command line or an endpoint that does not answer.`,
		Example: `  sandboxd bench --target 127.0.0.1:9000
  sandboxd bench --target 127.0.0.1:9000 --connections 8 --duration 10s --output json
  echo '{"key":"value"}' | sandboxd bench --target http://127.0.0.1:8080 --requests 1000 --payload -`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	f := cmd.Flags()
	f.StringVar(&o.target, "target", "", "`URL` of the endpoint, or host:port")
	f.Var(cli.Int(&o.connections, 1, 1024, ""), "connections", "number of connections, each with one request at a time")
	f.Var(cli.Int(&o.requests, 0, 1<<30, ""), "requests", "number of requests to send; 0 sends until --duration has passed")
	f.Var(cli.Duration(&o.duration, 0, 24*time.Hour), "duration", "how long to send; 0 is no limit with --requests, and 5s without")
	f.Var(cli.Int(&o.warmup, 0, 1<<20, ""), "warmup", "requests to send on each connection before measuring")
	f.Var(cli.Duration(&o.pause, 0, time.Hour), "pause", "pause before each request of a connection")
	f.Var(cli.Duration(&o.timeout, time.Millisecond, time.Hour), "timeout", "time limit of a request")
	f.StringVar(&o.payload, "payload", "", "`FILE` with the event (- is standard input; default {})")
	f.StringVar(&o.tenant, "tenant", "", "`ID` for X-Amz-Tenant-Id")
	cli.Switch(f, &o.stream, "stream", "request a streamed response, from "+load.StreamPath)
	cli.AddOutput(f, &o.output)
	return cmd
}

func (o *benchOptions) run(cmd *cobra.Command) error {
	if o.target == "" {
		return fmt.Errorf("bench needs --target; see '%s --help'", cmd.CommandPath())
	}
	if o.requests == 0 && o.duration == 0 {
		o.duration = 5 * time.Second
	}
	cfg := load.Config{
		Connections: o.connections, Requests: o.requests, Duration: o.duration,
		Warmup: o.warmup, Pause: o.pause, Timeout: o.timeout, Body: []byte("{}"), Header: http.Header{},
	}
	var err error
	if cfg.URL, err = load.Endpoint(o.target); err != nil {
		return fmt.Errorf("--target: %w", err)
	}
	if o.stream {
		cfg.URL.Path = load.StreamPath
	}
	if o.tenant != "" {
		cfg.Header.Set("X-Amz-Tenant-Id", o.tenant)
	}
	switch o.payload {
	case "":
	case "-":
		cfg.Body, err = io.ReadAll(cmd.InOrStdin())
	default:
		cfg.Body, err = os.ReadFile(o.payload)
	}
	if err != nil {
		return fmt.Errorf("--payload: %w", err)
	}
	r, err := load.Run(cmd.Context(), cfg)
	if err != nil {
		return err
	}
	if err := printLoad(cmd.OutOrStdout(), o.output, r); err != nil {
		return err
	}
	if r.Err != nil {
		return &exit.Error{Code: exit.Function, Err: fmt.Errorf("%d requests failed; the first: %w", r.Errors, r.Err)}
	}
	return nil
}

// loadReport is the JSON output of bench.
type loadReport struct {
	load.Summary
	Rate    float64 `json:"requests_per_second"`
	Seconds float64 `json:"seconds"`
	Bytes   int64   `json:"response_bytes"`
	Errors  int     `json:"errors"`
	Error   string  `json:"first_error,omitempty"`
}

func printLoad(w io.Writer, format string, r load.Result) error {
	s := loadReport{Summary: r.Summary(), Rate: r.Rate(), Seconds: r.Took.Seconds(), Bytes: r.Bytes, Errors: r.Errors}
	if r.Err != nil {
		s.Error = r.Err.Error()
	}
	if format == "json" {
		return cli.PrintJSON(w, s)
	}
	ms := func(v float64) string { return fmt.Sprintf("%.3f ms", v) }
	return cli.Table(w, [][]string{
		{"REQUESTS", "ERRORS", "SECONDS", "RATE", "P50", "P90", "P99", "MAX"},
		{fmt.Sprint(s.N), fmt.Sprint(s.Errors), fmt.Sprintf("%.2f", s.Seconds), fmt.Sprintf("%.0f/s", s.Rate),
			ms(s.P50), ms(s.P90), ms(s.P99), ms(s.Max)},
	})
}
