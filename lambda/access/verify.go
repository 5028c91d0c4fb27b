package access

import (
	"context"
	"encoding/hex"
	"strings"
	"time"

	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/lambda/sigv4"
)

// Verify answers the worker's question about a signature. The worker may have been taken
// over. It learns whether signatures that it has seen are right, and gets the derived key of a
// day for access keys that may do nothing but invoke, but only if it can show a signature of
// that day by such a key. Of other access keys it gets nothing that signs.
func (k *Keys) Verify(ctx context.Context, v message.Verify) (message.Verdict, error) {
	key, secret, err := k.active(ctx, v.AccessKeyID)
	if err != nil || key == nil {
		return message.Verdict{}, err
	}
	verdict := message.Verdict{Exists: true}
	if v.StringToSign == "" && v.Signature == "" {
		verdict.Allowed = key.Allows(v.Action, v.ARN)
		return verdict, nil
	}
	now := k.cfg.Now().UTC()
	until, ok := k.checkScope(v, now)
	if !ok {
		return verdict, nil
	}
	derived := sigv4.DeriveKey(secret, v.Date, v.Region, v.Service)
	if verdict.Known = sigv4.Matches(derived, v.StringToSign, v.Signature); !verdict.Known {
		return verdict, nil
	}
	k.mark(key)
	verdict.Allowed = key.Allows(v.Action, v.ARN)
	if verdict.Allowed && key.Kind == Invoke && now.Before(until) {
		verdict.Key, verdict.Until = derived, until
	}
	return verdict, nil
}

const (
	stampForm   = "20060102T150405Z"
	maxPresign  = 7 * 24 * time.Hour // the longest life of a presigned URL
	scopeDay    = 24 * time.Hour
	signedLines = 4
)

// checkScope reports whether a question is about a signature that a request can have now: in
// the scope of this daemon, with a string to sign of that scope. until is when the scope's
// day is over for requests whose clocks are right.
func (k *Keys) checkScope(v message.Verify, now time.Time) (until time.Time, ok bool) {
	if v.Region != k.cfg.Scope.Region || v.Service != k.cfg.Scope.Service {
		return until, false
	}
	day, err := time.Parse("20060102", v.Date)
	if err != nil || now.Before(day.Add(-sigv4.Skew)) || now.After(day.Add(scopeDay+maxPresign+sigv4.Skew)) {
		return until, false
	}
	lines := strings.Split(v.StringToSign, "\n")
	if len(lines) != signedLines {
		return until, false
	}
	stamp, err := time.Parse(stampForm, lines[1])
	if err != nil || !strings.HasPrefix(lines[1], v.Date) || stamp.After(now.Add(sigv4.Skew)) {
		return until, false
	}
	sum, err := hex.DecodeString(lines[3])
	return day.Add(scopeDay + sigv4.Skew), err == nil && len(sum) == 32 &&
		lines[0] == "AWS4-HMAC-SHA256" && lines[2] == v.Date+"/"+v.Region+"/"+v.Service+"/aws4_request"
}
