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
	"github.com/sandboxd/sandboxd/internal/seqpacket"
)

// errGone reports that the supervisor has exited or has closed the connection.
var errGone = errors.New("the supervisor has closed the connection")

// Client is the worker's end of the connection. All methods are safe for concurrent use.
type Client struct {
	conn  *seqpacket.Conn
	slots chan struct{} // semaphore of requests without an answer
	stops chan struct{}
	conns *seqpacket.Streams // that control has opened to the worker
	gone  chan struct{}      // closed when no more answers will come
	cause error              // why gone is closed; nil if the supervisor closed the connection

	mu      sync.Mutex
	last    uint32                 // id of a request
	waiting map[uint32]chan answer // by id; nil once gone is closed
}

// answer is a reply with its files.
type answer struct {
	reply
	files []*os.File
}

// NewClient returns a client on f, the worker's end of Pair. It closes f, also on an error.
// sandboxes must be the Sandboxes of the server's Config. The client works until the server
// closes its end.
func NewClient(f *os.File, sandboxes int) (*Client, error) {
	conn, err := seqpacket.NewConn(f, maxReply, maxFiles)
	if err != nil {
		return nil, err
	}
	c := &Client{
		conn:  conn,
		slots: make(chan struct{}, inFlight(sandboxes)),
		stops: make(chan struct{}, 2),
		conns: seqpacket.NewStreams(),
		gone:  make(chan struct{}),

		waiting: map[uint32]chan answer{},
	}
	go c.read()
	return c, nil
}

// Close closes the connection, which makes the supervisor remove every sandbox. It returns
// when no more answers will come.
func (c *Client) Close() {
	c.conn.Close()
	<-c.gone
}

// Stops returns a channel that receives a value for each request of the supervisor to stop:
// the first asks for an orderly shutdown, the second for a stop at once.
func (c *Client) Stops() <-chan struct{} { return c.stops }

// Gone returns a channel that is closed when no more answers will come.
func (c *Client) Gone() <-chan struct{} { return c.gone }

// Err returns why Gone was closed: nil if the supervisor closed the connection. Call it only
// after Gone is closed.
func (c *Client) Err() error { return c.cause }

// Renew returns the operator's current credentials.
func (c *Client) Renew(ctx context.Context) ([]string, error) {
	a, err := c.call(ctx, request{op: opRenew})
	return a.text, err
}

// Upstream returns a connection to a name server of the host. server is its index in the
// host's list, network is "udp" or "tcp".
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

// Connect returns a new connection to the control process. The error is
// message.ErrNoControl while there is none.
func (c *Client) Connect(ctx context.Context) (net.Conn, error) {
	a, err := c.call(ctx, request{op: opConnect})
	if err != nil {
		return nil, err
	}
	return a.conn()
}

// Segment opens a segment of the logs by its number, from 1 on, to be read, and to be written at
// its end. If fresh, it is made or emptied.
func (c *Client) Segment(ctx context.Context, number int, fresh bool) (*os.File, error) {
	r := request{op: opSegment, value: uint64(number)}
	if fresh {
		r.arg = 1
	}
	a, err := c.call(ctx, r)
	if err != nil {
		return nil, err
	}
	if len(a.files) != 1 {
		closeAll(a.files)
		return nil, errMalformed
	}
	return a.files[0], nil
}

// Retire ends the revision with that number: the supervisor creates no more sandboxes of it,
// and forgets it when its last sandbox is gone. The error is message.ErrUnknownRevision if it
// is not registered.
func (c *Client) Retire(ctx context.Context, revision uint64) error {
	_, err := c.call(ctx, request{op: opRetire, value: revision})
	return err
}

// KeyPair returns the endpoint's current key pair, or nil if its number is the one given.
func (c *Client) KeyPair(ctx context.Context, number uint64) (*message.KeyPair, error) {
	a, err := c.call(ctx, request{op: opKeyPair, value: number})
	if err != nil || len(a.files) == 0 {
		return nil, err
	}
	closeAll(a.files[1:])
	return message.ReadKeyPair(a.files[0])
}

// Streams returns the listener of the connections that the control process opens to the
// worker: the same one for every call. The client closes it when Gone is closed.
func (c *Client) Streams() net.Listener { return c.conns }

// read delivers answers to waiting calls until the connection ends.
func (c *Client) read() {
	for {
		b, files, err := c.conn.Receive()
		lost := errors.Is(err, seqpacket.ErrFilesLost)
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
			r.err, r.kinds = seqpacket.ErrFilesLost.Error(), message.KindsOf(seqpacket.ErrFilesLost)
		}
		if r.id == 0 {
			c.unasked(r, files)
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
	c.conns.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = nil
	close(c.gone)
}

// unasked handles a message that is no answer.
func (c *Client) unasked(r reply, files []*os.File) {
	if r.n == isStream { // without its file if that was lost: then control reads the end of it
		for _, f := range files {
			c.conns.Add(f)
		}
		return
	}
	closeAll(files)
	select {
	case c.stops <- struct{}{}:
	default: // both stops are pending
	}
}

// lateTime is how long call waits for the answer after its context has ended. The supervisor
// usually cancels the request at once, and says why, but cannot cancel a step that hangs in
// the kernel.
const lateTime = 2 * time.Second

// call sends a request with files, which the caller still owns, and waits for the answer.
// When ctx ends, call asks the supervisor to cancel the request. If the answer then takes
// longer than lateTime, call returns, and releases what the answer brings when it comes.
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
	if err := c.conn.Send(r.encode(), files); err != nil {
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
			_ = c.conn.Send(request{op: opCancel, arg: r.id}.encode(), nil) // if it fails, c.gone is closed
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
			case a = <-w: // the answer had arrived before
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

// release waits for an answer that is no longer needed, and releases what it brings.
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

// register returns an unused id for a request, whose answer read sends to w. It returns 0 if
// no more answers will come.
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

// conn returns the connection that an answer consists of.
func (a answer) conn() (net.Conn, error) {
	defer closeAll(a.files)
	if len(a.files) != 1 {
		return nil, errMalformed
	}
	return net.FileConn(a.files[0])
}
