package daemon

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/message"
)

// KeyPairFiles are the operator's files with the certificate of the endpoint and its private key,
// in PEM. The zero value stands for an endpoint without TLS.
type KeyPairFiles struct{ Certificate, Key string }

// keyPairs knows the key pair of the endpoint, and sees when the operator replaces its files. It
// is safe for concurrent use.
type keyPairs struct {
	files KeyPairFiles
	log   *logrus.Logger
	now   func() time.Time

	mu      sync.Mutex
	current *message.KeyPair
	checked time.Time // when the files were read last
	problem string    // with the files then; "" if there was none
	logged  bool      // the problem
}

// checkPause is the least time between two reads of the files: the worker causes them.
const checkPause = time.Second

// openKeyPairs reads the pair of an endpoint with TLS. Without TLS it returns nil.
func openKeyPairs(files KeyPairFiles, log *logrus.Logger) (*keyPairs, error) {
	if files == (KeyPairFiles{}) {
		return nil, nil
	}
	k := &keyPairs{files: files, log: log, now: time.Now}
	pair, leaf, err := files.read()
	if err != nil {
		return nil, err
	}
	pair.Number = 1
	k.current = pair
	k.warn(leaf)
	return k, nil
}

// newest returns the current pair, nil without TLS.
func (k *keyPairs) newest() *message.KeyPair {
	if k == nil {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.check()
	return k.current
}

// newer returns a file with the current pair, or nil if that has the number have.
func (k *keyPairs) newer(have uint64) (*os.File, error) {
	pair := k.newest()
	if pair.Number == have {
		return nil, nil
	}
	return pair.File()
}

// check reads the files if that was not done a moment ago. A pair that cannot be used changes
// nothing. It is logged if it is still there at the next check: the two files are hardly ever
// replaced at the same moment. The caller holds k.mu.
func (k *keyPairs) check() {
	now := k.now()
	if now.Sub(k.checked) < checkPause {
		return
	}
	k.checked = now
	pair, leaf, err := k.files.read()
	if err != nil {
		if text := err.Error(); text != k.problem {
			k.problem, k.logged = text, false
		} else if !k.logged {
			k.logged = true
			k.log.WithError(err).Error("the files of --tls-cert and --tls-key cannot be used; the certificate that was read before stays")
		}
		return
	}
	k.problem = ""
	if bytes.Equal(pair.Certificate, k.current.Certificate) && bytes.Equal(pair.Key, k.current.Key) {
		return
	}
	pair.Number = k.current.Number + 1
	k.current = pair
	k.log.WithField("expires", leaf.NotAfter.UTC().Format(time.RFC3339)).Info("the certificate of --tls-cert has changed: new connections use it")
	k.warn(leaf)
}

// warn warns of a certificate that clients do not accept at the moment.
func (k *keyPairs) warn(leaf *x509.Certificate) {
	switch now := k.now(); {
	case now.After(leaf.NotAfter):
		k.log.Warnf("the certificate in %s has expired at %s: clients refuse it; replace the file", k.files.Certificate, leaf.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(leaf.NotBefore):
		k.log.Warnf("the certificate in %s is valid from %s on: clients refuse it until then", k.files.Certificate, leaf.NotBefore.UTC().Format(time.RFC3339))
	}
}

// read reads the pair, and checks that it is one. It returns the certificate itself too.
func (files KeyPairFiles) read() (*message.KeyPair, *x509.Certificate, error) {
	certificate, err := readPEM("--tls-cert", files.Certificate, false)
	if err != nil {
		return nil, nil, err
	}
	key, err := readPEM("--tls-key", files.Key, true)
	if err != nil {
		return nil, nil, err
	}
	parsed, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return nil, nil, fmt.Errorf("--tls-cert %s, --tls-key %s: %s; the first needs the certificate with those of its issuers behind it, the second its private key without a password, both in PEM",
			files.Certificate, files.Key, strings.TrimPrefix(err.Error(), "tls: "))
	}
	return &message.KeyPair{Certificate: certificate, Key: key}, parsed.Leaf, nil
}

// maxPEM bounds each file.
const maxPEM = 256 << 10

// readPEM reads the file of a flag. If it is secret, nobody but root, and the group that root gave
// it to, may read it.
func readPEM(flag, path string, secret bool) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0) // it may be a link, as certbot's are
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("%s %s: %w", flag, path, err)
	}
	switch mode := st.Mode & 0o7777; {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, fmt.Errorf("%s %s is not a regular file", flag, path)
	case secret && int(st.Uid) != os.Geteuid():
		return nil, fmt.Errorf("%s %s belongs to user %d, who could replace it: chown it to user %d", flag, path, st.Uid, os.Geteuid())
	case secret && mode&0o027 != 0:
		return nil, fmt.Errorf("%s %s has mode %04o, so that others can read or change it: chmod it to 0600, and get another key if somebody could have read it", flag, path, mode)
	case st.Size > maxPEM:
		return nil, fmt.Errorf("%s %s has %d bytes, of at most %d", flag, path, st.Size, maxPEM)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxPEM))
	if err == nil && len(text) == 0 {
		err = errors.New("the file is empty")
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", flag, path, err)
	}
	return text, nil
}
