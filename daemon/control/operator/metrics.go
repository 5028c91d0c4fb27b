package operator

import (
	"cmp"
	"context"
	"math"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/lambda"
)

// metrics tells what this process and the worker have counted, in the form of Prometheus.
type metrics struct {
	cfg     Config
	handler http.Handler

	requests  *prometheus.CounterVec
	durations prometheus.Histogram
}

// maxScrapes is how many clients may ask for the metrics at once.
const maxScrapes = 4

func newMetrics(cfg Config) *metrics {
	m := &metrics{
		cfg: cfg,
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sandboxd_api_requests_total", Help: "Requests to the API that were no invocations, by action and result.",
		}, []string{"action", "result"}),
		durations: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sandboxd_api_request_duration_seconds", Help: "How long these requests took.",
			Buckets: []float64{.001, .005, .01, .05, .1, .5, 1, 5, 10, 60},
		}),
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(m.requests, m.durations, &collector{cfg})
	m.handler = promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		ErrorLog: cfg.Log, ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: maxScrapes, DisableCompression: true,
	})
	return m
}

// Count counts a call of the API. It is safe for concurrent use.
func (s *Server) Count(c lambda.Call) {
	s.metrics.requests.WithLabelValues(cmp.Or(c.Action, "none"), cmp.Or(c.Type, ok)).Inc()
	s.metrics.durations.Observe(c.Duration.Seconds())
}

// Series that are asked for when they are needed.
var (
	keysDesc     = describeSeries("access_keys", "Access keys that are not revoked.", "kind")
	updatesDesc  = describeSeries("store_updates_total", "Changes of the store.")
	commitsDesc  = describeSeries("store_commits_total", "Transactions that stored these changes; several may share one.")
	damageDesc   = describeSeries("store_damaged", "Parts of the store that are damaged. If there are any, the store is read-only.")
	secretsDesc  = describeSeries("secrets_unreadable", "Secrets in the store that could not be decrypted when this process started.")
	startsDesc   = describeSeries("process_starts_total", "How often a process of this daemon was started.", "process")
	uploadsDesc  = describeSeries("uploads", "Uploads of code.", "state")
	functionDesc = describeSeries("functions", "Functions that exist.")
	maxFunctions = describeSeries("functions_limit", "Most functions that may exist.")
	codeDesc     = describeSeries("code_bytes", "Bytes of the code of all functions, as it was uploaded.")
	maxCode      = describeSeries("code_limit_bytes", "Most bytes of the code of all functions.")
	freeDesc     = describeSeries("disk_free_bytes", "Free bytes of the disk of the state folder.")
	floorDesc    = describeSeries("disk_floor_bytes", "Free bytes of the disk below which nothing is changed.")
	workerDesc   = describeSeries("worker_up", "Whether the worker answers; without it, its series are missing.")
	sandboxDesc  = describeSeries("sandboxes", "Sandboxes.", "state")
	memoryDesc   = describeSeries("sandbox_memory_bytes", "Memory that the functions of all sandboxes may use.")
	knownDesc    = describeSeries("functions_known", "Functions that the worker knows.")
	logBytesDesc = describeSeries("log_bytes", "Bytes of the logs of all functions.")
	logDropsDesc = describeSeries("log_dropped_lines_total", "Lines of functions that were dropped because they could not be written.")
	callsDesc    = describeSeries("invocations_total", "Invocations of all functions that have ended.")
	errorsDesc   = describeSeries("invocation_errors_total", "Invocations that failed, by kind.", "kind")
	throttleDesc = describeSeries("throttles_total", "Invocations that were refused because of a limit.")
	durationDesc = describeSeries("invocation_duration_seconds", "How long invocations took, with the wait for a sandbox.")

	functionCalls     = describeSeries("function_invocations_total", "Invocations of one function that have ended. Functions that were not invoked for an hour have no series.", "function")
	functionErrors    = describeSeries("function_errors_total", "Invocations of one function that failed, by kind.", "function", "kind")
	functionThrottles = describeSeries("function_throttles_total", "Invocations of one function that were refused because of a limit.", "function")
	functionSeconds   = describeSeries("function_duration_seconds_total", "How long the invocations of one function took together.", "function")
)

func describeSeries(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("sandboxd_"+name, help, labels, nil)
}

// collector collects the series above.
type collector struct{ cfg Config }

// Describe implements prometheus.Collector. It announces nothing, since some series are missing
// at times.
func (*collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), numbersTime)
	defer cancel()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	total := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	if keys, err := c.cfg.Keys.List(ctx); err == nil {
		n := map[string]int{}
		for _, k := range keys {
			if k.Active() {
				n[string(k.Kind)]++
			}
		}
		for _, kind := range []string{"admin", "invoke"} {
			gauge(keysDesc, float64(n[kind]), kind)
		}
	}
	stats := c.cfg.Store.Stats()
	total(updatesDesc, float64(stats.Updates))
	total(commitsDesc, float64(stats.Commits))
	gauge(damageDesc, float64(len(c.cfg.Store.Damage())))
	gauge(secretsDesc, float64(c.cfg.HostKeys.Unreadable))
	total(startsDesc, float64(c.cfg.Start), "control")
	if c.cfg.Uploads != nil {
		running, waiting := c.cfg.Uploads()
		gauge(uploadsDesc, float64(running), "running")
		gauge(uploadsDesc, float64(waiting), "waiting")
	}
	if c.cfg.Usage != nil {
		if u, err := c.cfg.Usage(ctx); err == nil {
			gauge(functionDesc, float64(u.Functions))
			gauge(maxFunctions, float64(u.MaxFunctions))
			gauge(codeDesc, float64(u.CodeBytes))
			gauge(maxCode, float64(u.MaxCodeBytes))
			gauge(freeDesc, float64(u.DiskFree))
			gauge(floorDesc, float64(u.DiskFloor))
		}
	}
	n, err := c.cfg.Numbers(ctx, c.cfg.SeriesLimit)
	if err != nil {
		gauge(workerDesc, 0)
		return
	}
	gauge(workerDesc, 1)
	total(startsDesc, float64(n.Start), "worker")
	idle := min(max(n.Idle, 0), n.Sandboxes)
	gauge(sandboxDesc, float64(idle), "idle")
	gauge(sandboxDesc, float64(n.Sandboxes-idle), "busy")
	gauge(memoryDesc, float64(n.Bytes))
	gauge(knownDesc, float64(n.Known))
	gauge(logBytesDesc, float64(n.Logs.Bytes))
	total(logDropsDesc, float64(n.Logs.Dropped))
	c.invocations(out, &n)
}

// invocations collects what the worker tells of invocations. A worker that was taken over can
// lie about numbers, and no more: what it could not have counted is left out.
func (c *collector) invocations(out chan<- prometheus.Metric, n *message.Numbers) {
	total := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	total(callsDesc, float64(n.Total.Invocations))
	total(throttleDesc, float64(n.Total.Throttles))
	for _, kind := range []string{message.FunctionError, message.PlatformError} {
		total(errorsDesc, float64(n.Total.Errors[kind]), kind)
	}
	if len(n.Total.Durations) == len(message.DurationBounds)+1 {
		buckets, sum := map[float64]uint64{}, uint64(0)
		for i, bound := range message.DurationBounds {
			sum += n.Total.Durations[i]
			buckets[time.Duration(bound).Seconds()] = sum
		}
		sum += n.Total.Durations[len(message.DurationBounds)]
		out <- prometheus.MustNewConstHistogram(durationDesc, sum, seconds(n.Total.Seconds), buckets)
	}
	seen := map[string]bool{}
	for _, f := range n.Functions[:min(len(n.Functions), c.cfg.SeriesLimit)] {
		if seen[f.Name] || !function.NameForm.MatchString(f.Name) {
			continue
		}
		seen[f.Name] = true
		total(functionCalls, float64(f.Invocations), f.Name)
		total(functionThrottles, float64(f.Throttles), f.Name)
		total(functionSeconds, seconds(f.Seconds), f.Name)
		for _, kind := range []string{message.FunctionError, message.PlatformError} {
			total(functionErrors, float64(f.Errors[kind]), f.Name, kind)
		}
	}
}

// seconds returns v if it is a number of seconds, or else 0.
func seconds(v float64) float64 {
	if v < 0 || math.IsNaN(v) || math.IsInf(v, 0) {
		return 0
	}
	return v
}
