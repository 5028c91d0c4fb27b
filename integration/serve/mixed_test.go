//go:build integration

package serve

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// Functions in four languages under mixed load: clients invoke them and check each answer,
// others update code and settings or make and delete functions, while processes die, the daemon
// is started again and the disk is full. No acknowledged change may be lost, no answer may be
// another caller's or of a version that did not serve then, and nothing may be left.
//
// Code and settings of a function are numbered. Each answer has both numbers, the function's
// name and the nonce of the request.

// echoes are the functions' programs by language. Each does what integration/echo does.
func echoes(t *testing.T) map[string]string {
	t.Helper()
	programs := map[string]string{
		"go": string(harness.ReadFile(t, filepath.Join(harness.Testbin, "echo"))),
		"shell": `#!/bin/bash
api=http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime/invocation
code=$(<marker)
while :; do
	id=$(curl -sS -D - -o /tmp/event "$api/next" | tr -d '\r' | sed -n 's/^Lambda-Runtime-Aws-Request-Id: //Ip')
	nonce=$(sed 's/.*"nonce": *"\([0-9a-z-]*\)".*/\1/' /tmp/event)
	curl -sS -o /dev/null -d "{\"code\":\"$code\",\"setting\":\"$SETTING\",\"nonce\":\"$nonce\"}" "$api/$id/response"
done
`,
		"python": `#!/usr/bin/python3
import http.client, json, os
code = open("marker").read()
api = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
while True:
    api.request("GET", "/2018-06-01/runtime/invocation/next")
    event = api.getresponse()
    nonce = json.load(event)["nonce"]
    answer = json.dumps({"code": code, "setting": os.environ["SETTING"], "nonce": nonce})
    api.request("POST", "/2018-06-01/runtime/invocation/" + event.headers["Lambda-Runtime-Aws-Request-Id"] + "/response", answer)
    api.getresponse().read()
`,
		"node": `#!/usr/bin/node
const code = require('fs').readFileSync('marker', 'utf8');
const api = 'http://' + process.env.AWS_LAMBDA_RUNTIME_API + '/2018-06-01/runtime/invocation/';
(async () => {
  for (;;) {
    const event = await fetch(api + 'next');
    const { nonce } = await event.json();
    const body = JSON.stringify({ code, setting: process.env.SETTING, nonce });
    await (await fetch(api + event.headers.get('Lambda-Runtime-Aws-Request-Id') + '/response', { method: 'POST', body })).text();
  }
})();
`,
	}
	for language, text := range programs { // those of interpreters that this host lacks
		if path, ok := strings.CutPrefix(strings.SplitN(text, "\n", 2)[0], "#!"); ok && !harness.Exists(path) {
			t.Logf("there is no %s: its functions are in the other languages", path)
			delete(programs, language)
		}
	}
	return programs
}

// versions are those of a function's code or setting. Numbers grow.
type versions struct {
	confirmed atomic.Int64 // was readable as in force
	sent      atomic.Int64 // may be in force
}

// subject is a function under load. One goroutine changes it.
type subject struct {
	name, program string
	code, setting versions
	answers       atomic.Int64
}

func (s *subject) marker(version int64) string { return fmt.Sprintf("%s-%d", s.name, version) }

func (s *subject) zip(t *testing.T, version int64) []byte {
	return zipOf(t, map[string]string{"bootstrap": s.program, "marker": s.marker(version)})
}

// mixed is the load, and what it has seen.
type mixed struct {
	t        *testing.T
	ctx      context.Context
	began    time.Time
	key      accessKey
	http     *http.Client
	addr     atomic.Pointer[string]
	subjects []*subject

	// storms is odd while a process is missing: what fails then, or overlaps with it,
	// may fail for it.
	storms    atomic.Int64
	disk      atomic.Int32 // how full it is: enough, low or full
	answers   atomic.Int64 // that were right
	updates   atomic.Int64 // that were confirmed
	busy      atomic.Int64 // answers that there is no room for more sandboxes now
	excused   atomic.Int64 // requests that failed in a storm
	refused   atomic.Int64 // changes for which the disk had no room
	churned   atomic.Int64 // functions that were made, invoked and deleted
	complains atomic.Int64
}

// How full the disk is. When it is low, code is refused and functions go on; when it is full, a
// sandbox that is running goes on.
const (
	enough = iota
	low
	full
)

// complain fails the test, with the first few reasons.
func (m *mixed) complain(format string, args ...any) {
	if m.complains.Add(1) <= 20 {
		m.t.Errorf(format, args...)
	}
}

func (m *mixed) client() *lambda.Client {
	return lambda.New(lambda.Options{
		Region: "us-east-1", BaseEndpoint: aws.String("http://" + *m.addr.Load()), RetryMaxAttempts: 1, HTTPClient: m.http,
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: m.key.id, SecretAccessKey: m.key.secret}, nil
		}),
	})
}

// outcome is what became of a request.
type outcome int

const (
	done     outcome = iota
	again            // it failed for a reason that passes
	conflict         // another change is on its way
	missing          // there is no such function
)

// do sends a request and judges its error.
func (m *mixed) do(what string, isChange bool, request func(*lambda.Client) error) outcome {
	before, disk := m.storms.Load(), m.disk.Load()
	err := request(m.client())
	after := m.storms.Load()
	disk = max(disk, m.disk.Load())
	switch code(err) {
	case code(nil):
		return done
	case "TooManyRequestsException":
		m.busy.Add(1)
		return again
	case "ResourceConflictException":
		return conflict
	case "ResourceNotFoundException":
		return missing
	}
	var answer *awshttp.ResponseError
	answered := errors.As(err, &answer) && answer.Response != nil && answer.HTTPStatusCode() != 0
	unavailable := answered && answer.HTTPStatusCode() >= http.StatusInternalServerError
	stormy := before%2 == 1 || after != before
	switch {
	case m.ctx.Err() != nil:
	case isChange && disk >= low && unavailable:
		m.refused.Add(1)
	case disk == full && unavailable, stormy && (!answered || unavailable):
		m.excused.Add(1)
	default:
		m.complain("%s: %v", what, err)
	}
	return again
}

// pause lets others do something before a request is sent again.
func (m *mixed) pause() bool {
	select {
	case <-m.ctx.Done():
		return false
	case <-time.After(20 * time.Millisecond):
		return true
	}
}

var nonces atomic.Int64

// invoke invokes a function and checks the answer. It reports whether there was one.
func (m *mixed) invoke(s *subject) bool {
	nonce := fmt.Sprintf("%s-%d", s.name, nonces.Add(1))
	code, setting := s.code.confirmed.Load(), s.setting.confirmed.Load()
	var out *lambda.InvokeOutput
	if m.do("invoke "+s.name, false, func(c *lambda.Client) (err error) {
		out, err = c.Invoke(m.ctx, &lambda.InvokeInput{FunctionName: &s.name, Payload: fmt.Appendf(nil, `{"nonce":%q}`, nonce)})
		return err
	}) != done {
		return false
	}
	var got struct{ Code, Setting, Nonce string }
	if err := json.Unmarshal(out.Payload, &got); err != nil || out.FunctionError != nil {
		m.complain("%s answers %s, %v (%s)", s.name, out.Payload, err, aws.ToString(out.FunctionError))
		return false
	}
	if got.Nonce != nonce {
		m.complain("the answer to %s is that to %s", nonce, got.Nonce)
	}
	m.wantVersion(s, "code", got.Code, code, s.code.sent.Load())
	m.wantVersion(s, "setting", got.Setting, setting, s.setting.sent.Load())
	m.answers.Add(1)
	s.answers.Add(1)
	return true
}

// answer invokes a function until it answers.
func (m *mixed) answer(s *subject) {
	for m.ctx.Err() == nil && m.complains.Load() == 0 && !m.invoke(s) {
		m.pause()
	}
}

var markerForm = regexp.MustCompile(`^(.*)-(\d+)$`)

// wantVersion wants that an answer's version was in force at some moment of the request.
func (m *mixed) wantVersion(s *subject, what, got string, lowest, highest int64) {
	var version int64
	parts := markerForm.FindStringSubmatch(got)
	if parts != nil {
		_, _ = fmt.Sscan(parts[2], &version)
	}
	if parts == nil || parts[1] != s.name || version < lowest || version > highest {
		m.complain("%s answers with the %s %q; from %d to %d were in force", s.name, what, got, lowest, highest)
	}
}

// settled returns the configuration of a function when no change of it is on its way. Without
// an answer in a storm it goes on asking; nil is the end of the test, or no such function.
func (m *mixed) settled(name string) *lambda.GetFunctionConfigurationOutput {
	for {
		var out *lambda.GetFunctionConfigurationOutput
		switch m.do("get "+name, false, func(c *lambda.Client) (err error) {
			out, err = c.GetFunctionConfiguration(m.ctx, &lambda.GetFunctionConfigurationInput{FunctionName: &name})
			return err
		}) {
		case done:
			if out.State == types.StateFailed || out.LastUpdateStatus == types.LastUpdateStatusFailed {
				m.complain("%s: %s %s, %s %s", name, out.State, aws.ToString(out.StateReason), out.LastUpdateStatus, aws.ToString(out.LastUpdateStatusReason))
			}
			if out.State != types.StatePending && out.LastUpdateStatus != types.LastUpdateStatusInProgress {
				return out
			}
		case missing:
			return nil
		}
		if !m.pause() {
			return nil
		}
	}
}

// change sends a change until it is in force. It wants that one that was acknowledged is.
func (m *mixed) change(what, name string, send func(*lambda.Client) error, isThere func(*lambda.GetFunctionConfigurationOutput) bool) bool {
	for m.ctx.Err() == nil {
		sent := m.do(what, true, send)
		out := m.settled(name)
		switch {
		case m.ctx.Err() != nil:
		case out != nil && isThere(out):
			m.updates.Add(1)
			return true
		case sent == done:
			m.complain("%s was acknowledged and is lost: %+v", what, out)
			return false
		case sent == missing:
			m.complain("%s: there is no function %s", what, name)
			return false
		}
		m.pause()
	}
	return false
}

func (m *mixed) updateCode(s *subject) {
	version := s.code.confirmed.Load() + 1
	body := s.zip(m.t, version)
	s.code.sent.Store(version)
	if m.change("code "+s.marker(version), s.name, func(c *lambda.Client) error {
		_, err := c.UpdateFunctionCode(m.ctx, &lambda.UpdateFunctionCodeInput{FunctionName: &s.name, ZipFile: body})
		return err
	}, hasCode(body)) {
		s.code.confirmed.Store(version)
	}
}

func (m *mixed) updateSetting(s *subject) {
	version := s.setting.confirmed.Load() + 1
	marker := s.marker(version)
	s.setting.sent.Store(version)
	if m.change("setting "+marker, s.name, func(c *lambda.Client) error {
		_, err := c.UpdateFunctionConfiguration(m.ctx, &lambda.UpdateFunctionConfigurationInput{
			FunctionName: &s.name, Description: &marker, Environment: &types.Environment{Variables: map[string]string{"SETTING": marker}},
		})
		return err
	}, hasSetting(marker)) {
		s.setting.confirmed.Store(version)
	}
}

func hasCode(body []byte) func(*lambda.GetFunctionConfigurationOutput) bool {
	sum := sha256.Sum256(body)
	want := base64.StdEncoding.EncodeToString(sum[:])
	return func(c *lambda.GetFunctionConfigurationOutput) bool { return aws.ToString(c.CodeSha256) == want }
}

func hasSetting(marker string) func(*lambda.GetFunctionConfigurationOutput) bool {
	return func(c *lambda.GetFunctionConfigurationOutput) bool {
		return aws.ToString(c.Description) == marker && c.Environment != nil && c.Environment.Variables["SETTING"] == marker
	}
}

// create makes a function with its first code and setting.
func (m *mixed) create(s *subject) bool {
	body, marker := s.zip(m.t, 1), s.marker(1)
	s.code.sent.Store(1)
	s.setting.sent.Store(1)
	made := m.change("create "+s.name, s.name, func(c *lambda.Client) error {
		_, err := c.CreateFunction(m.ctx, &lambda.CreateFunctionInput{
			FunctionName: &s.name, Runtime: types.RuntimeProvidedal2023, Handler: aws.String("x"), Role: aws.String("arn:aws:iam::000000000000:role/none"),
			Timeout: aws.Int32(120), MemorySize: aws.Int32(1024), Code: &types.FunctionCode{ZipFile: body},
			Description: &marker, Environment: &types.Environment{Variables: map[string]string{"SETTING": marker}},
		})
		return err
	}, hasSetting(marker))
	if made {
		s.code.confirmed.Store(1)
		s.setting.confirmed.Store(1)
	}
	return made
}

// delete deletes a function, and wants it to be gone.
func (m *mixed) delete(s *subject) {
	for m.ctx.Err() == nil {
		deleted := m.do("delete "+s.name, true, func(c *lambda.Client) error {
			_, err := c.DeleteFunction(m.ctx, &lambda.DeleteFunctionInput{FunctionName: &s.name})
			return err
		})
		if out := m.settled(s.name); out == nil {
			return
		} else if deleted == done && m.ctx.Err() == nil {
			m.complain("the function %s was deleted and is there: %+v", s.name, out)
			return
		}
		m.pause()
	}
}

// load invokes and changes functions until the function that it returns is called.
func (m *mixed) load() (stop func()) {
	var wg sync.WaitGroup
	var over atomic.Bool
	var turn atomic.Int64
	for range 6 {
		wg.Go(func() {
			for !over.Load() && m.ctx.Err() == nil {
				if !m.invoke(m.subjects[int(turn.Add(1))%len(m.subjects)]) {
					m.pause()
				}
			}
		})
	}
	const changers = 2
	for i := range changers {
		wg.Go(func() {
			for !over.Load() && m.ctx.Err() == nil {
				s := m.subjects[rand.IntN(len(m.subjects)/changers)*changers+i]
				if rand.IntN(2) == 0 {
					m.updateCode(s)
				} else {
					m.updateSetting(s)
				}
				m.answer(s) // by what was confirmed, at least
			}
		})
	}
	wg.Go(func() {
		for n := 0; !over.Load() && m.ctx.Err() == nil; n++ {
			s := &subject{name: fmt.Sprintf("churn%d", n%3), program: m.subjects[n%len(m.subjects)].program}
			if !m.create(s) {
				continue
			}
			m.answer(s)
			m.delete(s)
			m.churned.Add(1)
		}
	})
	return func() {
		over.Store(true)
		wg.Wait()
	}
}

// progress waits until there are more answers and changes.
func (m *mixed) progress(answers, updates int64) {
	m.t.Helper()
	answers, updates = m.answers.Load()+answers, m.updates.Load()+updates
	harness.Eventually(m.t, 2*harness.Patience, func() string {
		if a, u := m.answers.Load(), m.updates.Load(); (a < answers || u < updates) && m.complains.Load() == 0 {
			return fmt.Sprintf("%d answers of %d, %d updates of %d", a, answers, u, updates)
		}
		return ""
	})
}

// storm kills something and starts it again, or waits for that.
func (m *mixed) storm(what string, kill func()) {
	m.t.Helper()
	m.storms.Add(1)
	kill()
	m.flush()
	m.storms.Add(1)
	m.after(what)
}

// note logs what the test has come to, and when.
func (m *mixed) note(format string, args ...any) {
	m.t.Helper()
	m.t.Logf("%v: %s", time.Since(m.began).Round(time.Millisecond), fmt.Sprintf(format, args...))
}

// flush waits for some answers. A request that came when all was mended may still get the error
// of one that was before it: it waits for the same sandbox.
func (m *mixed) flush() {
	m.t.Helper()
	m.progress(12, 0)
}

// each is how many answers there are when each function has answered once.
func (m *mixed) each() int64 { return int64(len(m.subjects)) }

// after wants that the load goes on.
func (m *mixed) after(what string) {
	m.t.Helper()
	m.progress(m.each(), 3)
	m.note("after %s: %d answers, %d busy, %d changes, %d refused for the disk, %d functions made and deleted, %d requests failed", what,
		m.answers.Load(), m.busy.Load(), m.updates.Load(), m.refused.Load(), m.churned.Load(), m.excused.Load())
}

// process returns the daemon's process with a name, which is not old.
func (d *keyed) process(name string, old int) (pid int) {
	d.T.Helper()
	harness.Eventually(d.T, harness.Patience, func() string {
		for _, p := range d.Descendants() {
			if p.Parent == d.Cmd.Process.Pid && harness.Command(p.PID) == name && p.PID != old && p.Alive() {
				pid = p.PID
				return ""
			}
		}
		return "there is no " + name
	})
	return pid
}

// usable waits until both processes do their work.
func (m *mixed) usable(d *keyed) {
	m.t.Helper()
	harness.Eventually(m.t, harness.Patience, func() string {
		if _, err := d.operator("/ready"); err != nil {
			return err.Error()
		}
		c := m.client()
		if _, err := c.ListFunctions(m.ctx, &lambda.ListFunctionsInput{}); err != nil {
			return err.Error()
		}
		// One that has nothing to answer with: the worker knows no more of it than control says.
		if got := invoke(m.ctx, c, "nobody"); got != "ResourceNotFoundException" {
			return got
		}
		return ""
	})
}

// kill kills a process of the daemon and waits for its successor.
func (m *mixed) kill(d *keyed, name string) {
	m.t.Helper()
	pid := d.process(name, 0)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		m.t.Fatal(err)
	}
	d.process(name, pid)
	m.usable(d)
}

// fill fills a disk but for some bytes, or all of it.
func (m *mixed) fill(disk string, left int64) {
	m.t.Helper()
	file, err := os.OpenFile(filepath.Join(disk, "filler"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		m.t.Fatal(err)
	}
	defer file.Close()
	for block := make([]byte, 1<<20); len(block) > 0; {
		var st unix.Statfs_t
		if err := unix.Statfs(disk, &st); err != nil {
			m.t.Fatal(err)
		}
		if int64(st.Bavail)*st.Bsize <= left {
			return
		}
		if _, err = file.Write(block); errors.Is(err, syscall.ENOSPC) {
			block = block[:len(block)/2]
		} else if err != nil {
			m.t.Fatal(err)
		}
	}
}

// fullDisk has the disk of the state folder low on space, then full, then as it was.
func (m *mixed) fullDisk(d *keyed, disk string) {
	m.t.Helper()
	goOn := func(wanted int64) {
		m.t.Helper()
		refused, answers := m.refused.Load(), m.answers.Load()
		harness.Eventually(m.t, 2*harness.Patience, func() string { // functions go on, and changes are refused
			if a, r := m.answers.Load()-answers, m.refused.Load()-refused; (a < wanted || r < 4) && m.complains.Load() == 0 {
				return fmt.Sprintf("%d answers and %d refused changes", a, r)
			}
			return ""
		})
	}
	m.disk.Store(low)
	m.fill(disk, 64<<20) // less than free-space
	goOn(m.each())
	m.disk.Store(full)
	m.fill(disk, 0)
	goOn(0)
	if err := os.Remove(filepath.Join(disk, "filler")); err != nil {
		m.t.Fatal(err)
	}
	m.usable(d)
	m.flush()
	m.disk.Store(enough)
}

// smallDisk gives the folders a disk of their own for the state. The mount point is above the
// folder, because other daemons of the host inherit the mount.
func smallDisk(t *testing.T, f harness.Folders, size string) (_ harness.Folders, disk string) {
	t.Helper()
	disk = filepath.Join(filepath.Dir(f.State), "disk")
	if err := os.Mkdir(disk, 0o711); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "mode=0711,size="+size); err != nil {
		t.Fatal(err)
	}
	f.State = filepath.Join(disk, "state")
	t.Cleanup(func() {
		harness.WantNothingLeft(t, f.State)
		if err := unix.Unmount(disk, 0); err != nil {
			t.Errorf("unmount %s: %v", disk, err)
		}
	})
	return f, disk
}

// openFiles counts what the daemon's processes have open, by kind.
func (d *keyed) openFiles() map[string]int {
	d.T.Helper()
	count := d.FDs()
	digits := regexp.MustCompile(`[0-9]+`)
	for _, target := range harness.Descriptors(d.T, d.process("sandboxd-control", 0)) {
		count["control: "+digits.ReplaceAllString(target, "N")]++
	}
	return count
}

// TestMixedLoad is one round. SERVE_ROUNDS makes it more, as `make serve-load` does: each has the three deaths, a full disk and a
// restart.
func TestMixedLoad(t *testing.T) {
	rounds := 1
	if text := os.Getenv("SERVE_ROUNDS"); text != "" {
		if _, err := fmt.Sscan(text, &rounds); err != nil {
			t.Fatalf("SERVE_ROUNDS: %v", err)
		}
	}
	programs := echoes(t)
	f, disk := smallDisk(t, harness.NewFolders(t), "512m")
	config := harness.Config(t, "free-space: 96\n")
	start := func() *keyed { return serveKeyed(t, f, "--concurrency=12", config) }
	d := start()
	m := &mixed{t: t, ctx: t.Context(), began: time.Now(), key: d.first(), http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}}}
	defer m.http.CloseIdleConnections()
	m.addr.Store(&d.Addr)
	m.usable(d)
	languages := slices.Sorted(maps.Keys(programs))
	for _, language := range languages { // what is opened at the first use stays open
		s := &subject{name: "first-" + language, program: programs[language]}
		m.create(s)
		m.answer(s)
		m.delete(s)
	}
	d.WaitEmpty()
	m.http.CloseIdleConnections()
	before := m.held(d)
	for i := range max(4, harness.Rounds(t, 24)) {
		language := languages[i%len(languages)]
		s := &subject{name: fmt.Sprintf("%s%d", language, i), program: programs[language]}
		m.subjects = append(m.subjects, s)
		if !m.create(s) {
			t.FailNow()
		}
	}

	m.note("all functions are there")
	stop := m.load()
	ended := false
	defer func() {
		if !ended {
			stop()
		}
	}()
	m.progress(2*m.each(), 3)
	for range rounds {
		m.storm("the death of control", func() { m.kill(d, "sandboxd-control") })
		m.storm("the death of the worker", func() { m.kill(d, "sandboxd-worker") })
		m.fullDisk(d, disk)
		m.after("a full disk")
		m.storm("the death of the daemon", func() {
			d.Crash()
			d = start()
			m.addr.Store(&d.Addr)
			m.usable(d)
		})
		m.storm("a restart", func() {
			d.Stop()
			d = start()
			m.addr.Store(&d.Addr)
			m.usable(d)
		})
	}
	stop()
	ended = true

	m.note("the load has ended")
	// All is as it was acknowledged, and answers.
	for _, s := range m.subjects {
		out := m.settled(s.name)
		if out == nil || !hasCode(s.zip(t, s.code.confirmed.Load()))(out) || !hasSetting(s.marker(s.setting.confirmed.Load()))(out) {
			t.Errorf("%s with code %d and setting %d is %+v", s.name, s.code.confirmed.Load(), s.setting.confirmed.Load(), out)
		}
		m.answer(s)
		if s.answers.Load() < 2 {
			t.Errorf("%s has answered %d times", s.name, s.answers.Load())
		}
	}
	for _, s := range m.subjects {
		m.delete(s)
	}
	out, err := m.client().ListFunctions(t.Context(), &lambda.ListFunctionsInput{})
	if err != nil || len(out.Functions) > 0 {
		t.Errorf("after all were deleted: %+v, %v", out, err)
	}
	m.note("all functions are deleted")
	pooled := idleConnections // of which each is closed after a minute
	if rounds > 1 {
		pooled = 0
	}
	m.wantNothing(d, before, pooled)
}

// held counts what a daemon without sandboxes has, by kind.
func (m *mixed) held(d *keyed) map[string]int {
	m.t.Helper()
	count := d.openFiles()
	count["leases"] = len(harness.Leases(m.t, func(owner string) bool { return strings.Contains(owner, d.Instance) }))
	scratch, err := os.ReadDir(filepath.Join(d.Folders.Run, d.Instance, "scratch"))
	if err != nil {
		m.t.Fatal(err)
	}
	count["scratch"] = len(scratch)
	for _, dir := range harness.Cgroups(m.t) {
		if strings.Contains(dir, d.Instance) {
			count["cgroups"]++
		}
	}
	return count
}

// idleConnections is how many connections between its processes a daemon keeps for a while.
const idleConnections = 24

// wantNothing wants that the daemon has nothing of functions that were deleted.
func (m *mixed) wantNothing(d *keyed, before map[string]int, pooled int) {
	t := m.t
	t.Helper()
	d.WaitEmpty()
	m.note("there is no sandbox")
	m.http.CloseIdleConnections()
	harness.Eventually(t, harness.Patience, func() string {
		held := m.held(d)
		maps.DeleteFunc(held, func(kind string, n int) bool {
			most := max(before[kind], before[strings.TrimSuffix(kind, "-wal")]) // a connection of the store opens the log when it needs it
			if strings.HasSuffix(kind, "socket:[N]") {
				most += pooled
			}
			return n <= most
		})
		if len(held) > 0 {
			return fmt.Sprintf("it has %v, and had %v", held, before)
		}
		return ""
	})
	m.note("it has nothing that it did not have before")
	if out, err := exec.Command(harness.Sandboxd, "prune", "--state-dir", d.Folders.State).CombinedOutput(); err != nil {
		t.Errorf("prune: %v: %s", err, out)
	}
	trees, err := os.ReadDir(filepath.Join(d.Folders.State, "packages", "sha256"))
	if err != nil || len(trees) > 1 { // the template of /tmp
		t.Errorf("%d trees, %v", len(trees), err)
	}
}
