package rapid

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/uuid"

	"github.com/sandboxd/sandboxd/rapid/internal/fakesup"
	"github.com/sandboxd/sandboxd/rapid/telemetry"
	"github.com/sandboxd/sandboxd/supervisor"
)

func refused(err error) RefusalType {
	var r *Refusal
	if errors.As(err, &r) {
		return r.Type
	}
	return RefusalType(fmt.Sprint(err))
}

// EX-10 to EX-17, TL-11: what registration and identified calls refuse.
func TestRegistrationRules(t *testing.T) {
	inWorld(t, hangs, func(w *world) {
		synctest.Wait()
		c, ctx := w.s.NewClient(), context.Background()
		register := func(name string, events ...string) RefusalType {
			_, err := c.Register(ctx, Registration{Name: name, Events: events})
			return refused(err)
		}
		for i, tt := range []struct{ got, want RefusalType }{
			{register("", "X"), InvalidExtensionName},
			{register(strings.Repeat("n", maxAgentName+1)), InvalidExtensionName},
			{register("ext", "invoke"), InvalidEventType},
			{register("internal", EventShutdown), InvalidEventType},
			{register("internal", EventInvoke), "<nil>"},
			{register("internal"), InvalidExtensionState},
			{register("ext", EventShutdown, EventInvoke, EventInvoke), "<nil>"},
			{register("ext"), InvalidExtensionState},
			{refused(c.Subscribe(ctx, "", telemetry.TelemetryAPI, nil)), MissingExtensionIdentifier},
			{refused(c.Subscribe(ctx, "x", telemetry.TelemetryAPI, nil)), InvalidExtensionIdentifier},
			{refused(c.Subscribe(ctx, uuid.NewString(), telemetry.TelemetryAPI, nil)), UnknownExtensionIdentifier},
			{refused(c.FailAgent(ctx, "", AgentFailure{})), MissingExtensionIdentifier},
		} {
			if tt.got != tt.want {
				t.Errorf("%d: %s, want %s", i, tt.got, tt.want)
			}
		}
		r, err := c.Register(ctx, Registration{Name: "third", AccountID: true})
		if err != nil || r.AccountID != "123456789012" || r.FunctionName != "fn" || r.Handler != "main.handler" {
			t.Errorf("%+v, %v", r, err)
		}
		if got := refused(c.Subscribe(ctx, r.ID, telemetry.LogsAPI, nil)); got != LogsValidationError {
			t.Errorf("Logs: %s", got)
		}
		if got := refused(c.FailAgent(ctx, r.ID, AgentFailure{})); got != MissingHeader {
			t.Errorf("no type: %s", got)
		}
		for i := range maxAgents - 3 {
			if got := register(fmt.Sprintf("i%d", i)); got != "<nil>" {
				t.Errorf("i%d: %s", i, got)
			}
		}
		if got := register("eleventh"); got != TooManyExtensions {
			t.Errorf("eleventh: %s", got)
		}
		go func() { _, _ = c.Next(ctx) }()
		synctest.Wait()
		if got := register("late"); got != RegistrationClosed {
			t.Errorf("late: %s", got)
		}
	}, withExtension("ext", hangs), with(func(c *Config, _ *fakesup.Supervisor) { c.Settings.ExternalWindow = 0 }))
}

// Who has gone away before the owner heard of the call has not made it.
func TestCallOfNobody(t *testing.T) {
	inWorld(t, hangs, func(w *world) {
		synctest.Wait()
		c := w.s.NewClient()
		gone, leave := context.WithCancel(context.Background())
		leave()
		if _, err := c.Next(gone); !errors.Is(err, context.Canceled) {
			t.Errorf("next: %v", err)
		}
		if err := c.BeginInitError(context.Background()); err != nil { // legal before the first next alone
			t.Errorf("init/error: %v", err)
		}
	})
}

// What a process calls itself, and what it calls its failures, is repeated in records of
// the log, whose queue does not count it: it is short.
func TestLongNames(t *testing.T) {
	name, long := strings.Repeat("n", maxAgentName), "Extension."+strings.Repeat("X", 1<<20)
	inWorld(t, func(w *world) fakesup.Program {
		return func(p *fakesup.Process) supervisor.Exit {
			c := w.s.NewClient()
			r, err := c.Register(p.Ctx, Registration{Name: name})
			if err != nil || c.FailAgent(p.Ctx, r.ID, AgentFailure{Init: true, Type: long}) != nil {
				t.Errorf("register: %v", err)
			}
			return echo(0)(w)(p)
		}
	}, func(w *world) {
		<-w.invoke("a").Done
		w.wantLogHas("EXTENSION\tName: " + name + "\tState: InitError\tEvents: []\tError Type: " + long[:maxErrorType] + "\n")
	})
	for posted, want := range map[string]string{
		"Function." + strings.Repeat("X", 1<<20): "Function." + strings.Repeat("X", maxErrorType-len("Function.")),
		strings.Repeat("x", 1<<20) + "Runtime.X": "Runtime.Unknown",
	} {
		if got := sanitizeType(posted); got != want {
			t.Errorf("%.20q is kept as %d bytes %.20q, want %d", posted, len(got), got, len(want))
		}
	}
}

// The rows of section 1.8 that need snap-start stand in the table already.
func TestRestoreRows(t *testing.T) {
	for _, tt := range []struct {
		from runtimeState
		call runtimeCall
		to   runtimeState // "" is refused
	}{
		{rtRestoreReady, callNext, ""}, {rtRestoreReady, callInitError, ""},
		{rtRestoring, callNext, rtReady}, {rtRestoring, callInitError, rtRestoreError},
		{rtRestoreError, callNext, ""}, {rtRestoreError, callInitError, ""},
	} {
		r := runtimeParty{RuntimeState: RuntimeState{State: tt.from}}
		err := r.move(tt.call)
		if (err == nil) != (tt.to != "") || err == nil && r.State != tt.to {
			t.Errorf("%s, call %d: %s, %v", tt.from, tt.call, r.State, err)
		}
	}
	r := runtimeParty{RuntimeState: RuntimeState{State: rtInitError}}
	want := "State transition from InitError to Ready failed for runtime. Error: State transition is not allowed"
	if err := r.move(callNext); err == nil || err.Message != want {
		t.Errorf("%v, want %s (RT-30)", err, want)
	}
}
