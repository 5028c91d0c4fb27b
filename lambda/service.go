// Package lambda serves the Lambda API's operations on functions over HTTP. What AWS declares of
// the operations is in model.json, and drives routing and validation; this package has what the
// operations do. Invoke and its relatives are in package invoke.
//
// A [Service] keeps functions in a [Store] and their code in [Blobs]. A change is acknowledged
// when it is on disk, and takes effect by a [Rollout]. Requests are strangers' text: they are
// parsed here, in a process without privileges, and with bounded memory.
package lambda

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/google/uuid"

	"github.com/sandboxd/sandboxd/function"
)

// Config configures a [Service]. It must not be changed after New. Fields without a default
// must be set.
type Config struct {
	Store    Store
	Blobs    Blobs
	Deployer Deployer
	Sealer   Sealer

	Region, AccountID string
	Architecture      string   // of this host: x86_64 or arm64
	Runtimes          []string // that functions can choose
	Networks          []string // likewise, by subnet-NAME; "none" needs no entry
	Scheme            string   // of URLs that clients get; default http

	// Local opens code in a folder of this host, by the path that a client names: it returns
	// the bytes of a zip. Errors that are for the client are an [*Error], also those of
	// reading. nil lets no code come from folders.
	Local func(ctx context.Context, path string) (io.ReadCloser, error)

	// Authenticate returns who sent a request, or an [*Error]. It may replace the body by one
	// whose end fails with an [*Error] if the request is not what the caller signed: nothing
	// is done before the end was read. nil lets everybody do everything. It is not asked about
	// requests below [CodePath].
	Authenticate func(*http.Request) (Caller, error)

	// Room, if not nil, returns an error while the disk has too little room for changes.
	Room func() error

	// Audit, if not nil, receives every call after it has been answered.
	Audit func(Call)

	// OnError, if not nil, receives errors that clients do not get.
	OnError func(error)

	Limits Limits
	Now    func() time.Time // default time.Now
	NewID  func() string    // of requests and revisions, default random UUIDs
}

// Limits are the most that an account may use. Zero values mean the defaults.
type Limits struct {
	Functions int     // default 10,000
	CodeBytes int64   // of the code of all functions; default 75 GiB
	Zip       int64   // bytes of a zip; default 50 MiB
	Local     int64   // bytes of code from a folder of this host; default 250 MiB
	Uploads   int     // at once; default 2
	Waiting   int     // uploads that wait for others; default 16
	Rate      float64 // requests a second of an access key; default 100
	Burst     int     // requests of an access key at once; default 200
}

// Caller is who sent a request.
type Caller struct {
	Key string // id of the access key; "" for a request without a signature
	// Allowed reports whether the caller may do an action, such as lambda:GetFunction, to what
	// an ARN names. nil allows everything.
	Allowed func(action, arn string) bool
}

// Call is a request to the API and what became of it.
type Call struct {
	Time      time.Time
	Duration  time.Duration
	Key       string // id of the access key
	Action    string // such as lambda:GetFunction; "" for a path that the API does not have
	ARN       string // of the function; "" if the request names none
	Status    int    // of HTTP
	Type      string // of the error; "" if there was none
	RequestID string
}

// Blobs keeps the code of functions.
type Blobs interface {
	// Put stores what r has, and returns when it is on disk. An error of r is in the error that
	// it returns.
	Put(ctx context.Context, r io.Reader) (Blob, error)
	// Open returns the content of a digest and its size.
	Open(ctx context.Context, digest [32]byte) (content io.ReadCloser, size int64, err error)
}

// Blob is one of [Blobs]. It stays until Release is called, and after that as long as a function
// has it.
type Blob struct {
	Digest  [32]byte // SHA-256
	Size    int64
	Release func()
}

// Sealer encrypts secrets for the store. context says what they belong to; it is needed to
// open them again.
type Sealer interface {
	Seal(context string, plain []byte) ([]byte, error)
	Open(context string, sealed []byte) ([]byte, error)
}

// Service serves the API. It is an http.Handler and safe for concurrent use. Use New.
type Service struct {
	cfg     Config
	rollout *Rollout
	uploads *gate
	rates   *rates
	urlKey  [32]byte // signs the URLs of code
}

const latest = function.Latest

// New returns a service, and continues the rollouts that were interrupted. They end with ctx; so does what the service does in the background.
func New(ctx context.Context, cfg Config) (*Service, error) {
	def(&cfg.Scheme, "http")
	def(&cfg.Limits.Functions, 10_000)
	def(&cfg.Limits.CodeBytes, 75<<30)
	def(&cfg.Limits.Zip, 50<<20)
	def(&cfg.Limits.Local, 250<<20)
	def(&cfg.Limits.Uploads, 2)
	def(&cfg.Limits.Waiting, 16)
	def(&cfg.Limits.Rate, 100)
	def(&cfg.Limits.Burst, 200)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.NewID == nil {
		cfg.NewID = uuid.NewString
	}
	if cfg.OnError == nil {
		cfg.OnError = func(error) {}
	}
	s := &Service{cfg: cfg, uploads: newGate(cfg.Limits.Uploads, cfg.Limits.Waiting), rates: newRates(cfg.Limits.Rate, cfg.Limits.Burst)}
	if _, err := rand.Read(s.urlKey[:]); err != nil {
		return nil, err
	}
	s.rollout = newRollout(ctx, &s.cfg, s.revision)
	return s, s.rollout.Resume(ctx)
}

func def[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}

// A call is a request that is being served.
type call struct {
	*http.Request
	op *operation
	handler
	caller Caller
	in     object
	upload *Blob // the code that came with it, or that it has named; nil if there is none
	audit  *Call
}

// release gives up the code of a request, which stays if a function has it by now.
func (c *call) release() {
	if c.upload != nil {
		c.upload.Release()
	}
}

// Requests of clients have at most this many bytes, as on Lambda.
const maxRequest = 70_167_211

// ServeHTTP serves one request.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.serveCode(w, r) {
		return
	}
	began := s.cfg.Now()
	audit := &Call{Time: began, RequestID: s.cfg.NewID()}
	w.Header().Set("X-Amzn-Requestid", audit.RequestID)
	status, answer, err := s.serve(r, audit)
	if err != nil {
		// A client that still sends would not read the answer. And who has not signed what it
		// sends learns nothing else.
		if _, end := io.CopyN(io.Discard, r.Body, 2*maxRequest); audit.Key != "" {
			if unsigned, ok := errors.AsType[*Error](end); ok {
				err = unsigned
			}
		}
		e := failed(err)
		if e.cause != nil && r.Context().Err() == nil { // else the client has gone
			s.cfg.OnError(fmt.Errorf("request %s, %s: %w", audit.RequestID, audit.Action, e.cause))
		}
		audit.Status, audit.Type = e.Status, e.Type
		e.write(w)
	} else {
		audit.Status = status
		if answer == nil {
			w.WriteHeader(status)
		} else {
			writeJSON(w, status, answer)
		}
	}
	if s.cfg.Audit != nil {
		audit.Duration = s.cfg.Now().Sub(began)
		s.cfg.Audit(*audit)
	}
}

// serve does what a request asks for.
func (s *Service) serve(r *http.Request, audit *Call) (status int, answer any, err error) {
	c := &call{Request: r, in: object{}, audit: audit}
	if s.cfg.Authenticate != nil {
		if c.caller, err = s.cfg.Authenticate(r); err != nil {
			return 0, nil, err
		}
		audit.Key = c.caller.Key
	}
	m := api()
	op, path, err := m.route(r)
	if err != nil {
		return 0, nil, err
	}
	c.op, audit.Action = op, "lambda:"+op.Name
	var ok bool
	if c.handler, ok = handlers[op.Name]; !ok {
		return 0, nil, badParameter("sandboxd does not support %s", op.Name)
	}
	input := m.shape(op.Input)
	d := decoder{m: m}
	if err := d.parameters(input, c.in, path, r); err != nil {
		return 0, nil, err
	}
	arn := s.anyARN(c.in)
	if err := s.permit(c, arn); err != nil {
		audit.ARN = arn // what was refused is told to the operator, and to nobody else
		return 0, nil, err
	}
	if c.changes && s.cfg.Room != nil {
		if err := s.cfg.Room(); err != nil {
			return 0, nil, &Error{Status: http.StatusServiceUnavailable, Type: "ServiceException", RetryAfter: 10, Message: err.Error()}
		}
	}
	err = s.readBody(c, &d, input)
	defer c.release()
	if err != nil {
		return 0, nil, err
	}
	if !s.rates.take(c.caller.Key, s.cfg.Now()) { // only now it is sure whose request it is
		e := refuse("TooManyRequestsException", "Rate exceeded")
		e.Reason, e.RetryAfter = "CallerRateLimitExceeded", 1
		return 0, nil, e
	}
	if err := m.validate(input, c.in); err != nil {
		return 0, nil, err
	}
	if answer, err = c.do(s, c); err != nil {
		return 0, nil, err
	}
	if status = op.Status; answer == nil {
		status = http.StatusNoContent
	}
	return status, answer, nil
}

// readBody reads the members that are in the body, and always up to its end, where it turns out
// whether it is what the caller signed.
func (s *Service) readBody(c *call, d *decoder, input *shape) error {
	body := &limitedBody{r: c.Body, left: maxRequest}
	if c.ContentLength > maxRequest && c.code == "" {
		return requestTooLarge(c.op)
	}
	if c.Method == http.MethodGet || c.Method == http.MethodDelete {
		_, err := io.Copy(io.Discard, body)
		return s.bodyError(c, body, err)
	}
	d.code = c.code
	d.upload = func(r io.Reader) (err error) {
		c.upload, err = s.takeUpload(c.Context(), r, s.cfg.Limits.Zip)
		if errors.Is(err, errZip) {
			return tooLarge("Zipped size must be smaller than %d bytes", s.cfg.Limits.Zip)
		}
		return err
	}
	return s.bodyError(c, body, d.body(input, c.in, body))
}

// bodyError names what was wrong with a body.
func (s *Service) bodyError(c *call, body *limitedBody, err error) error {
	switch {
	case err == nil:
		return nil
	case body.exceeded || errors.Is(err, errKept) && c.ContentLength > maxRequest:
		return requestTooLarge(c.op)
	case errors.Is(err, errKept):
		return tooLarge("Request without the code must be smaller than %d bytes for the %s operation", maxKept, c.op.Name)
	}
	return err
}

func requestTooLarge(op *operation) error {
	return tooLarge("Request must be smaller than %d bytes for the %s operation", maxRequest, op.Name)
}

// A limitedBody fails after a number of bytes.
type limitedBody struct {
	r        io.Reader
	left     int64
	exceeded bool
}

// Read implements io.Reader.
func (l *limitedBody) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if l.left -= int64(n); l.left < 0 {
		l.exceeded = true
		return 0, errors.New("the request is too large")
	}
	return n, err
}

// permit returns the refusal of what the caller may not do. It tells nothing of what exists.
func (s *Service) permit(c *call, arn string) error {
	if c.caller.Allowed == nil || c.caller.Allowed("lambda:"+c.op.Name, arn) {
		return nil
	}
	return &Error{Status: http.StatusForbidden, Type: "AccessDeniedException",
		Message: fmt.Sprintf("User: arn:aws:iam::%s:user/%s is not authorized to perform: lambda:%s on resource: %s because no identity-based policy allows the lambda:%s action",
			s.cfg.AccountID, c.caller.Key, c.op.Name, arn, c.op.Name)}
}

// arn returns the ARN of a function.
func (s *Service) arn(name string) string { return function.ARN(s.cfg.Region, s.cfg.AccountID, name) }

// anyARN returns the ARN that a request is about as far as it is known before its body.
func (s *Service) anyARN(in object) string {
	if ref, ok := function.ParseReference(in.text("FunctionName")); ok {
		return s.arn(ref.Name)
	}
	return s.arn("*")
}

// A handler does an operation. It returns the body of the answer, nil for none.
type handler struct {
	do      func(*Service, *call) (any, error)
	code    string // path of the member that is code, which is not kept in memory
	changes bool   // it needs room on the disk
}

// handlers are the operations that work.
var handlers = map[string]handler{
	"CreateFunction":              {do: (*Service).createFunction, code: "Code.ZipFile", changes: true},
	"GetFunction":                 {do: (*Service).getFunction},
	"GetFunctionConfiguration":    {do: (*Service).getFunctionConfiguration},
	"ListFunctions":               {do: (*Service).listFunctions},
	"UpdateFunctionCode":          {do: (*Service).updateFunctionCode, code: "ZipFile", changes: true},
	"UpdateFunctionConfiguration": {do: (*Service).updateFunctionConfiguration, changes: true},
	"DeleteFunction":              {do: (*Service).deleteFunction},
}
