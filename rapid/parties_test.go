package rapid

import (
	"bytes"
	"context"
	"encoding/gob"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/sandboxd/sandboxd/rapid/internal/fakesup"
	"github.com/sandboxd/sandboxd/supervisor"
)

// codecs are ways to save Parties and to read them again.
var codecs = map[string]func(t *testing.T, p Parties) Parties{
	"json": func(t *testing.T, p Parties) (back Parties) {
		t.Helper()
		b, err := json.Marshal(p)
		if err == nil {
			err = json.Unmarshal(b, &back)
		}
		if err != nil {
			t.Fatal(err)
		}
		return back
	},
	"gob": func(t *testing.T, p Parties) (back Parties) {
		t.Helper()
		var b bytes.Buffer
		if err := gob.NewEncoder(&b).Encode(p); err != nil {
			t.Fatal(err)
		}
		if err := gob.NewDecoder(&b).Decode(&back); err != nil {
			t.Fatal(err)
		}
		return back
	},
}

// copied is a program that waits until it is told to go on as the copy of another process
// does: what that one had asked for, go asks for.
func copied(start <-chan struct{}, goOn func(p *fakesup.Process) supervisor.Exit) func(*world) fakesup.Program {
	return func(*world) fakesup.Program {
		return func(p *fakesup.Process) supervisor.Exit {
			select {
			case <-start:
				return goOn(p)
			case <-p.Ctx.Done():
				return killed
			}
		}
	}
}

// What the APIs believe can be saved, and put into another sandbox whose processes are
// copies: a runtime that waits for its event, an extension and one inside the runtime that
// have registered and wait. Their calls go on as before: the same identifiers, the same
// generation, registration closed, the events that they have registered for.
func TestPartiesGoOnInAnotherSandbox(t *testing.T) {
	for name, codec := range codecs {
		t.Run(name, func(t *testing.T) {
			saved := codec(t, partiesAtRest(t))
			if saved.Generation != 2 || !saved.RegistrationClosed || saved.Runtime.State != rtReady || saved.Runtime.Event != nil || len(saved.Agents) != 2 {
				t.Fatalf("saved %+v", saved)
			}
			var external, internal string
			for _, a := range saved.Agents {
				if a.State != agReady || a.Event != nil {
					t.Errorf("saved agent %+v", a)
				}
				if a.External {
					external = a.ID
				} else {
					internal = a.ID
				}
			}
			var h, inside heard
			var start chan struct{}
			inWorld(t, func(w *world) fakesup.Program {
				start = make(chan struct{})
				return copied(start, func(p *fakesup.Process) supervisor.Exit {
					go func() {
						c := w.s.NewClient()
						for {
							e, err := c.NextEvent(p.Ctx, internal)
							if err != nil {
								return
							}
							inside.note(p, e)
						}
					}()
					return echo(0)(w)(p)
				})(w)
			}, func(w *world) {
				synctest.Wait()
				before := w.s.NewClient()
				if err := w.s.Adopt(context.Background(), saved); err != nil {
					t.Fatal(err)
				}
				close(start)
				synctest.Wait()
				w.wantStates("Initializing Idle")
				if _, err := before.Register(context.Background(), Registration{Name: "x"}); !errors.Is(err, ErrClosed) {
					t.Errorf("a client of before: %v, want ErrClosed", err)
				}
				if _, err := w.s.NewClient().Register(context.Background(), Registration{Name: "x"}); refused(err) != RegistrationClosed {
					t.Errorf("registration: %v, want it closed", err)
				}
				for _, id := range []string{"one", "two"} {
					if r := w.invoke(id); r.FunctionError || string(r.Payload) != "{}" {
						t.Errorf("%s: %+v %s", id, r, r.Payload)
					} else {
						<-r.Done
					}
				}
				h.mark = time.Now()
				w.cancel()
				<-w.s.dead
				synctest.Wait()
				h.want(t, "INVOKE one", "INVOKE two", "SHUTDOWN spindown +500ms")
				inside.want(t, "INVOKE one", "INVOKE two")
			}, func(w *world) option {
				ext := copied(start, func(p *fakesup.Process) supervisor.Exit {
					c := w.s.NewClient()
					for {
						e, err := c.NextEvent(p.Ctx, external)
						if err != nil {
							return killed
						}
						if h.note(p, e); e.Type == EventShutdown {
							return supervisor.Exit{}
						}
					}
				})
				return func(c *Config, s *fakesup.Supervisor) {
					c.Function.Extensions = []string{"ext"}
					c.Settings.RuntimeShare = 0.25 // of two seconds
					s.Programs[extensionsDir+"ext"] = ext(w)
				}
			})
		})
	}
}

// partiesAtRest are those of a sandbox in its second generation, between two invocations.
func partiesAtRest(t *testing.T) (p Parties) {
	first := true
	inWorld(t, func(w *world) fakesup.Program {
		return func(p *fakesup.Process) supervisor.Exit {
			r, err := w.s.NewClient().Register(p.Ctx, Registration{Name: "inside", Events: []string{EventInvoke}})
			if err != nil {
				t.Error(err)
			}
			go func() {
				for {
					if _, err := w.s.NewClient().NextEvent(p.Ctx, r.ID); err != nil {
						return
					}
				}
			}()
			if first {
				first = false
				_, _ = w.s.NewClient().Next(p.Ctx)
				return supervisor.Exit{Code: 1}
			}
			return echo(0)(w)(p)
		}
	}, func(w *world) {
		<-w.invoke("dies").Done
		<-w.invoke("works").Done
		synctest.Wait()
		var err error
		if p, err = w.s.Parties(context.Background()); err != nil {
			t.Error(err)
		}
		w.cancel()
		<-w.s.dead
		if _, err := w.s.Parties(context.Background()); !errors.Is(err, ErrDead) {
			t.Errorf("parties of a dead sandbox: %v", err)
		}
	}, withExtension("ext", extension(bothEvents, nil)))
	return p
}

// The state of parties that are at work goes on too: the runtime gets its event once more
// (RT-26), an extension the one that has not reached it (RT-25), and neither changes.
func TestPartiesAtWork(t *testing.T) {
	for name, codec := range codecs {
		t.Run(name, func(t *testing.T) {
			id := uuid.NewString()
			event := &Event{Type: EventInvoke, Invocation: &Invocation{ID: "id", Payload: []byte("\x00payload"), TraceID: "Root=1"},
				Deadline: time.UnixMilli(1234567890123), Nonce: "nonce"}
			saved := codec(t, Parties{Generation: 7, RegistrationClosed: true, Runtime: RuntimeState{State: rtRunning, RequestID: "id", Event: event},
				Agents: []AgentState{{Name: "inside", ID: id, State: agRunning, Events: []string{EventInvoke}, ErrorType: "T", Event: event, Pending: true}}})
			inWorld(t, hangs, func(w *world) {
				synctest.Wait()
				if err := w.s.Adopt(context.Background(), saved); err != nil {
					t.Fatal(err)
				}
				again, err := w.s.Parties(context.Background())
				if err != nil {
					t.Fatal(err)
				}
				if got, want := encoded(t, again), encoded(t, saved); got != want {
					t.Errorf("believes\n%s\nwant\n%s", got, want)
				}
				c := w.s.NewClient()
				for what, next := range map[string]func() (*Event, error){
					"runtime":   func() (*Event, error) { return c.Next(context.Background()) },
					"extension": func() (*Event, error) { return c.NextEvent(context.Background(), strings.ToUpper(id)) },
				} {
					if e, err := next(); err != nil || encoded(t, e) != encoded(t, event) {
						t.Errorf("%s: %v, %v, want the event", what, e, err)
					}
				}
				if _, err := c.BeginAnswer(context.Background(), "id", AnswerHead{Nonce: "nonce"}); refused(err) != InvalidRequestID { // nobody waits for it
					t.Errorf("answer: %v", err)
				}
			})
		})
	}
}

func encoded(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// RT-53: a runtime that waits at the point of the snapshot is restored, and its hooks run,
// though its call did not come with it: it is made again before the restore or after.
func TestPartiesOfASnapshot(t *testing.T) {
	for _, early := range []bool{true, false} {
		var start chan struct{}
		var saved Parties
		inWorld(t, hooked(func(*fakesup.Process, *Client) bool { return true }), func(w *world) {
			synctest.Wait()
			var err error
			if saved, err = w.s.Parties(context.Background()); err != nil || saved.Runtime.State != rtRestoreReady {
				t.Fatalf("%+v, %v", saved, err)
			}
		}, with(snapStart))
		inWorld(t, func(w *world) fakesup.Program {
			start = make(chan struct{})
			return copied(start, hooked(func(*fakesup.Process, *Client) bool { return true })(w))(w)
		}, func(w *world) {
			synctest.Wait()
			if err := w.s.Adopt(context.Background(), codecs["json"](t, saved)); err != nil {
				t.Fatal(err)
			}
			if early {
				close(start)
				synctest.Wait()
			}
			result, _ := w.start("id", "{}")
			synctest.Wait()
			if !early {
				close(start)
			}
			if r := <-result; r.FunctionError || string(r.Payload) != "{}" {
				t.Errorf("early %v: %+v %s", early, r, r.Payload)
			}
			if err := w.s.NewClient().RestoreNext(context.Background()); refused(err) != InvalidStateTransition { // once is enough
				t.Errorf("early %v: restore/next again: %v", early, err)
			}
			w.wantStates("Initializing Idle Restoring Invoking Idle")
		}, with(snapStart))
	}
}

// What does not fit is refused, and then nothing has changed.
func TestPartiesThatDoNotFit(t *testing.T) {
	ready := RuntimeState{State: rtReady}
	ext := AgentState{Name: "ext", External: true, ID: uuid.NewString(), State: agReady}
	inside := AgentState{Name: "inside", ID: uuid.NewString(), State: agReady}
	changed := func(a AgentState, change func(*AgentState)) AgentState { change(&a); return a }
	inWorld(t, hangs, func(w *world) {
		synctest.Wait()
		before, err := w.s.Parties(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		for want, p := range map[string]Parties{
			`"" is not a state`:         {Agents: []AgentState{ext}},
			`"Sleeping" is not a state`: {Runtime: RuntimeState{State: "Sleeping"}, Agents: []AgentState{ext}},
			"without an invocation":     {Runtime: RuntimeState{State: rtRunning, Event: &Event{}}, Agents: []AgentState{ext}},
			"launched 1 extensions":     {Runtime: ready},
			"has no process":            {Runtime: ready, Agents: []AgentState{ext, changed(ext, func(a *AgentState) { a.Name, a.ID = "other", "" })}},
			"process only in this":      {Runtime: ready, Agents: []AgentState{changed(ext, func(a *AgentState) { a.External = false })}},
			`name "in`:                  {Runtime: ready, Agents: []AgentState{ext, inside, inside}},
			`"Dozing" is not a state`:   {Runtime: ready, Agents: []AgentState{changed(ext, func(a *AgentState) { a.State = "Dozing" })}},
			`identifier "x" is invalid`: {Runtime: ready, Agents: []AgentState{changed(ext, func(a *AgentState) { a.ID = "x" })}},
			"invalid or not unique":     {Runtime: ready, Agents: []AgentState{ext, changed(inside, func(a *AgentState) { a.ID = ext.ID })}},
			"event is missing":          {Runtime: ready, Agents: []AgentState{changed(ext, func(a *AgentState) { a.Pending = true })}},
		} {
			if err := w.s.Adopt(context.Background(), p); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%+v: %v, want %s", p, err, want)
			}
		}
		after, err := w.s.Parties(context.Background())
		if err != nil || encoded(t, after) != encoded(t, before) {
			t.Errorf("%+v, %v; want %+v", after, err, before)
		}
		if err := w.s.Adopt(context.Background(), Parties{Generation: 9, Runtime: ready, Agents: []AgentState{ext, inside}}); err != nil {
			t.Fatal(err)
		}
		w.wantStates("Initializing Idle")
		if err := w.s.Adopt(context.Background(), Parties{Runtime: ready}); err == nil || !strings.Contains(err.Error(), "Idle instead of Initializing") {
			t.Errorf("Idle: %v", err)
		}
	}, withExtension("ext", hangs), with(func(c *Config, _ *fakesup.Supervisor) { c.Settings.ExternalWindow = 0 }))
}
