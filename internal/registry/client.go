package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"net"
	"os"
	"sync"

	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/internal/seqpacket"
)

// errGone reports that the supervisor has exited or has closed the connection.
var errGone = errors.New("the supervisor has closed the connection")

// Client is the control process's end of the line. All methods are safe for concurrent use.
type Client struct {
	conn  *seqpacket.Conn
	slots chan struct{} // semaphore of requests without an answer
	stops chan struct{}
	conns *seqpacket.Streams // that the worker has opened to the control process
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

// NewClient returns a client on f, the control process's end of Pair. It closes f, also on an
// error. The client works until the server closes its end.
func NewClient(f *os.File) (*Client, error) {
	conn, err := seqpacket.NewConn(f, maxReply, maxFiles)
	if err != nil {
		return nil, err
	}
	c := &Client{
		conn: conn, slots: make(chan struct{}, maxRequests), stops: make(chan struct{}, 2), conns: seqpacket.NewStreams(),
		gone: make(chan struct{}), waiting: map[uint32]chan answer{},
	}
	go c.read()
	return c, nil
}

// Close closes the line. It returns when no more answers will come.
func (c *Client) Close() {
	c.conn.Close()
	<-c.gone
}

// Stops returns a channel that receives a value for each request of the supervisor to stop.
func (c *Client) Stops() <-chan struct{} { return c.stops }

// Gone returns a channel that is closed when no more answers will come.
func (c *Client) Gone() <-chan struct{} { return c.gone }

// Err returns why Gone was closed: nil if the supervisor closed the connection. Call it only
// after Gone is closed.
func (c *Client) Err() error { return c.cause }

// Streams returns the listener of the connections that the worker opens to the control
// process: the same one for every call. The client closes it when Gone is closed.
func (c *Client) Streams() net.Listener { return c.conns }

// Missing reports that the supervisor needs the files of some trees of a revision.
type Missing struct {
	Trees []int // positions in message.Revision.Trees
}

func (m *Missing) Error() string {
	return fmt.Sprintf("the supervisor needs the files of the trees %v", m.Trees)
}

// Register registers a revision, and returns what the supervisor has found in its files. It
// sends the files of trees by their positions in rev.Trees; the caller still owns them. The
// error is a [*Missing] if the supervisor needs other files. Registering a revision again
// does no harm. The supervisor goes on with a request when ctx ends.
func (c *Client) Register(ctx context.Context, rev *message.Revision, files map[int]*os.File) (function.Program, error) {
	r := request{op: opRegister, revision: rev.Encode()}
	var list []*os.File
	for i := range message.MaxTrees {
		if f := files[i]; f != nil {
			r.value |= 1 << i
			list = append(list, f)
		}
	}
	a, err := c.call(ctx, r, list)
	switch {
	case err != nil:
		return function.Program{}, err
	case a.missing != 0:
		m := &Missing{}
		for set := a.missing; set != 0; set &= set - 1 {
			m.Trees = append(m.Trees, bits.TrailingZeros32(set))
		}
		return function.Program{}, m
	case a.program == nil:
		return function.Program{}, errMalformed
	}
	return *a.program, nil
}

// Forget has the supervisor forget the revision with that number, if it has no sandbox. One
// that has some, the worker ends. A revision that is not registered is no error.
func (c *Client) Forget(ctx context.Context, number uint64) error {
	_, err := c.call(ctx, request{op: opForget, value: number}, nil)
	return err
}

// Connect returns a new connection to the worker. The error is message.ErrNoWorker while
// there is none.
func (c *Client) Connect(ctx context.Context) (net.Conn, error) { return c.connection(ctx, opConnect) }

// DialStore returns a new connection to the operator's database. The error is
// errors.ErrUnsupported if there is none.
func (c *Client) DialStore(ctx context.Context) (net.Conn, error) {
	return c.connection(ctx, opDialStore)
}

func (c *Client) connection(ctx context.Context, op op) (net.Conn, error) {
	a, err := c.call(ctx, request{op: op}, nil)
	if err != nil {
		return nil, err
	}
	defer seqpacket.CloseAll(a.files)
	if len(a.files) != 1 {
		return nil, errMalformed
	}
	return net.FileConn(a.files[0])
}

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
				seqpacket.CloseAll(files)
			}
		}
		if err != nil {
			c.cause = fmt.Errorf("receive from the supervisor: %w", err)
			break
		}
		if lost {
			r.err, r.kinds = seqpacket.ErrFilesLost.Error(), message.KindsOf(seqpacket.ErrFilesLost)
		}
		c.deliver(answer{r, files})
	}
	c.conn.Close()
	c.conns.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = nil
	close(c.gone)
}

// deliver gives a message to whom it is for.
func (c *Client) deliver(a answer) {
	switch {
	case a.id == 0 && a.missing == isStream: // without its file if that was lost: then the worker reads the end of it
		for _, f := range a.files {
			c.conns.Add(f)
		}
		return
	case a.id == 0:
		seqpacket.CloseAll(a.files)
		select {
		case c.stops <- struct{}{}:
		default: // both stops are pending
		}
		return
	}
	c.mu.Lock()
	w := c.waiting[a.id]
	delete(c.waiting, a.id)
	c.mu.Unlock()
	if w == nil {
		seqpacket.CloseAll(a.files)
		return
	}
	w <- a
}

// call sends a request with files, which the caller still owns, and waits for the answer, or
// for the end of ctx. What a late answer brings is released when it comes.
func (c *Client) call(ctx context.Context, r request, files []*os.File) (answer, error) {
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return answer{}, ctx.Err()
	case <-c.gone:
		return answer{}, errGone
	}
	w := make(chan answer, 1)
	if r.id = c.register(w); r.id == 0 {
		<-c.slots
		return answer{}, errGone
	}
	if err := c.conn.Send(r.encode(), files); err != nil {
		c.mu.Lock()
		delete(c.waiting, r.id)
		c.mu.Unlock()
		<-c.slots
		return answer{}, err
	}
	select {
	case a := <-w:
		<-c.slots
		return a, a.failure()
	case <-ctx.Done():
	case <-c.gone:
	}
	select {
	case a := <-w: // it had arrived before
		<-c.slots
		return a, a.failure()
	case <-c.gone:
		<-c.slots
		return answer{}, errGone
	default:
	}
	go func() {
		select {
		case a := <-w:
			seqpacket.CloseAll(a.files)
		case <-c.gone:
		}
		<-c.slots // until now the supervisor has worked on it
	}()
	return answer{}, ctx.Err()
}

// failure returns the error of an answer, or nil.
func (a answer) failure() error {
	if a.err == "" {
		return nil
	}
	seqpacket.CloseAll(a.files)
	return &message.Error{Text: a.err, Kinds: a.kinds}
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
