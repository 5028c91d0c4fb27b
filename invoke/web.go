package invoke

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sandboxd/sandboxd/invoke/httpevent"
	"github.com/sandboxd/sandboxd/rapid"
)

// InvokeMode says how a [Web] takes answers, as the setting InvokeMode of a function URL
// does (INV-52).
type InvokeMode string

// The invoke modes.
const (
	Auto           InvokeMode = "auto"            // the function's answer decides; no mode of Lambda
	Buffered       InvokeMode = "BUFFERED"        // a complete answer in payload format 2.0
	ResponseStream InvokeMode = "RESPONSE_STREAM" // an answer that is passed on as it arrives
)

// InvokeModes lists the invoke modes.
var InvokeModes = []string{string(Auto), string(Buffered), string(ResponseStream)}

// Web configures a front that answers HTTP requests with a function, as a function URL of
// the auth type NONE does (section 5.5). Each request becomes an event, and each answer an
// HTTP response; package httpevent translates.
//
// The front is made for browsers, so it has no guard against web pages as the Invoke API
// has: whoever can connect can run the function, and so can every page that such a client
// visits. What a page of another origin may read of a response is the function's own
// decision (CORS). Hosts limits the damage of DNS rebinding.
type Web struct {
	Function string     // its name
	Mode     InvokeMode // "" means Auto
	// Hosts are names by which clients may address a front that listens on loopback, besides
	// localhost and IP addresses. The owner of any other name could let it point to 127.0.0.1
	// while a page of it is open, and so be of the front's origin.
	Hosts []string
}

// ServeWeb serves the front on l. It shares the limits of s, and ends as [Server.Serve] does.
func (s *Server) ServeWeb(ctx context.Context, l net.Listener, web Web) error {
	h := &webHandler{Server: s, web: web}
	if a, ok := l.Addr().(*net.TCPAddr); ok {
		h.loopback = a.IP.IsLoopback()
	}
	never := func(string, string) bool { return false }
	return s.serve(ctx, l, h, never, func(context.Context) error { return nil })
}

// webHandler is the handler of a Web.
type webHandler struct {
	*Server
	web      Web
	loopback bool // it listens on a loopback address
}

// webMethods are the methods of requests that become events (INV-40).
const webMethods = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"

var (
	errWebMethod = &refusal{status: http.StatusMethodNotAllowed, name: "MethodNotAllowedException",
		text: "A function takes the methods " + webMethods + ".", allow: webMethods, hangUp: true}
	errWebPath = &refusal{status: http.StatusBadRequest, name: "BadRequestException",
		text: "The path of a request must begin with a slash.", hangUp: true}
	errWebTooLarge = &refusal{status: http.StatusRequestEntityTooLarge, name: "RequestTooLargeException", hangUp: true,
		text: fmt.Sprintf("Request must be smaller than %d bytes for the InvokeFunction operation", httpevent.MaxEvent)}
)

// ServeHTTP serves one request.
func (h *webHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	conn := http.NewResponseController(w)
	// As in Server.ServeHTTP.
	limit := time.Now().Add(h.cfg.BodyTimeout)
	_ = conn.SetReadDeadline(limit)
	_ = conn.SetWriteDeadline(limit.Add(h.cfg.WriteTimeout))

	ids := newIDs()
	if v := r.Header.Get("X-Amzn-Trace-Id"); v != "" && len(v) <= maxTraceID {
		ids.trace = v
	}
	w.Header().Set("X-Amzn-Requestid", ids.request)
	w.Header().Set("X-Amzn-Trace-Id", ids.trace)
	if err := h.check(r); err != nil {
		err.write(w)
		return
	}
	fn, err := h.cfg.Functions.Find(r.Context(), h.web.Function, "")
	if err != nil {
		h.refuse(w, ids.request, h.web.Function, err)
		return
	}
	body, held, err := h.read(r, httpevent.MaxEvent)
	var event []byte
	if err == nil {
		event, held, err = h.encode(r, ids, body, held)
	}
	if err != nil { // keep the deadline: net/http reads on before it responds
		h.buffered.give(held)
		refuseBody(err).write(w)
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	h.invoke(w, r, conn, &rapid.Invocation{ID: ids.request, Payload: event, TraceID: ids.trace, FunctionARN: fn.ARN,
		Stream: h.web.Mode != Buffered, NoTail: true}, held)
}

// check refuses requests that do not become events.
func (h *webHandler) check(r *http.Request) *refusal {
	switch {
	case !slices.Contains(strings.Split(webMethods, ", "), r.Method):
		return errWebMethod
	case !strings.HasPrefix(r.URL.Path, "/"):
		return errWebPath
	case h.loopback && !h.addressed(r.Host):
		return &refusal{status: http.StatusForbidden, name: "AccessDeniedException", hangUp: true,
			text: fmt.Sprintf("The function is not served under the name %q: a web page could have made that name point to this host. Use localhost or 127.0.0.1, or allow the name with --http-host.", r.Host)}
	}
	return nil
}

// addressed reports whether a client on this host may use the name in a Host header.
func (h *webHandler) addressed(host string) bool {
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = host
	}
	name = strings.ToLower(strings.TrimSuffix(strings.Trim(name, "[]"), "."))
	return name == "" || isLocalName(name) || strings.HasSuffix(name, ".localhost") || // RFC 6761, section 6.3
		slices.ContainsFunc(h.web.Hosts, func(allowed string) bool { return strings.EqualFold(allowed, name) })
}

// encode makes the event of a request, and exchanges the bytes held for the body for those
// of the event.
func (h *webHandler) encode(r *http.Request, ids ids, body []byte, held int64) ([]byte, int64, error) {
	port := ""
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr); ok {
		port = strconv.Itoa(a.Port)
	}
	event, err := httpevent.Encode(r, body, httpevent.Source{
		RequestID: ids.request, TraceID: ids.trace, URLID: h.web.Function, Port: port, At: time.Now(),
	})
	if err != nil {
		return nil, held, err
	}
	if !h.buffered.take(int64(len(event))) {
		return nil, held, errNoBuffer
	}
	h.buffered.give(held)
	return event, int64(len(event)), nil
}

// refuseBody returns the refusal of a request whose body could not be read or encoded.
func refuseBody(err error) *refusal {
	_, tooLong := errors.AsType[*tooLongError](err)
	switch {
	case tooLong, errors.Is(err, httpevent.ErrTooLarge):
		return errWebTooLarge
	case errors.Is(err, errNoBuffer):
		return errBuffers
	}
	return unread(err)
}

// invoke runs the invocation and writes the response. It gives the held bytes back when the
// event is no longer needed.
func (h *webHandler) invoke(w http.ResponseWriter, r *http.Request, conn *http.ResponseController, inv *rapid.Invocation, held int64) {
	lease, err := h.cfg.Functions.Lease(r.Context(), h.web.Function, "", "")
	if err != nil {
		h.buffered.give(held)
		_ = conn.SetWriteDeadline(time.Now().Add(h.cfg.WriteTimeout))
		h.refuse(w, inv.ID, inv.FunctionARN, err)
		return
	}
	inv.Arrived = time.Now()
	res, err := lease.Invoke(inv)
	h.buffered.give(held)
	if err != nil {
		_ = conn.SetWriteDeadline(time.Now().Add(h.cfg.WriteTimeout))
		h.refuse(w, inv.ID, inv.FunctionARN, err)
		return
	}
	patience, held := h.hold(res)
	defer h.buffered.give(held)
	a := &webAnswer{h: h, w: w, conn: conn, id: inv.ID, head: r.Method == http.MethodHead, patience: patience}
	a.write(res)
}
