package control

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/internal/registry"
	"github.com/sandboxd/sandboxd/internal/seal"
	"github.com/sandboxd/sandboxd/lambda"
)

// root plays root for functions: it wants the file of each tree once.
type root struct {
	t *testing.T

	mu        sync.Mutex
	trees     map[message.Digest]bool
	revisions map[uint64]message.Revision
	refuse    error // of Register
}

// revision returns what was registered under a number.
func (r *root) revision(number uint64) message.Revision {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.revisions[number]
}

// setRefuse has register refuse with err.
func (r *root) setRefuse(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refuse = err
}

func (r *root) register(_ context.Context, form []byte, files []*os.File) (function.Program, uint32, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rev, err := message.DecodeRevision(form)
	if err != nil {
		return function.Program{}, 0, err
	}
	if r.refuse != nil {
		return function.Program{}, 0, r.refuse
	}
	if !r.trees[rev.Code] {
		if files[0] == nil {
			return function.Program{}, 1, nil
		}
		head := make([]byte, 2)
		if _, err := files[0].ReadAt(head, 0); err != nil || string(head) != "PK" {
			r.t.Errorf("the file begins with %q, %v", head, err)
		}
		r.trees[rev.Code] = true
	}
	r.revisions[rev.ID.Number] = rev
	return function.Program{Bootstrap: function.Entry{Path: "/var/task/bootstrap"}, Locale: "C.UTF-8"}, 0, nil
}

func (r *root) forget(number uint64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.revisions, number)
	return nil
}

// known returns the numbers of the registered revisions.
func (r *root) known() (list []uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for n := range r.revisions {
		list = append(list, n)
	}
	return list
}

// openFunctions opens the functions in a folder beside root.
func openFunctions(t *testing.T, r *root, folder string) *functions {
	t.Helper()
	h := newHost(t, registry.Config{Register: r.register, Forget: r.forget, Connect: func(context.Context) (*os.File, error) { return nil, message.ErrNoWorker }})
	h.Config = &message.ControlConfig{Folder: folder, Region: "us-east-1", AccountID: "123456789012",
		Runtimes: []string{"python3.11", "provided.al2023"}, Networks: []string{"none", "web"}, Profiles: []string{"default"},
		Unsigned: true, Roles: []string{"arn:aws:iam::000000000000:role/first", "arn:aws:iam::123456789012:role/r"}}
	ring, err := seal.New(bytes.Repeat([]byte{7}, seal.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	h.Ring = ring
	api, err := OpenFunctions(t.Context(), h)
	if err != nil {
		t.Fatal(err)
	}
	f := api.(*functions)
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// call sends a request to the API and decodes its answer.
func (f *functions) call(t *testing.T, method, path string, body any) (status int, answer map[string]any) {
	t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest(method, "/2015-03-31/functions"+path, bytes.NewReader(b))
	r.Header.Set(message.UnsignedHeader, "1") // as the worker does
	w := httptest.NewRecorder()
	f.ServeHTTP(w, r)
	if w.Body.Len() > 0 {
		if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
			t.Fatalf("%s %s: %v: %s", method, path, err, w.Body)
		}
	}
	return w.Code, answer
}

// The worker passes requests for code without a signature of the client.
func TestCodePath(t *testing.T) {
	if message.CodePath != lambda.CodePath {
		t.Errorf("the worker knows %s, the API makes URLs of %s", message.CodePath, lambda.CodePath)
	}
}

// settled waits until no change of the function is on its way.
func (f *functions) settled(t *testing.T, name string) map[string]any {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		_, c := f.call(t, "GET", "/"+name+"/configuration", nil)
		if c["State"] != "Pending" && c["LastUpdateStatus"] != "InProgress" {
			return c
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v", c)
		}
	}
}

func zipOf(t *testing.T, content string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	f, err := w.Create("bootstrap")
	if err == nil {
		_, err = io.WriteString(f, content)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func definition(name string, code []byte) map[string]any {
	return map[string]any{"FunctionName": name, "Runtime": "provided.al2023", "Handler": "x", "Role": "arn:aws:iam::123456789012:role/r",
		"Environment": map[string]any{"Variables": map[string]string{"SECRET": "geheim"}}, "VpcConfig": map[string]any{"SubnetIds": []string{"subnet-web"}}, "Code": map[string]any{"ZipFile": code}}
}

// A function that the API makes is registered with root, resolved for the worker, and is there
// after the next start; what is secret is not in the files.
func TestFunctions(t *testing.T) {
	r := &root{t: t, trees: map[message.Digest]bool{}, revisions: map[uint64]message.Revision{}}
	folder := t.TempDir()
	f := openFunctions(t, r, folder)
	if _, err := f.Resolve(t.Context(), "hello", ""); !isFault(err, 404, "ResourceNotFoundException") {
		t.Errorf("before it is made: %v", err)
	}
	if status, answer := f.call(t, "POST", "", definition("hello", zipOf(t, "one"))); status != 201 {
		t.Fatalf("%d %v", status, answer)
	}
	if c := f.settled(t, "hello"); c["State"] != "Active" {
		t.Fatalf("%v", c)
	}
	first, err := f.Resolve(t.Context(), "hello", "")
	rev := r.revision(first.Revision.ID.Number)
	if err != nil || rev.Runtime != 1 || rev.Network != 1 || rev.Role != 2 || !first.Credentials || rev.MemoryMB != 128 || rev.PIDs != function.MaxPIDs || first.Revision.Env != nil ||
		first.Revision.Program.Bootstrap.Path != "/var/task/bootstrap" || first.Revision.Network != "web" || first.Reserved != -1 {
		t.Errorf("%+v, %v; root knows %+v", first, err, rev)
	}
	env, err := f.Environment(t.Context(), first.Revision.ID.Number)
	if err != nil || env["SECRET"] != "geheim" {
		t.Errorf("%v, %v", env, err)
	}
	if err := filepath.WalkDir(folder, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte("geheim")) {
			t.Errorf("%s has a variable in plain text", path)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	f.closers = nil

	f = openFunctions(t, r, folder)
	if again, err := f.Resolve(t.Context(), "hello", "$LATEST"); err != nil || again.Revision.ID != first.Revision.ID {
		t.Errorf("after the next start: %+v, %v", again, err)
	}
	if status, answer := f.call(t, "PUT", "/hello/code", map[string]any{"ZipFile": zipOf(t, "two")}); status != 200 {
		t.Fatalf("%d %v", status, answer)
	}
	f.settled(t, "hello")
	second, err := f.Resolve(t.Context(), "hello", "")
	if known := r.known(); err != nil || second.Revision.ID.Number <= first.Revision.ID.Number || len(known) != 1 || known[0] != second.Revision.ID.Number {
		t.Errorf("after an update: %+v, %v; root knows %v", second, err, known)
	}
	if status, _ := f.call(t, "DELETE", "/hello", nil); status != 204 {
		t.Errorf("%d", status)
	}
	if _, err := f.Resolve(t.Context(), "hello", ""); !isFault(err, 404, "ResourceNotFoundException") {
		t.Errorf("after it is deleted: %v", err)
	}
}

func isFault(err error, status int, kind string) bool {
	f, ok := errors.AsType[*message.Fault](err)
	return ok && f.Status == status && f.Type == kind
}

// What root says of code becomes the answer of the API, and of an invocation.
func TestFunctionsRefused(t *testing.T) {
	r := &root{t: t, trees: map[message.Digest]bool{}, revisions: map[uint64]message.Revision{}}
	f := openFunctions(t, r, t.TempDir())
	for n, c := range []struct {
		refuse error
		text   string // of CreateFunction
		status int    // of an invocation; 0 is an error for the log
		kind   string
	}{
		{message.ErrPackage, "Could not unzip uploaded file", 502, "InvalidZipFileException"},
		{message.ErrTooLarge, "Unzipped size must be smaller than", 502, "InvalidZipFileException"},
		{fmt.Errorf("%w: no client is there", message.ErrUnusable), "no client is there", 502, "InvalidRuntimeException"},
	} {
		name := fmt.Sprint("f", n)
		r.setRefuse(c.refuse)
		status, answer := f.call(t, "POST", "", definition(name, zipOf(t, name)))
		if text := fmt.Sprint(answer["message"], answer["Message"]); status != 400 || !strings.Contains(text, c.text) {
			t.Errorf("%v: %d %v, want %q", c.refuse, status, answer, c.text)
		}
		r.setRefuse(nil)
		if status, answer := f.call(t, "POST", "", definition(name, zipOf(t, name))); status != 201 {
			t.Fatalf("%d %v", status, answer)
		}
		f.settled(t, name)
		r.setRefuse(c.refuse)
		if _, err := f.Resolve(t.Context(), name, ""); !isFault(err, c.status, c.kind) {
			t.Errorf("%v: an invocation gets %v", c.refuse, err)
		}
		r.setRefuse(nil)
	}
	r.setRefuse(fmt.Errorf("%w: less than is kept free", syscall.ENOSPC))
	if status, answer := f.call(t, "POST", "", definition("full", zipOf(t, "full"))); status != http.StatusServiceUnavailable || answer["Message"] != "The disk of this server has no room for more code." {
		t.Errorf("without room: %d %v", status, answer)
	}
	if _, err := f.Resolve(t.Context(), "f0", ""); !isFault(err, http.StatusServiceUnavailable, "ServiceException") {
		t.Errorf("without room: an invocation gets %v", err)
	}
	r.setRefuse(message.ErrTooMany)
	var fault *message.Fault
	if _, err := f.Resolve(t.Context(), "f0", ""); err == nil || errors.As(err, &fault) {
		t.Errorf("what passes: %v, want an error for the log", err)
	}
	r.setRefuse(nil)
	f.host.Config.Runtimes = f.host.Config.Runtimes[:1]
	if _, err := f.Resolve(t.Context(), "f0", ""); !isFault(err, http.StatusBadGateway, "InvalidRuntimeException") || !strings.Contains(err.Error(), "does not have the runtime provided.al2023") {
		t.Errorf("without its runtime: %v", err)
	}
}
