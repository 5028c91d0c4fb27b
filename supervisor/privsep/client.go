package privsep

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/sandboxd/sandboxd/internal/message"
)

// errGone says that the supervisor's process has ended, or has given this one up.
var errGone = errors.New("the supervisor is gone")

// Client is the worker's end. All methods are safe for concurrent use.
type Client struct {
	conn  *conn
	slots chan struct{} // one for each request without an answer
	stops chan struct{}
	gone  chan struct{} // closed when there are no more answers
	cause error         // why; nil if the supervisor has ended. Valid once gone

	mu      sync.Mutex
	last    uint32
	waiting map[uint32]chan answer // nil once gone
}

// answer is a reply and what came with it.
type answer struct {
	reply
	files []*os.File
}

// NewClient makes the worker's end of f, which it closes in any case. sandboxes is the
// most that may live at once, as the server has it. The client lives until the server's
// end is closed.
func NewClient(f *os.File, sandboxes int) (*Client, error) {
	conn, err := newConn(f, maxReply)
	if err != nil {
		return nil, err
	}
	c := &Client{
		conn:  conn,
		slots: make(chan struct{}, inFlight(sandboxes)),
		stops: make(chan struct{}, 2),
		gone:  make(chan struct{}),

		waiting: map[uint32]chan answer{},
	}
	go c.read()
	return c, nil
}

// Close ends the line, and with it every sandbox. It returns when there are no more answers.
func (c *Client) Close() {
	c.conn.Close()
	<-c.gone
}

// Stops yields once for each time that the daemon is told to end: orderly at first, at
// once the second time.
func (c *Client) Stops() <-chan struct{} { return c.stops }

// Gone is closed when there are no more answers.
func (c *Client) Gone() <-chan struct{} { return c.gone }

// Err says, once Gone is closed, why: nil if the supervisor's process has ended.
func (c *Client) Err() error { return c.cause }

// Renew returns the operator's credentials as they are now.
func (c *Client) Renew(ctx context.Context) ([]string, error) {
	a, err := c.call(ctx, request{op: opRenew})
	return a.text, err
}

// Upstream connects to the name server of the host at that place of the list, counted
// from 0, by "udp" or "tcp".
func (c *Client) Upstream(ctx context.Context, network string, server int) (net.Conn, error) {
	arg := uint32(server)
	if network == "tcp" {
		arg |= streamed
	}
	a, err := c.call(ctx, request{op: opUpstream, arg: arg})
	if err != nil {
		return nil, err
	}
	return a.conn()
}

// read hands out answers until there are no more.
func (c *Client) read() {
	for {
		b, files, err := c.conn.receive()
		lost := errors.Is(err, errFilesLost)
		if errors.Is(err, io.EOF) {
			break
		}
		var r reply
		if err == nil || lost {
			if r, err = decodeReply(b); err != nil {
				closeAll(files)
			}
		}
		if err != nil {
			c.cause = fmt.Errorf("receive from the supervisor: %w", err)
			break
		}
		if lost {
			r.err, r.kinds = errFilesLost.Error(), message.KindsOf(errFilesLost)
		}
		if r.id == 0 {
			closeAll(files)
			select {
			case c.stops <- struct{}{}:
			default: // it has been said
			}
			continue
		}
		c.mu.Lock()
		w := c.waiting[r.id]
		delete(c.waiting, r.id)
		c.mu.Unlock()
		if w == nil {
			closeAll(files)
			continue
		}
		w <- answer{r, files}
	}
	c.conn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = nil
	close(c.gone)
}

// lateTime is how long an answer is waited for when its context has ended: the supervisor,
// which is told, usually gives up at once, and says why. A step that hangs in the kernel
// cannot be given up.
const lateTime = 2 * time.Second

// call makes a request with files, which stay the caller's, and waits for the answer.
// When ctx ends, the supervisor is told. An answer that then takes longer than lateTime is
// not waited for: what it brings is released when it comes.
func (c *Client) call(ctx context.Context, r request, files ...*os.File) (answer, error) {
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return answer{}, ctx.Err()
	case <-c.gone:
		return answer{}, errGone
	}
	leave := func() { <-c.slots }
	defer func() { leave() }()
	w := make(chan answer, 1)
	if r.id = c.register(w); r.id == 0 {
		return answer{}, errGone
	}
	if err := c.conn.send(r.encode(), files); err != nil {
		c.mu.Lock()
		delete(c.waiting, r.id)
		c.mu.Unlock()
		return answer{}, err
	}
	var a answer
	cancelled := ctx.Done()
	var late <-chan time.Time
	for {
		select {
		case a = <-w:
		case <-cancelled:
			cancelled = nil
			_ = c.conn.send(request{op: opCancel, arg: r.id}.encode(), nil) // gone tells
			timer := time.NewTimer(lateTime)
			defer timer.Stop()
			late = timer.C
			continue
		case <-late:
			leave = func() {} // the supervisor still works on it
			go func() {
				c.release(r.op, w)
				<-c.slots
			}()
			return answer{}, fmt.Errorf("the supervisor does not answer: %w", ctx.Err())
		case <-c.gone:
			select {
			case a = <-w: // it had come
			default:
				return answer{}, errGone
			}
		}
		break
	}
	if a.err == "" {
		return a, nil
	}
	err := error(&message.Error{Text: a.err, Kinds: a.kinds})
	if ctx.Err() != nil && !errors.Is(err, ctx.Err()) {
		err = fmt.Errorf("%w: %w", err, ctx.Err())
	}
	return a, err
}

// release waits for an answer that nobody wants any more, and releases what it brings.
func (c *Client) release(op op, w <-chan answer) {
	select {
	case a := <-w:
		closeAll(a.files)
		if op == opCreate && a.n != 0 {
			_, _ = c.call(context.Background(), request{op: opClose, sandbox: a.n}) // the supervisor reports what stays
		}
	case <-c.gone:
	}
}

// register finds an id for a request whose answer goes to w; 0 if there are no answers
// any more.
func (c *Client) register(w chan answer) uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting == nil {
		return 0
	}
	for {
		c.last++
		if c.last != 0 && c.waiting[c.last] == nil {
			c.waiting[c.last] = w
			return c.last
		}
	}
}

// conn is the one connection of an answer.
func (a answer) conn() (net.Conn, error) {
	defer closeAll(a.files)
	if len(a.files) != 1 {
		return nil, errMalformed
	}
	return net.FileConn(a.files[0])
}
