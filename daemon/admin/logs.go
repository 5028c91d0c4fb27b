package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// LogsPath is what the control process answers with the lines of a function: GET, with the
// queries function, from, since and follow; answered with a LogLine in each line.
const LogsPath = "/v1/logs"

// LogLine is a line of the log of a function.
type LogLine struct {
	Time time.Time `json:"time"`
	Text string    `json:"text"`
	Next string    `json:"next"` // the position after the line
	// Lost says that there were lines before this one, which were removed before they could
	// be sent.
	Lost bool `json:"lost,omitempty"`
}

// LogQuery asks for lines of a function.
type LogQuery struct {
	Function string
	From     string    // a position; "" is the oldest line
	Since    time.Time // older lines are left out; may be zero
	Follow   bool      // wait for more
}

// Encode returns the query of a URL.
func (q LogQuery) Encode() string {
	v := url.Values{"function": {q.Function}}
	if q.From != "" {
		v.Set("from", q.From)
	}
	if !q.Since.IsZero() {
		v.Set("since", strconv.FormatInt(q.Since.UnixMilli(), 10))
	}
	if q.Follow {
		v.Set("follow", "1")
	}
	return v.Encode()
}

// ParseLogQuery reads what Encode returns.
func ParseLogQuery(v url.Values) (q LogQuery, err error) {
	q = LogQuery{Function: v.Get("function"), From: v.Get("from"), Follow: v.Get("follow") == "1"}
	if since := v.Get("since"); since != "" {
		ms, err := strconv.ParseInt(since, 10, 64)
		if err != nil {
			return q, fmt.Errorf("since is a number of milliseconds, and not %.64q", since)
		}
		q.Since = time.UnixMilli(ms)
	}
	return q, nil
}

// maxLogLine is the most bytes of an encoded LogLine.
const maxLogLine = 1 << 20

// reconnectPause is how long Logs waits before it asks again, after a process of the daemon
// has died.
const reconnectPause = 200 * time.Millisecond

// startTime is how long Logs waits for a process of the daemon that is being started, if it
// does not follow.
const startTime = 10 * time.Second

// Logs passes the lines of a function to emit. With Follow it waits for more, until ctx ends or
// the daemon has exited, for which the error is nil. When a process of the daemon dies, it goes
// on where it was with the next one, and it waits for one that is being started; without Follow
// for some seconds.
func (o *Operators) Logs(ctx context.Context, q LogQuery, emit func(LogLine) error) error {
	client := &http.Client{Transport: o.http.Transport} // without a limit of time
	for began := time.Now(); ; {
		again, err := o.logs(ctx, client, &q, emit)
		switch {
		case ctx.Err() != nil:
			return nil
		case !again, !q.Follow && time.Since(began) > startTime:
			return err
		}
		if absent(o.try(ctx)) { // the daemon has exited
			if q.Follow {
				err = nil
			}
			return err
		}
		timer := time.NewTimer(reconnectPause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
	}
}

// logs asks once. again reports whether it is worth to ask again.
func (o *Operators) logs(ctx context.Context, client *http.Client, q *LogQuery, emit func(LogLine) error) (again bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://sandboxd"+LogsPath+"?"+q.Encode(), nil)
	if err != nil {
		return false, err
	}
	res, err := client.Do(req)
	if err != nil {
		return q.Follow, fmt.Errorf("ask daemon %s for logs: %w", o.ID, err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		var f Failure
		text, _ := io.ReadAll(io.LimitReader(res.Body, maxLogLine))
		if json.Unmarshal(text, &f) != nil || f.Error == "" {
			f.Error = fmt.Sprintf("%s: %.200q", res.Status, text)
		}
		return res.StatusCode == http.StatusServiceUnavailable, errors.New(f.Error)
	}
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(nil, maxLogLine)
	for lines.Scan() {
		var l LogLine
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			return false, fmt.Errorf("daemon %s answers with what is no line of a log: %w", o.ID, err)
		}
		q.From = l.Next
		if err := emit(l); err != nil {
			return false, err
		}
	}
	if err := lines.Err(); err != nil && !errors.Is(err, bufio.ErrTooLong) {
		return true, fmt.Errorf("read the logs of daemon %s: %w", o.ID, err)
	} else if err != nil {
		return false, err
	}
	return q.Follow, nil
}
