package lambda

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// CodePath begins the path of URLs from which clients get the code of a function. They have a
// signature of their own, so requests for them are not authenticated.
const CodePath = "/code/"

// codeValid is how long such a URL works, as on Lambda.
const codeValid = 10 * time.Minute

// codeURL returns a URL of the code with a digest that works for a while without a signature of
// the client. It ends to work with this process, too.
func (s *Service) codeURL(host, digest string) string {
	until := strconv.FormatInt(s.cfg.Now().Add(codeValid).Unix(), 10)
	return fmt.Sprintf("%s://%s%s%s?Expires=%s&Signature=%s", s.cfg.Scheme, host, CodePath, digest, until, s.sign(digest, until))
}

func (s *Service) sign(digest, until string) string {
	h := hmac.New(sha256.New, s.urlKey[:])
	_, _ = io.WriteString(h, digest+"/"+until) // never fails
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil))
}

// serveCode answers a request for such a URL, and reports whether it is one.
func (s *Service) serveCode(w http.ResponseWriter, r *http.Request) bool {
	digest, ok := strings.CutPrefix(r.URL.Path, CodePath)
	if !ok {
		return false
	}
	denied := &Error{Status: http.StatusForbidden, Type: "AccessDeniedException", Message: "The URL has expired or is not valid: get another by GetFunction"}
	if r.Method != http.MethodGet {
		denied.write(w)
		return true
	}
	query := r.URL.Query()
	until := query.Get("Expires")
	expires, err := strconv.ParseInt(until, 10, 64)
	if err != nil || !hmac.Equal([]byte(s.sign(digest, until)), []byte(query.Get("Signature"))) || s.cfg.Now().Unix() >= expires {
		denied.write(w)
		return true
	}
	var want [sha256.Size]byte
	if n, err := hex.Decode(want[:], []byte(digest)); err != nil || n != len(want) { // never: it was signed
		denied.write(w)
		return true
	}
	content, size, err := s.cfg.Blobs.Open(r.Context(), want)
	if err != nil {
		s.cfg.OnError(fmt.Errorf("code %s: %w", digest, err))
		failed(err).write(w)
		return true
	}
	defer content.Close()
	w.Header().Set("Content-Type", "application/zip")
	w.Header().Set("Content-Length", strconv.FormatInt(size, 10)) // so that one cut short is not taken for whole
	if _, err := io.Copy(w, content); err != nil {
		s.cfg.OnError(fmt.Errorf("code %s: %w", digest, err))
	}
	return true
}
