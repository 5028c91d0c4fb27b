package operator

import (
	"cmp"
	"io"
	"strconv"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/internal/logging"
	"github.com/sandboxd/sandboxd/lambda"
)

// Audit writes a line for each call of the API and each command of an operator: who, what, on
// what, and with what result. It has no secrets. Its methods are safe for concurrent use.
type Audit struct{ log *logrus.Logger }

// NewAudit returns an Audit that writes lines to w, as JSON or as text, whatever the level of
// the log is.
func NewAudit(w io.Writer, json bool) *Audit { return &Audit{logging.New(w, "info", json)} }

// auditMessage is the message of all lines.
const auditMessage = "audit"

// ok is the result of what did not fail.
const ok = "ok"

// Call writes the line of a call.
func (a *Audit) Call(c lambda.Call) {
	a.log.WithTime(c.Time).WithFields(logrus.Fields{
		"key": printable(c.Key), "action": printable(c.Action), "arn": printable(c.ARN), "result": printable(cmp.Or(c.Type, ok)),
		"status": c.Status, "request_id": printable(c.RequestID), "duration_ms": c.Duration.Milliseconds(),
	}).Info(auditMessage)
}

// command writes the line of a command on the operators' socket. key is the access key that it
// was about.
func (a *Audit) command(by Peer, action, key string, err error) {
	result := ok
	if err != nil {
		result = err.Error()
	}
	a.log.WithTime(time.Now()).WithFields(logrus.Fields{
		"uid": by.UID, "pid": by.PID, "action": action, "key": printable(key), "result": printable(result),
	}).Info(auditMessage)
}

// read writes the line of an operator who reads the log of a function.
func (a *Audit) read(by Peer, name string, err error) {
	result := ok
	if err != nil {
		result = err.Error()
	}
	a.log.WithTime(time.Now()).WithFields(logrus.Fields{
		"uid": by.UID, "pid": by.PID, "action": "read-logs", "function": printable(name), "result": printable(result),
	}).Info(auditMessage)
}

// maxField bounds a field of a line.
const maxField = 400

// printable returns text as it is if all of it can be printed, else with escapes.
func printable(s string) string {
	s = s[:min(len(s), maxField)]
	for _, r := range s {
		if !strconv.IsPrint(r) || r == 0xFFFD {
			quoted := strconv.QuoteToASCII(s)
			return quoted[1 : len(quoted)-1]
		}
	}
	return s
}
