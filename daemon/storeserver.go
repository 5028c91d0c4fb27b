package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/internal/storeurl"
)

// StoreServer is a PostgreSQL server that keeps the store. Root connects to its address, and to
// no other, and hands the connection to the control process, which has no sockets of its own.
type StoreServer struct {
	url              string
	network, address string
	passwordFile, ca string // "" is none
}

// NewStoreServer returns the server of an address, as package storeurl has it. passwordFile has
// the password, "" is none; ca has PEM certificates that the server's is verified by, "" stands
// for those of the host.
func NewStoreServer(url, passwordFile, ca string) (*StoreServer, error) {
	u, err := storeurl.Parse(url)
	if err != nil {
		return nil, err
	}
	s := &StoreServer{url: url, passwordFile: passwordFile, ca: ca}
	if s.network, s.address, err = u.Address(); err != nil {
		return nil, err
	}
	if s.ca == "" && !u.Plain && !u.IsFolder() {
		if s.ca = hostCertificates(); s.ca == "" {
			return nil, fmt.Errorf("this host has no file of certificates (%s): name one by --store-ca", strings.Join(certificateFiles, ", "))
		}
	}
	_, err = s.database() // so that a missing file is an error now
	return s, err
}

// certificateFiles are where distributions have the certificates that they trust.
var certificateFiles = []string{"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem"}

func hostCertificates() string {
	for _, path := range certificateFiles {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return ""
}

// dialTime is how long the server may take to accept a connection.
const dialTime = 10 * time.Second

// dial returns a new connection to the server.
func (s *StoreServer) dial(ctx context.Context) (*os.File, error) {
	conn, err := (&net.Dialer{Timeout: dialTime}).DialContext(ctx, s.network, s.address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	socket, ok := conn.(interface{ File() (*os.File, error) })
	if !ok {
		return nil, fmt.Errorf("%T is not a socket", conn)
	}
	return socket.File()
}

// Limits of the files of a server.
const (
	maxPassword     = 4 << 10
	maxCertificates = 4 << 20
)

// database returns what the control process needs to know of the server. It reads the files
// anew: they may have been changed.
func (s *StoreServer) database() (message.Database, error) {
	db := message.Database{URL: s.url}
	if s.passwordFile != "" {
		text, err := readSecret(s.passwordFile)
		if err != nil {
			return db, fmt.Errorf("--store-password-file: %w", err)
		}
		db.Password = strings.TrimSuffix(strings.TrimSuffix(string(text), "\n"), "\r")
	}
	if s.ca != "" {
		f, err := os.Open(s.ca)
		if err != nil {
			return db, fmt.Errorf("--store-ca: %w", err)
		}
		defer f.Close()
		if db.CA, err = io.ReadAll(io.LimitReader(f, maxCertificates+1)); err != nil {
			return db, fmt.Errorf("--store-ca: %w", err)
		}
		if len(db.CA) > maxCertificates {
			return db, fmt.Errorf("--store-ca: %s has more than %d bytes", s.ca, maxCertificates)
		}
	}
	return db, nil
}

// readSecret reads a file of this process's user that nobody else may read.
func readSecret(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, fmt.Errorf("%s is no regular file", path)
	case int(st.Uid) != os.Geteuid():
		return nil, fmt.Errorf("%s belongs to user %d, not to %d; chown it", path, st.Uid, os.Geteuid())
	case st.Mode&0o077 != 0:
		return nil, fmt.Errorf("%s can be used by others (mode %04o); chmod it to 0600", path, st.Mode&0o7777)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxPassword+1))
	if err == nil && len(text) > maxPassword {
		err = errors.New("is too long for a password")
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return text, nil
}
