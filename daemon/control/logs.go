package control

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"

	"github.com/sandboxd/sandboxd/daemon/admin"
	"github.com/sandboxd/sandboxd/daemon/control/operator"
	"github.com/sandboxd/sandboxd/internal/message"
)

// logLines asks the worker for lines of logs, over connections that nothing else waits for.
type logLines struct {
	host *Host
	once sync.Once
	http *http.Client
}

// read returns the lines of a function, encoded. known says that there is such a function. The
// error is operator.ErrNoLines if there are no lines and nobody has to wait for them, and
// message.ErrNoWorker if there is no worker.
func (l *logLines) read(ctx context.Context, q admin.LogQuery, known bool) (io.ReadCloser, error) {
	l.once.Do(func() {
		l.http = &http.Client{Transport: &http.Transport{
			DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return l.host.client.Connect(ctx) },
			DisableKeepAlives: true, MaxResponseHeaderBytes: maxHeader, DisableCompression: true,
		}}
	})
	target := "http://" + message.WorkerHost + message.LogsPath + "?" + q.Encode()
	if known {
		target += "&known=1"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return nil, err
	}
	res, err := l.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask the worker for logs: %w", err)
	}
	switch res.StatusCode {
	case http.StatusOK:
		return res.Body, nil
	case http.StatusNotFound:
		err = operator.ErrNoLines
	case http.StatusServiceUnavailable:
		err = operator.ErrTooManyReaders
	default:
		err = fmt.Errorf("the worker answers a request for logs with %s", res.Status)
	}
	res.Body.Close()
	return nil, err
}
