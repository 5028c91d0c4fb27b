package suite

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/sandboxd/sandboxd/bench/load"
	"github.com/sandboxd/sandboxd/bench/result"
)

const (
	manyFunctions = 10000 // of the rows about many
	fewFunctions  = 100   // of the page to compare with, and those that are warm in turn
	pageSize      = 50    // functions of a page of ListFunctions: AWS's largest
)

// api is the Lambda API of a `sandboxd serve`, with its first access key.
type api struct {
	*server
	state  string
	key    aws.Credentials
	caller aws.Credentials // may invoke and nothing else
	http   *http.Client
}

var accessKey = regexp.MustCompile(`AWS_ACCESS_KEY_ID=(\S+) AWS_SECRET_ACCESS_KEY=(\S+)`)

// startServe runs `sandboxd serve` on the folder state, and waits until its API answers.
func (s *suite) startServe(ctx context.Context, state string, args ...string) (_ *api, err error) {
	p, err := s.start(ctx, "serve", s.cfg.Programs.Sandboxd, func(addr, dir string) []string {
		return append([]string{"serve", "--listen", addr, "--run-dir", filepath.Join(dir, "run"), "--state-dir", state,
			"--region", "us-east-1", "--log-level", "warn"}, args...)
	})
	if err != nil {
		return nil, err
	}
	a := &api{server: p, state: state, http: &http.Client{Transport: &http.Transport{}, Timeout: patience}}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.stop())
		}
	}()
	if err := a.answers(ctx); err != nil {
		return nil, err
	}
	return a, nil
}

// makeCaller makes the access key that may only invoke.
func (s *suite) makeCaller(ctx context.Context, a *api) error {
	text, err := s.command(ctx, a.server, "key", "create", "--invoke", "*")
	if err != nil {
		return err
	}
	a.caller, err = parseKey(text)
	return err
}

// parseKey finds an access key in a text.
func parseKey(text []byte) (aws.Credentials, error) {
	m := accessKey.FindSubmatch(text)
	if m == nil {
		return aws.Credentials{}, errors.New("there is no access key in the text")
	}
	return aws.Credentials{AccessKeyID: string(m[1]), SecretAccessKey: string(m[2])}, nil
}

// findKey reads the first access key, which the first start makes.
func (a *api) findKey() error {
	text, err := os.ReadFile(filepath.Join(a.state, "first-key"))
	if err != nil {
		return err
	}
	a.key, err = parseKey(text)
	return err
}

// answers waits until the API answers, which may be refused before.
func (a *api) answers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := a.findKey()
		if err == nil {
			if _, err = a.list(ctx); err == nil {
				return nil
			}
		}
		if pause(ctx, time.Millisecond) != nil {
			return fmt.Errorf("the API does not answer: %w; log:\n%s", err, a.log())
		}
	}
}

func (a *api) stop() error {
	if a == nil {
		return nil
	}
	a.http.CloseIdleConnections()
	return a.server.stop()
}

// sign returns the headers that sign a request.
func (a *api) sign(ctx context.Context, key aws.Credentials, method, target string, body []byte) (http.Header, error) {
	r, err := http.NewRequestWithContext(ctx, method, target, nil)
	if err != nil {
		return nil, err
	}
	hash := sha256.Sum256(body)
	text := hex.EncodeToString(hash[:])
	r.Header.Set("X-Amz-Content-Sha256", text)
	if err := v4.NewSigner().SignHTTP(ctx, key, r, text, "lambda", "us-east-1", time.Now()); err != nil {
		return nil, err
	}
	return r.Header, nil
}

// call makes a request of the API and returns its answer, whose status must be a success.
func (a *api) call(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	target := "http://" + a.url.Host + path
	header, err := a.sign(ctx, a.key, method, target, body)
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header = header
	res, err := a.http.Do(r)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode/100 != 2 {
		err = fmt.Errorf("%s %s: %s: %.300s", method, path, res.Status, text)
	}
	return text, err
}

const functionsPath = "/2015-03-31/functions/"

// list asks for the first page of functions.
func (a *api) list(ctx context.Context) ([]byte, error) {
	return a.call(ctx, http.MethodGet, fmt.Sprintf("%s?MaxItems=%d", functionsPath, pageSize), nil)
}

// create makes a function of a zip, and waits until it is active if it is to be invoked.
func (a *api) create(ctx context.Context, name string, code []byte, memoryMB int, wait bool) error {
	body, err := json.Marshal(map[string]any{
		"FunctionName": name, "Runtime": "provided.al2023", "Handler": "x", "Role": "arn:aws:iam::000000000000:role/none",
		"MemorySize": memoryMB, "Timeout": 60, "Code": map[string]any{"ZipFile": code},
	})
	if err != nil {
		return err
	}
	if _, err := a.call(ctx, http.MethodPost, functionsPath, body); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for wait {
		text, err := a.call(ctx, http.MethodGet, functionsPath+name+"/configuration", nil)
		if err != nil {
			return err
		}
		var f struct{ State string }
		if err := json.Unmarshal(text, &f); err != nil {
			return err
		}
		if f.State == "Active" {
			return nil
		}
		if err := pause(ctx, time.Millisecond); err != nil {
			return fmt.Errorf("function %s is %s: %w", name, f.State, err)
		}
	}
	return nil
}

// at is where a function is invoked.
func (a *api) at(name string) *url.URL {
	u := *a.url
	u.Path = functionsPath + name + "/invocations"
	return &u
}

// invocation returns what load sends: the URL of a function and the headers that sign an
// event, which hold for some minutes.
func (a *api) invocation(ctx context.Context, key aws.Credentials, name string, body []byte) (load.Config, error) {
	u := a.at(name)
	header, err := a.sign(ctx, key, http.MethodPost, u.String(), body)
	return load.Config{URL: u, Header: header, Body: body}, err
}

// zipOf returns a zip with one executable file bootstrap.
func zipOf(bootstrap []byte) ([]byte, error) {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	h := &zip.FileHeader{Name: "bootstrap", Method: zip.Deflate}
	h.SetMode(0o755)
	w, err := z.CreateHeader(h)
	if err == nil {
		_, err = w.Write(bootstrap)
	}
	err = errors.Join(err, z.Close())
	return b.Bytes(), err
}

// benchFunction is the benchmark's function as a package.
func (s *suite) benchFunction() ([]byte, error) {
	program, err := os.ReadFile(filepath.Join(s.cfg.Programs.Function, "bootstrap"))
	if err != nil {
		return nil, err
	}
	return zipOf(program)
}

// newState makes a state folder.
func (s *suite) newState(name string) (string, error) {
	dir, err := os.MkdirTemp(s.dir, name)
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o711)
}

// serve measures P10 to P12 and P16: what `serve` costs beside `run`, of one function.
func (s *suite) serve(ctx context.Context) (err error) {
	code, err := s.benchFunction()
	if err != nil {
		return err
	}
	state, err := s.newState("one")
	if err != nil {
		return err
	}
	served, err := s.startServe(ctx, state, "--pool=0")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, served.stop()) }()
	if err := s.makeCaller(ctx, served); err != nil {
		return err
	}
	if err := served.create(ctx, "function", code, 1769, true); err != nil {
		return err
	}
	run, err := s.startSandboxd(ctx, "--concurrency=1", "--provisioned=1", "--pool=0")
	if err != nil {
		return err
	}
	defer stopAll(&err, run)
	for what, size := range map[string]int{result.WarmSmall: 1 << 10, result.WarmLarge: 6 << 20} {
		body := []byte(`"` + strings.Repeat("x", size-2) + `"`)
		for round := range s.rounds(20) {
			for i := range 3 {
				cfg, name := load.Config{URL: run.url, Body: body}, result.Run
				switch (i + round) % 3 {
				case 1:
					name = result.Serve
					cfg, err = served.invocation(ctx, served.caller, "function", body)
				case 2:
					name = result.ServeAdmin
					cfg, err = served.invocation(ctx, served.key, "function", body)
				}
				if err != nil {
					return err
				}
				cfg.Warmup, cfg.Requests = 3, max(200>>(size>>19), 3)
				r, err := load.Run(ctx, cfg)
				if err = errors.Join(err, r.Err); err != nil {
					return fmt.Errorf("%s, %s: %w", what, name, err)
				}
				s.add(what, name, r.Latencies...)
			}
		}
	}
	return s.serveCold(ctx, served, code)
}

// serveCold measures P11: first invocations of functions, in turn with those of tenants of run.
func (s *suite) serveCold(ctx context.Context, served *api, code []byte) (err error) {
	n := s.rounds(coldBlock)
	run, err := s.startSandboxd(ctx, "--tenant-isolation", fmt.Sprintf("--concurrency=%d", n), "--pool=0")
	if err != nil {
		return err
	}
	defer stopAll(&err, run)
	for i := range n {
		name := fmt.Sprint("cold-", i)
		if err := served.create(ctx, name, code, 1769, true); err != nil {
			return err
		}
		ask := func(subject string) error {
			if subject == result.Run {
				c, err := coldStart(ctx, run, name)
				if err == nil {
					s.add(result.ColdTotal, result.Run, c.total)
				}
				return err
			}
			cfg, err := served.invocation(ctx, served.caller, name, event)
			if err != nil {
				return err
			}
			took, err := once(ctx, cfg)
			if err == nil {
				s.add(result.ColdTotal, result.Serve, took)
			}
			return err
		}
		order := []string{result.Run, result.Serve}
		if i%2 == 1 {
			order = []string{result.Serve, result.Run}
		}
		for _, subject := range order {
			if err := ask(subject); err != nil {
				return fmt.Errorf("cold start of %s: %w", subject, err)
			}
		}
	}
	return nil
}

// once sends one request on a connection that is there.
func once(ctx context.Context, cfg load.Config) (time.Duration, error) {
	client := load.NewClient(cfg.URL, patience)
	defer client.Close()
	if err := client.Connect(ctx); err != nil {
		return 0, err
	}
	request, err := client.Request(cfg.Body, cfg.Header)
	if err != nil {
		return 0, err
	}
	a, err := client.Send(ctx, request)
	if err == nil {
		err = a.Fault()
	}
	return a.Took, err
}

// functions measures P12 to P15: many functions.
func (s *suite) functions(ctx context.Context) (err error) {
	few, err := s.newState("few")
	if err != nil {
		return err
	}
	many, err := s.newState("many")
	if err != nil {
		return err
	}
	n := max(manyFunctions/max(s.cfg.Share, 1), 2*fewFunctions)
	if err := s.fill(ctx, few, fewFunctions); err != nil {
		return err
	}
	if err := s.fill(ctx, many, n); err != nil {
		return err
	}
	for round := range s.rounds(5) {
		empty, err := s.newState("empty")
		if err != nil {
			return err
		}
		for i := range 2 {
			state, name := empty, result.NoFunctions
			if (i+round)%2 == 0 {
				state, name = many, result.ManyFunctions
			}
			began := time.Now()
			a, err := s.startServe(ctx, state, "--pool=0")
			if err != nil {
				return err
			}
			s.add(result.Start, name, time.Since(began))
			if err := a.stop(); err != nil {
				return err
			}
		}
	}
	a, err := s.startServe(ctx, few, "--pool=0")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.stop()) }()
	b, err := s.startServe(ctx, many, "--pool=0")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.stop()) }()
	for range s.rounds(200) {
		for _, l := range []struct {
			name string
			*api
		}{{result.FewFunctions, a}, {result.ManyFunctions, b}} {
			began := time.Now()
			if _, err := l.list(ctx); err != nil {
				return err
			}
			s.add(result.Page, l.name, time.Since(began))
		}
	}
	m, err := b.memory()
	if err != nil {
		return err
	}
	s.results.Add(result.AllMemory, result.ManyFunctions, result.MB, m.daemon)
	return s.inTurn(ctx, a)
}

// fill makes n functions of some 2 KiB, each with code of its own, in a state folder.
func (s *suite) fill(ctx context.Context, state string, n int) (err error) {
	a, err := s.startServe(ctx, state, "--pool=0")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.stop()) }()
	for i := range n {
		script := fmt.Appendf(nil, "#!/bin/sh\n# function %d\nexit 1\n", i)
		for line := 0; len(script) < 2<<10; line++ { // what does not compress well
			script = fmt.Appendf(script, "# %x\n", sha256.Sum256(fmt.Append(nil, i, line)))
		}
		code, err := zipOf(script)
		if err != nil {
			return err
		}
		if err := a.create(ctx, fmt.Sprintf("function-%05d", i), code, 128, false); err != nil {
			return fmt.Errorf("function %d of %d: %w", i+1, n, err)
		}
		if i%1000 == 999 {
			fmt.Fprintf(s.cfg.Log, "bench: %d of %d functions\n", i+1, n)
		}
	}
	return nil
}

// inTurn measures P15: a hundred warm functions one after the other, beside one of them at
// the same rate.
func (s *suite) inTurn(ctx context.Context, a *api) error {
	code, err := s.benchFunction()
	if err != nil {
		return err
	}
	if err := s.makeCaller(ctx, a); err != nil {
		return err
	}
	clients := make([]*load.Client, fewFunctions)
	requests := make([][]byte, fewFunctions)
	send := func(i int) (time.Duration, error) {
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			return 0, err
		}
		answer, err := clients[i].Send(ctx, requests[i])
		if err == nil {
			err = answer.Fault()
		}
		return answer.Took, err
	}
	for i := range clients {
		name := fmt.Sprint("turn-", i)
		if err := a.create(ctx, name, code, 128, true); err != nil {
			return err
		}
		cfg, err := a.invocation(ctx, a.caller, name, event)
		if err != nil {
			return err
		}
		clients[i] = load.NewClient(cfg.URL, patience)
		defer clients[i].Close()
		if requests[i], err = clients[i].Request(cfg.Body, cfg.Header); err != nil {
			return err
		}
		if _, err := send(i); err != nil {
			return err
		}
	}
	for range s.rounds(10) {
		for i := range clients {
			took, err := send(i)
			if err != nil {
				return err
			}
			s.add(result.InTurn, result.HundredFunctions, took)
			if took, err = send(0); err != nil {
				return err
			}
			s.add(result.InTurn, result.OneFunction, took)
		}
	}
	return nil
}

// deaths measures P16: how long each death keeps callers waiting, beside a plain start.
func (s *suite) deaths(ctx context.Context) (err error) {
	code, err := s.benchFunction()
	if err != nil {
		return err
	}
	state, err := s.newState("deaths")
	if err != nil {
		return err
	}
	for range s.rounds(5) {
		began := time.Now()
		a, err := s.startServe(ctx, state, "--pool=0")
		if err != nil {
			return err
		}
		s.add(result.Unavailable, result.PlainStart, time.Since(began))
		err = s.deathsOf(ctx, a, code)
		if err = errors.Join(err, a.stop()); err != nil {
			return err
		}
	}
	return nil
}

func (s *suite) deathsOf(ctx context.Context, a *api, code []byte) error {
	if err := s.makeCaller(ctx, a); err != nil {
		return err
	}
	if _, err := a.call(ctx, http.MethodGet, functionsPath+"function/configuration", nil); err != nil {
		if err := a.create(ctx, "function", code, 1769, true); err != nil {
			return err
		}
	}
	cfg, err := a.invocation(ctx, a.caller, "function", event)
	if err != nil {
		return err
	}
	if _, err := once(ctx, cfg); err != nil {
		return err
	}
	for _, death := range []struct {
		subject, process string
		answers          func(context.Context) error
	}{
		{result.ControlDies, "sandboxd-control", a.answers},
		{result.WorkerDies, "sandboxd-worker", func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			for {
				_, err := once(ctx, cfg)
				if err == nil || pause(ctx, time.Millisecond) != nil {
					return err
				}
			}
		}},
	} {
		pid, err := a.child(death.process)
		if err != nil {
			return err
		}
		began := time.Now()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			return err
		}
		if err := death.answers(ctx); err != nil {
			return fmt.Errorf("%s: %w", death.subject, err)
		}
		s.add(result.Unavailable, death.subject, time.Since(began))
	}
	return nil
}

// child finds the process of a daemon that has this name.
func (p *server) child(name string) (int, error) {
	own, _, err := p.processes()
	if err != nil {
		return 0, err
	}
	for _, pid := range own {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if command, _, _ := strings.Cut(string(text), "\x00"); err == nil && command == name {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("no process %s", name)
}
