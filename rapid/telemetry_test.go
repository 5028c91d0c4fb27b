package rapid

import (
	"context"
	"fmt"
	"net"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sandboxd/sandboxd/rapid/internal/fakesup"
	"github.com/sandboxd/sandboxd/rapid/telemetry"
	"github.com/sandboxd/sandboxd/supervisor"
)

// wire is the listener of a subscriber in a synctest bubble: what is dialled from
// inside the sandbox ends here.
type wire struct {
	logBuffer
	dialled []string
	closed  chan struct{} // when the connection has ended
}

func newWire() *wire { return &wire{closed: make(chan struct{})} }

// listen makes the wire what the sandbox's loopback leads to.
func (l *wire) listen(*world) option {
	return func(_ *Config, s *fakesup.Supervisor) {
		s.Connect = func(_ context.Context, network, addr string) (net.Conn, error) {
			l.dialled = append(l.dialled, network+" "+addr)
			near, far := net.Pipe()
			go func() {
				defer close(l.closed)
				b := make([]byte, 1<<16)
				for {
					n, err := far.Read(b)
					_, _ = l.Write(b[:n])
					if err != nil {
						return
					}
				}
			}()
			return near, nil
		}
	}
}

// types lists the types of the events that came, in order.
func (l *wire) types() string {
	synctest.Wait()
	var types []string
	for _, m := range regexp.MustCompile(`"type":"(?:platform\.)?(\w+)"`).FindAllStringSubmatch(l.String(), -1) {
		types = append(types, m[1])
	}
	return strings.Join(types, " ")
}

func subscribeTo(schema string) []byte {
	return fmt.Appendf(nil, `{"schemaVersion":%q,"types":["platform","function","extension"],"destination":{"protocol":"TCP","port":4323},"buffering":{"timeoutMs":1000}}`, schema)
}

// subscriber is an extension that subscribes between register and its first next.
func subscriber(api telemetry.API, schema string, errs *[]error) func(*world) fakesup.Program {
	return func(w *world) fakesup.Program {
		return func(p *fakesup.Process) supervisor.Exit {
			c := w.s.NewClient()
			r, err := c.Register(p.Ctx, Registration{Name: "sub", Events: []string{EventInvoke, EventShutdown}})
			if err != nil {
				return supervisor.Exit{Code: 3}
			}
			*errs = append(*errs, c.Subscribe(p.Ctx, r.ID, api, subscribeTo(schema)))
			for {
				e, err := c.NextEvent(p.Ctx, r.ID)
				if err != nil {
					return killed
				}
				*errs = append(*errs, c.Subscribe(p.Ctx, r.ID, api, subscribeTo(schema)))
				if e.Type == EventShutdown {
					sleep(p, 300*time.Millisecond)
					return supervisor.Exit{}
				}
			}
		}
	}
}

// ACC-15, TL-20, TL-32 to TL-37, TL-41, TL-42, TL-14: the records of a life in order,
// from the begin of the initialization; what ends an invocation goes out at once.
func TestTelemetryOfALife(t *testing.T) {
	l, errs := newWire(), []error{}
	answers := loop(func(p *fakesup.Process, _ *Client, e *Event) (Answer, bool) {
		sleep(p, 5*time.Millisecond)
		return Answer{Payload: e.Invocation.Payload, Seen: int64(len(e.Invocation.Payload))}, true
	})
	slowStart := func(w *world) fakesup.Program {
		return func(p *fakesup.Process) supervisor.Exit {
			sleep(p, 10*time.Millisecond) // so that the subscription is first for certain
			return answers(w)(p)
		}
	}
	inWorld(t, slowStart, func(w *world) {
		r := w.invoke("one")
		<-r.Done
		const initialized = "initStart telemetrySubscription initRuntimeDone extension initReport"
		if got, want := l.types(), initialized+" start runtimeDone report"; got != want {
			t.Errorf("got %s\nwant %s", got, want)
		}
		if len(l.dialled) != 1 || l.dialled[0] != "tcp 127.0.0.1:4323" {
			t.Errorf("dialled %v", l.dialled)
		}
		w.wantLogHas("TELEMETRY\tName: sub\tState: Subscribed\tTypes: [Platform, Function, Extension]\nEXTENSION\tName: sub\t") // LOG-31
		for _, want := range []string{`"durationMs":5,"producedBytes":2}`, `{"name":"responseLatency",`, `{"name":"runtimeOverhead",`, `{"name":"extensionOverhead",`, `"initDurationMs":10}`} {
			if !strings.Contains(l.String(), want) {
				t.Errorf("no %s in %s", want, l.String())
			}
		}
		if len(errs) != 2 || errs[0] != nil || refused(errs[1]) != "Telemetry.SubscriptionClosed" || errs[1].(*Refusal).Message != "Telemetry API subscription is closed already" {
			t.Errorf("subscriptions: %v (TL-10)", errs)
		}
	}, withExtension("sub", subscriber(telemetry.TelemetryAPI, "2022-12-13", &errs)), l.listen)
}

// TL-49 to TL-52: the same of a runtime that dies, by the Logs API.
func TestLogsOfAFailure(t *testing.T) {
	l, errs := newWire(), []error{}
	dies := loop(func(p *fakesup.Process, _ *Client, _ *Event) (Answer, bool) { return Answer{}, false })
	inWorld(t, dies, func(w *world) {
		<-w.invoke("one").Done
		const want = "logsSubscription extension start fault runtimeDone end report"
		if got := l.types(); got != want {
			t.Errorf("got %s\nwant %s", got, want)
		}
		for _, want := range []string{`"record":"RequestId: one Error: Runtime exited with error: exit status 1\nRuntime.ExitError\n"`, `{"requestId":"one","status":"failure"}`} {
			if !strings.Contains(l.String(), want) {
				t.Errorf("no %s in %s", want, l.String())
			}
		}
		w.wantLogHas("LOGS\tName: sub\tState: Subscribed\tTypes: [Platform, Function, Extension]\n")
		<-l.closed // TL-14: the reset has ended the subscription
	}, withExtension("sub", subscriber(telemetry.LogsAPI, "2021-03-18", &errs)), l.listen)
}

// TL-22: what waits for its batch when the sandbox freezes comes after the thaw, and
// what is said in a shutdown comes before the extension's end.
func TestDeliveryAroundFreezeAndShutdown(t *testing.T) {
	l, errs := newWire(), []error{}
	inWorld(t, echo(0), func(w *world) {
		<-w.invoke("one").Done
		w.s.log.Output(telemetry.FromFunction, "runtime", telemetry.Message{Text: []byte("late")})
		time.Sleep(time.Hour) // frozen after 5 ms
		if got := l.types(); strings.Contains(got, "function") {
			t.Errorf("delivered while frozen: %s", got)
		}
		r := w.invoke("two")
		<-r.Done
		if got, want := l.types(), "report function start runtimeDone report"; !strings.HasSuffix(got, want) {
			t.Errorf("got %s\nwant the end %s", got, want)
		}
		w.cancel()
		time.Sleep(100 * time.Millisecond) // of the 300 that the extension takes
		w.s.log.Output(telemetry.FromFunction, "runtime", telemetry.Message{Text: []byte("last words")})
		if got := l.types(); !strings.HasSuffix(got, " report function") {
			t.Errorf("in the shutdown: %s", got)
		}
	}, withExtension("sub", subscriber(telemetry.TelemetryAPI, "2022-12-13", &errs)), l.listen)
}

// TL-13: a TCP listener that is not there is a violation.
func TestSubscriptionWithoutListener(t *testing.T) {
	errs := []error{}
	inWorld(t, echo(0), func(w *world) {
		<-w.invoke("one").Done
		if len(errs) == 0 || refused(errs[0]) != ValidationError || !strings.Contains(errs[0].Error(), "sandbox:4323") {
			t.Errorf("%v", errs)
		}
	}, withExtension("sub", subscriber(telemetry.TelemetryAPI, "2022-12-13", &errs)))
}

// LOG-41: in JSON the system level leaves out what is below it, and failures stay.
func TestSystemLogLevel(t *testing.T) {
	for level, want := range map[telemetry.Level]string{
		"":                   "initStart initRuntimeDone extension initReport start runtimeDone report",
		telemetry.LevelDebug: "initStart initRuntimeDone extension initReport start runtimeDone report",
		telemetry.LevelInfo:  "initStart start runtimeDone report",
		telemetry.LevelWarn:  "",
	} {
		l := newWire()
		inWorld(t, echo(0), func(w *world) { <-w.invoke("one").Done },
			withExtension("e", extension([]string{EventInvoke}, nil)),
			with(func(c *Config, _ *fakesup.Supervisor) {
				c.Function.LogFormat, c.Function.SystemLogLevel = telemetry.JSON, level
				c.Sink = telemetry.NewWriter(&l.logBuffer, telemetry.JSON)
			}))
		synctest.Test(t, func(t *testing.T) {
			if got := l.types(); got != want {
				t.Errorf("%q: %s\nwant %s", level, got, want)
			}
		})
	}
}

// INV-14: the records of out of memory, as Lambda writes them.
func TestTelemetryOfOutOfMemory(t *testing.T) {
	var l logBuffer
	inWorld(t, echo(time.Minute), func(w *world) {
		w.mayFail = true
		go func() {
			time.Sleep(time.Second)
			w.sup.KillForMemory()
		}()
		<-w.invoke("one").Done
		for _, want := range []string{
			`"type":"platform.runtimeDone","record":{"requestId":"one","status":"error","errorType":"Runtime.OutOfMemory"`,
			`"type":"platform.report","record":{"requestId":"one","status":"error","errorType":"Runtime.OutOfMemory"`,
		} {
			if got := l.String(); !strings.Contains(got, want) {
				t.Errorf("no %s in\n%s", want, got)
			}
		}
	}, with(func(c *Config, _ *fakesup.Supervisor) {
		c.Function.LogFormat, c.Sink = telemetry.JSON, telemetry.NewWriter(&l, telemetry.JSON)
	}))
}

// TL-33, TL-34, TL-47: an initialization that passes its limit ends with the status
// timeout and no error type; one whose runtime dies, with the first fatal error.
func TestTelemetryOfAFailedInit(t *testing.T) {
	for name, tt := range map[string]struct {
		runtime func(*world) fakesup.Program
		want    string
	}{
		"limit": {hangs, `"status":"timeout"}`},
		"exit":  {exits(supervisor.Exit{Code: 1}), `"status":"error","errorType":"Runtime.ExitError"}`},
	} {
		t.Run(name, func(t *testing.T) {
			l, errs := newWire(), []error{}
			inWorld(t, tt.runtime, func(w *world) {
				time.Sleep(11 * time.Second)
				w.wantStates("Initializing Resetting Cold")
				got := l.String()
				for _, want := range []string{
					`"type":"platform.initRuntimeDone","record":{"initializationType":"on-demand","phase":"init",` + tt.want,
					`"type":"platform.initReport","record":{"initializationType":"on-demand","phase":"init","metrics":{"durationMs":`,
					tt.want + "}\n",
				} {
					if !strings.Contains(got, want) {
						t.Errorf("no %s in\n%s", want, got)
					}
				}
				if types := l.types(); !strings.HasSuffix(types, "initRuntimeDone extension initReport") {
					t.Errorf("%s", types)
				}
			}, withExtension("sub", subscriber(telemetry.TelemetryAPI, "2022-12-13", &errs)), l.listen)
		})
	}
}
