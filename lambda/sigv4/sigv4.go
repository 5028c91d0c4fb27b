// Package sigv4 verifies requests that are signed with AWS Signature Version 4.
//
// [Parse] checks all that needs no key: the form, the credential scope, the date, and that
// everything is signed that must be. It does not read the body. The caller finds the access
// key of the [Signature], derives the key of its scope with [DeriveKey], and asks
// [Signature.Verify].
//
// Some clients, such as those for JavaScript, announce the SHA-256 of the body in the header
// x-amz-content-sha256. Their signatures can be verified before the body is read. Others,
// such as botocore, the SDK for Go and curl, sign the hash without sending it. Of those the
// signature can only be verified when the body has been read. [Signature.Ready] tells the
// two apart, and [Signature.Body] serves both.
//
// docs/decisions/0053 has the reasons for what is stricter than AWS.
package sigv4

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"io"
	"net/http"
	"strings"
	"time"
)

const (
	algorithm  = "AWS4-HMAC-SHA256"
	terminator = "aws4_request"
	isoBasic   = "20060102T150405Z"
)

// Skew is how far the date of a request may be from now, both ways.
const Skew = 5 * time.Minute

// Scope is what the credential scope of a request must name.
type Scope struct {
	Region, Service string
}

// Signature is the signature of one request. It must not be used concurrently.
type Signature struct {
	AccessKeyID           string
	Date, Region, Service string    // of the credential scope; Date is like 20261201
	Token                 string    // the session token, or ""
	Until                 time.Time // when the signature expires
	Presigned             bool      // it is in the query

	stamp     string    // the request's date, as it is signed
	signature string    // in hexadecimal
	canonical hash.Hash // has the canonical request up to the hash of the payload
	payload   [sha256.Size]byte
	ready     bool   // payload is known
	toSign    string // once it was asked for
}

// Parse reads the signature of a request of net/http or httpfast. The request's RequestURI
// must be as it was received. The error is of type [*Error], and [ErrUnsigned] if there is
// no signature.
func Parse(r *http.Request, now time.Time, scope Scope) (*Signature, error) {
	if len(r.RequestURI) > maxTarget {
		return nil, invalidf("The path and the query have %d bytes, of at most %d", len(r.RequestURI), maxTarget)
	}
	query, err := parseQuery(r.RequestURI)
	if err != nil {
		return nil, err
	}
	form, err := find(r.Header, query)
	if err != nil {
		return nil, err
	}
	s := &Signature{signature: form.signature, Presigned: form.presigned, Token: form.token}
	if err := s.setScope(form.credential, scope); err != nil {
		return nil, err
	}
	if err := s.setDate(form, now); err != nil {
		return nil, err
	}
	if err := form.checkSigned(r.Header); err != nil {
		return nil, err
	}
	if err := s.announced(r, form); err != nil {
		return nil, err
	}
	return s, s.hashCanonical(r, form, query)
}

// setScope takes apart a credential, such as AKID/20261201/us-east-1/lambda/aws4_request.
func (s *Signature) setScope(credential string, scope Scope) error {
	parts := strings.SplitN(credential, "/", 6)
	if len(parts) != 5 {
		return incompletef("Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term, got '%s'", credential)
	}
	s.AccessKeyID, s.Date, s.Region, s.Service = parts[0], parts[1], parts[2], parts[3]
	switch {
	case !isKeyID(s.AccessKeyID):
		return ErrUnknownKey
	case s.Region != scope.Region:
		return invalidf("Credential should be scoped to a valid region, not '%s'. It is '%s' here.", s.Region, scope.Region)
	case s.Service != scope.Service:
		return invalidf("Credential should be scoped to correct service: '%s'. ", scope.Service)
	case parts[4] != terminator:
		return invalidf("Credential should be scoped with a valid terminator: '%s', not '%s'. ", terminator, parts[4])
	}
	return nil
}

// isKeyID reports whether s has the form of an access key's id.
func isKeyID(s string) bool {
	for i := range len(s) {
		if c := s[i]; c != '_' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
			return false
		}
	}
	return s != "" && len(s) <= 128
}

// setDate checks the date of the request.
func (s *Signature) setDate(f *form, now time.Time) error {
	at, err := time.Parse(isoBasic, f.date)
	if err != nil && f.dateName == "date" {
		at, err = http.ParseTime(f.date)
	}
	if err != nil {
		return incompletef("Date must be in ISO-8601 'basic format'. Got '%s'. See http://en.wikipedia.org/wiki/ISO_8601", f.date)
	}
	at, now = at.UTC(), now.UTC()
	s.stamp = at.Format(isoBasic)
	if s.Date != s.stamp[:8] {
		return invalidf("Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '%s' != '%s', from '%s'.", s.Date, s.stamp[:8], s.stamp)
	}
	if latest := now.Add(Skew); at.After(latest) {
		return invalidf("Signature not yet current: %s is still later than %s (%s + 5 min.)", s.stamp, latest.Format(isoBasic), now.Format(isoBasic))
	}
	if f.presigned {
		s.Until = at.Add(f.expires)
		if now.After(s.Until) {
			return invalidf("Signature expired: %s is now earlier than %s (the URL was valid for %d s)", s.Until.Format(isoBasic), now.Format(isoBasic), int(f.expires.Seconds()))
		}
		return nil
	}
	s.Until = at.Add(Skew)
	if now.After(s.Until) {
		return invalidf("Signature expired: %s is now earlier than %s (%s - 5 min.)", s.stamp, now.Add(-Skew).Format(isoBasic), now.Format(isoBasic))
	}
	return nil
}

// announced finds out whether the hash of the body is known before it is read.
func (s *Signature) announced(r *http.Request, f *form) error {
	values := r.Header["X-Amz-Content-Sha256"]
	if f.hash != "" {
		values = append([]string{f.hash}, values...)
	}
	switch {
	case len(values) > 1:
		return invalidf("The request has several values of x-amz-content-sha256. Send one.")
	case len(values) == 1:
		s.ready = decodeHash(s.payload[:], values[0])
		if !s.ready {
			return invalidf("x-amz-content-sha256 is '%s'. Payloads that are unsigned or signed in chunks are not accepted. Send the SHA-256 of the body in hexadecimal.", values[0])
		}
	case r.ContentLength == 0:
		s.payload, s.ready = sha256.Sum256(nil), true
	}
	return nil
}

// decodeHash decodes 64 digits, of which letters must be small.
func decodeHash(dst []byte, digits string) bool {
	if len(digits) != hex.EncodedLen(sha256.Size) || strings.ToLower(digits) != digits {
		return false
	}
	_, err := hex.Decode(dst, []byte(digits))
	return err == nil
}

// Ready reports whether the hash of the body is known, so that the signature can be verified
// now. It is when the client announced it, when there is no body, and when a reader of
// [Signature.Body] has come to its end.
func (s *Signature) Ready() bool { return s.ready }

// Payload takes the body of the request, whole. It returns [ErrPayload] if another hash was
// announced.
func (s *Signature) Payload(body []byte) error { return s.setPayload(sha256.Sum256(body)) }

func (s *Signature) setPayload(sum [sha256.Size]byte) error {
	if s.ready && s.payload != sum {
		return ErrPayload
	}
	s.payload, s.ready = sum, true
	return nil
}

// Body returns a reader of the request's body. It returns [ErrPayload] in place of [io.EOF]
// if another hash was announced. Whoever acts on a body must have seen io.EOF, and have
// verified the signature then if it was not [Signature.Ready] before.
func (s *Signature) Body(body io.Reader) io.Reader {
	return &hashedBody{body: body, hash: sha256.New(), signature: s}
}

type hashedBody struct {
	body      io.Reader
	hash      hash.Hash
	signature *Signature
	err       error
}

func (b *hashedBody) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	n, err := b.body.Read(p)
	b.hash.Write(p[:n])
	if err == io.EOF {
		if wrong := b.signature.setPayload([sha256.Size]byte(b.hash.Sum(nil))); wrong != nil {
			err = wrong
		}
	}
	b.err = err
	return n, err
}

// StringToSign is what the signature is the HMAC of. It is "" until the signature is
// [Signature.Ready].
func (s *Signature) StringToSign() string {
	if s.ready && s.toSign == "" {
		var digits [2 * sha256.Size]byte
		hex.Encode(digits[:], s.payload[:])
		s.canonical.Write(digits[:])
		hex.Encode(digits[:], s.canonical.Sum(nil))
		s.toSign = algorithm + "\n" + s.stamp + "\n" + s.Date + "/" + s.Region + "/" + s.Service + "/" + terminator + "\n" + string(digits[:])
	}
	return s.toSign
}

// Hex is the signature as it was sent: 64 hexadecimal digits.
func (s *Signature) Hex() string { return s.signature }

// Verify reports whether the signature was made with key, which [DeriveKey] gives for the
// scope of the signature. It takes the same time wherever a signature is wrong. It is false
// until the signature is [Signature.Ready].
func (s *Signature) Verify(key []byte) bool {
	return s.ready && Matches(key, s.StringToSign(), s.signature)
}

// Matches reports whether signature, in hexadecimal, is that of a string to sign.
func Matches(key []byte, stringToSign, signature string) bool {
	var got [sha256.Size]byte
	if len(key) != sha256.Size || !decodeHash(got[:], signature) {
		return false
	}
	h := hmac.New(sha256.New, key)
	io.WriteString(h, stringToSign)
	return hmac.Equal(h.Sum(nil), got[:])
}
