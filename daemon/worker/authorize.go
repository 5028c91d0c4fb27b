package worker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/invoke"
	"github.com/sandboxd/sandboxd/lambda/sigv4"
)

// invokeAction is what a caller must be allowed to do, for streamed answers too.
const invokeAction = "lambda:InvokeFunction"

// existTime is how long the worker remembers that an access key exists. Without that it asks
// control twice about a request whose signature cannot be verified before its body is read.
const existTime = time.Minute

// authorizer checks the signatures of requests (docs/decisions/0053). It verifies those of
// access keys that may only invoke by itself, with a key that control has derived for the day,
// and asks control about the others. It is safe for concurrent use.
type authorizer struct {
	scope    sigv4.Scope
	unsigned bool // requests without a signature are accepted
	verify   func(context.Context, message.Verify) (message.Verdict, error)
	now      func() time.Time

	keys   sigv4.Keys // by what they allow
	exists sigv4.Keys // access keys that exist; the values have no meaning

	mu      sync.Mutex // held while keys and exists get entries
	forgets uint64     // how often forget was called
}

// forget forgets what is known of an access key, with answers of control that are on their way:
// they may be older than the revocation.
func (a *authorizer) forget(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.forgets++
	a.keys.Forget(id)
	a.exists.Forget(id)
}

// forgotten returns how often forget was called.
func (a *authorizer) forgotten() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.forgets
}

// newAuthorizer returns an authorizer for an endpoint at addr. verify asks control.
func newAuthorizer(c *message.WorkerConfig, addr net.Addr, verify func(context.Context, message.Verify) (message.Verdict, error)) *authorizer {
	tcp, ok := addr.(*net.TCPAddr)
	return &authorizer{
		scope: sigv4.Scope{Region: c.Region, Service: "lambda"}, unsigned: c.Unsigned && ok && tcp.IP.IsLoopback(),
		verify: verify, now: time.Now,
	}
}

// invocation implements invoke.Config.Authorize.
func (a *authorizer) invocation(r *http.Request, arn string) (invoke.BodyCheck, error) {
	s, err := a.parse(r)
	if s == nil {
		return nil, err
	}
	ctx := r.Context()
	if s.Ready() {
		if err := a.check(ctx, s, arn); err != nil {
			return nil, err
		}
		return func(body []byte) error { return faultOf(s.Payload(body)) }, nil
	}
	if err := a.checkExists(ctx, s); err != nil {
		return nil, err
	}
	return func(body []byte) error {
		if err := s.Payload(body); err != nil {
			return faultOf(err)
		}
		return a.check(ctx, s, arn)
	}, nil
}

// parse reads the signature of a request, and checks what needs no key. It returns nil without
// an error for a request that needs no signature.
func (a *authorizer) parse(r *http.Request) (*sigv4.Signature, error) {
	if isInternal(r.Host) {
		return nil, &invoke.Fault{Status: http.StatusForbidden, Type: "AccessDeniedException",
			Message: fmt.Sprintf("The host %s is not for clients.", r.Host)}
	}
	s, err := sigv4.Parse(r, a.now(), a.scope)
	switch {
	case errors.Is(err, sigv4.ErrUnsigned) && isCode(r): // the URL has a signature of control's
		return nil, nil
	case errors.Is(err, sigv4.ErrUnsigned) && a.unsigned:
		return nil, checkLocal(r.Host)
	case err != nil:
		return nil, faultOf(err)
	case s.Token != "": // there are no temporary access keys
		return nil, faultOf(sigv4.ErrUnknownKey)
	}
	return s, nil
}

// check verifies a signature, and checks that its access key may invoke the function with that
// ARN. arn is "" if there is no such function.
func (a *authorizer) check(ctx context.Context, s *sigv4.Signature, arn string) error {
	use := s.Use(invokeAction, arn)
	if key := a.keys.Get(use, a.now()); key != nil {
		if !s.Verify(key) {
			return faultOf(sigv4.ErrMismatch)
		}
		return nil
	}
	before := a.forgotten()
	v, err := a.verify(ctx, message.Verify{AccessKeyID: s.AccessKeyID, Date: s.Date, Region: s.Region, Service: s.Service,
		StringToSign: s.StringToSign(), Signature: s.Hex(), Action: invokeAction, ARN: arn})
	switch {
	case err != nil:
		return err
	case !v.Known && !v.Exists:
		return faultOf(sigv4.ErrUnknownKey)
	case !v.Known:
		return faultOf(sigv4.ErrMismatch)
	case !v.Allowed && arn != "":
		return &invoke.Fault{Status: http.StatusForbidden, Type: "AccessDeniedException", Message: fmt.Sprintf(
			"Access key %s is not authorized to perform: %s on resource: %s", s.AccessKeyID, invokeAction, arn)}
	}
	a.remember(s, use, v, before)
	return nil
}

// remember remembers what control has answered, unless forget was called since it was asked.
func (a *authorizer) remember(s *sigv4.Signature, use sigv4.Use, v message.Verdict, before uint64) {
	now := a.now()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.forgets != before {
		return
	}
	a.exists.Put(keyOnly(s), []byte{}, now, now.Add(existTime))
	if v.Key != nil && v.Allowed {
		a.keys.Put(use, v.Key, now, v.Until)
	}
}

// checkExists checks that there is the access key of a signature.
func (a *authorizer) checkExists(ctx context.Context, s *sigv4.Signature) error {
	if a.exists.Get(keyOnly(s), a.now()) != nil {
		return nil
	}
	v, err := a.verify(ctx, message.Verify{AccessKeyID: s.AccessKeyID, Date: s.Date, Region: s.Region, Service: s.Service})
	if err == nil && !v.Exists {
		err = faultOf(sigv4.ErrUnknownKey)
	}
	return err
}

func keyOnly(s *sigv4.Signature) sigv4.Use { return sigv4.Use{AccessKeyID: s.AccessKeyID} }

// faultOf returns the answer for an error of sigv4.
func faultOf(err error) error {
	if e, ok := errors.AsType[*sigv4.Error](err); ok {
		return &invoke.Fault{Status: e.Status, Type: e.Type, Message: e.Message}
	}
	return err
}

// isInternal reports whether a Host header has a name that the processes of the daemon use
// among themselves.
func isInternal(host string) bool {
	name := strings.ToLower(hostname(host))
	return name == message.ControlHost || name == message.WorkerHost
}

// hostname returns a Host header without a port and a last dot.
func hostname(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return strings.TrimSuffix(strings.Trim(host, "[]"), ".")
}

// checkLocal refuses an unsigned request for a host with a name that anybody could own: its
// owner could let the name point to 127.0.0.1 while a web page of it is open, and the page could
// then read what the API answers (DNS rebinding).
func checkLocal(host string) error {
	name := hostname(host)
	if _, err := netip.ParseAddr(name); err == nil || strings.EqualFold(name, "localhost") {
		return nil
	}
	return &invoke.Fault{Status: http.StatusForbidden, Type: "AccessDeniedException", Message: fmt.Sprintf(
		"Requests without a signature must be for localhost or an IP address, not for %q: a web page could have made that name point to this host.", host)}
}
