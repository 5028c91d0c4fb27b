package invoke

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/sandboxd/sandboxd/rapid"
)

// A budget limits the memory for data of clients. The zero value allows none. It is safe for
// concurrent use.
type budget struct {
	max  int64
	used atomic.Int64
}

// take takes n bytes. If that exceeds the budget, it takes nothing and returns false.
func (b *budget) take(n int64) bool {
	if b.used.Add(n) > b.max {
		b.used.Add(-n)
		return false
	}
	return true
}

func (b *budget) give(n int64) { b.used.Add(-n) }

// hold takes the bytes of a response from s.buffered, and returns how long its write may last
// and how many bytes the caller must give back: none if there were not enough.
func (s *Server) hold(res *rapid.Result) (patience time.Duration, held int64) {
	if n := int64(len(res.Payload)); s.buffered.take(n) {
		return s.cfg.WriteTimeout, n
	}
	return min(s.cfg.WriteTimeout, overBudgetTimeout), 0
}

// Sizes of read.
const (
	firstRead  = 8 << 10  // size of the first buffer
	countLimit = 64 << 20 // most bytes that are read of a body that is too large, to report its size
)

// readBody reads and checks the payload. The caller must give held bytes back to s.buffered,
// also after an error, which is a *refusal or one of signed.
func (s *Server) readBody(r *http.Request, k kind, signed BodyCheck) (body []byte, held int64, bad error) {
	body, held, err := s.read(r, k.limit())
	switch long, tooLong := errors.AsType[*tooLongError](err); {
	case tooLong:
		return nil, held, tooLarge(k, long.n)
	case errors.Is(err, errNoBuffer):
		return nil, held, errBuffers
	case err != nil:
		return nil, held, unread(err)
	}
	if signed != nil {
		if err := signed(body); err != nil {
			return nil, held, err
		}
	}
	if len(body) == 0 {
		return []byte("{}"), held, nil // INV-09
	}
	if !json.Valid(body) {
		var v json.RawMessage
		return nil, held, notJSON(json.Unmarshal(body, &v))
	}
	if i := firstInvalid(body); i >= 0 { // which json.Valid lets pass, and a runtime would stumble over
		return nil, held, notJSON(fmt.Errorf("invalid UTF-8 start or middle byte 0x%02x at offset %d", body[i], i))
	}
	return body, held, nil
}

// notJSON returns the refusal of a payload that is not JSON because of err (INV-09).
func notJSON(err error) *refusal {
	return badContent(fmt.Sprintf("Could not parse request body into json: Could not parse payload into json: %v", err))
}

// firstInvalid returns the offset of the first byte that is not UTF-8, or -1.
func firstInvalid(b []byte) int {
	if utf8.Valid(b) {
		return -1
	}
	for i := 0; ; {
		r, n := utf8.DecodeRune(b[i:])
		if r == utf8.RuneError && n == 1 {
			return i
		}
		i += n
	}
}

// errNoBuffer is the error of a body for which the budget has no bytes left.
var errNoBuffer = errors.New("the memory for bodies is used up")

// tooLongError is the error of a body that exceeds its limit. It has n bytes at least.
type tooLongError struct{ n int64 }

func (e *tooLongError) Error() string { return fmt.Sprintf("the body has %d bytes", e.n) }

// read reads the body of a request, of at most limit bytes. The caller must give held bytes
// back to s.buffered, also after an error. The buffer grows with the bytes that arrive, not
// with the announced length. The error is a *tooLongError, errNoBuffer, or one of the
// connection.
func (s *Server) read(r *http.Request, limit int) (body []byte, held int64, err error) {
	if r.ContentLength > int64(limit) {
		return nil, 0, &tooLongError{r.ContentLength}
	}
	most := limit + 1 // one more than allowed, to detect a body that is too large
	if r.ContentLength >= 0 {
		most = int(r.ContentLength)
	}
	grow := func(size int) bool {
		n := int64(size - cap(body))
		if !s.buffered.take(n) {
			return false
		}
		held += n
		body = append(make([]byte, 0, size), body...)
		return true
	}
	for {
		if len(body) == cap(body) && len(body) < most && !grow(min(max(2*cap(body), firstRead), most)) {
			return nil, held, errNoBuffer
		}
		n, err := r.Body.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		if len(body) > limit {
			more, _ := io.Copy(io.Discard, io.LimitReader(r.Body, countLimit))
			return nil, held, &tooLongError{int64(len(body)) + more}
		}
		if err == io.EOF {
			return body, held, nil
		}
		if err != nil {
			return nil, held, err
		}
	}
}

// tooLarge returns the refusal of INV-08.
func tooLarge(k kind, n int64) *refusal {
	return &refusal{status: http.StatusRequestEntityTooLarge, name: "RequestTooLargeException", hangUp: true,
		text: fmt.Sprintf("%d byte payload is too large for the %s invocation type (limit %d bytes)", n, k, k.limit())}
}

// unread returns the refusal of a request whose body could not be read because of err.
func unread(err error) *refusal {
	text := "The request body ends before its declared end."
	if errors.Is(err, os.ErrDeadlineExceeded) {
		text = "The request body did not come in time."
	}
	bad := badContent(text)
	bad.hangUp = true
	return bad
}

// ids are the identifiers of a request. No other package creates them.
type ids struct {
	request string // a random UUID
	trace   string // an X-Ray header value (RT-16), not sampled
}

func newIDs() ids {
	var b [36]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	var u [36]byte
	for i, p := range uuidGroups {
		hex.Encode(u[p.at:], b[p.from:p.to])
		if i > 0 {
			u[p.at-1] = '-'
		}
	}
	trace := make([]byte, 0, 80)
	trace = append(trace, "Root=1-"...)
	trace = hex.AppendEncode(trace, binary.BigEndian.AppendUint32(nil, uint32(time.Now().Unix())))
	trace = append(trace, '-')
	trace = hex.AppendEncode(trace, b[16:28])
	trace = append(trace, ";Parent="...)
	trace = hex.AppendEncode(trace, b[28:36])
	trace = append(trace, ";Sampled=0"...)
	return ids{request: string(u[:]), trace: string(trace)}
}

// uuidGroups maps the bytes of a UUID to positions in its text form.
var uuidGroups = [...]struct{ at, from, to int }{{0, 0, 4}, {9, 4, 6}, {14, 6, 8}, {19, 8, 10}, {24, 10, 16}}

// isUUID reports whether s is the text form of a UUID.
func isUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case i == 8 || i == 13 || i == 18 || i == 23:
			if c != '-' {
				return false
			}
		case c >= '0' && c <= '9', c >= 'a' && c <= 'f', c >= 'A' && c <= 'F':
		default:
			return false
		}
	}
	return true
}
