package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"time"

	"github.com/sandboxd/sandboxd/internal/accept"
)

// Times of a rotation of the host key.
const (
	rotateTime  = 10 * time.Second // for the command to change the file
	replaceTime = time.Minute      // for the control process to be replaced
)

// hostKeyStep is what the supervisor says about the host key: first where it is, and then
// what became of the change.
type hostKeyStep struct {
	Path  string `json:"path,omitempty"`
	Error string `json:"error,omitempty"`
}

// ServeHostKey serves the rotation of the host key at path on l until Close, and owns l. It
// tells each client the path. When the client has changed the file, it sends a byte, and
// replace has it read again. Apart from that byte, nothing is read from clients. It calls
// replace from one goroutine.
func ServeHostKey(l net.Listener, path string, replace func(context.Context) error, failed func(error)) *FactServer {
	l = accept.Listener(l, nil)
	s := &FactServer{l: l}
	s.done.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				if !errors.Is(err, net.ErrClosed) {
					failed(err)
				}
				return
			}
			serveHostKey(conn, path, replace)
		}
	})
	return s
}

func serveHostKey(conn net.Conn, path string, replace func(context.Context) error) {
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), replaceTime)
	defer cancel()
	_ = conn.SetDeadline(time.Now().Add(rotateTime))
	if err := json.NewEncoder(conn).Encode(hostKeyStep{Path: path}); err != nil {
		return // the client has gone
	}
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		return // it has changed nothing
	}
	var said hostKeyStep
	if err := replace(ctx); err != nil {
		said.Error = err.Error()
	}
	_ = conn.SetDeadline(time.Now().Add(answerTime))
	_ = json.NewEncoder(conn).Encode(said) // fails only if the client has gone
}

// ChangeHostKey calls change with the path of the host key of the daemon whose supervisor
// serves socket, and returns when the daemon uses what change has made of the file.
func ChangeHostKey(ctx context.Context, socket string, change func(path string) error) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	answers := json.NewDecoder(io.LimitReader(bufio.NewReader(conn), maxListBytes))
	var said hostKeyStep
	if err := answers.Decode(&said); err != nil {
		return err
	}
	if err := change(said.Path); err != nil {
		return err
	}
	if _, err := conn.Write([]byte{'\n'}); err != nil {
		return err
	}
	said = hostKeyStep{}
	if err := answers.Decode(&said); err != nil {
		return err
	}
	if said.Error != "" {
		return errors.New(said.Error)
	}
	return nil
}
