package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/daemon/control"
	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/internal/message"
)

// functions is a control process that does what requests say. With --region the control process
// is that of sandboxd instead, and only the worker has been taken over.
type functions struct {
	host *control.Host
	mux  http.ServeMux
}

func openControl(ctx context.Context, h *control.Host) (control.API, error) {
	if h.Config.Region != "" {
		return control.OpenFunctions(ctx, h)
	}
	f := &functions{host: h}
	if err := os.Mkdir(f.blob(""), 0o700); err != nil && !os.IsExist(err) {
		return nil, err
	}
	f.mux.HandleFunc("/control/pid", func(w http.ResponseWriter, r *http.Request) { answer(w, f.host.Config, nil) })
	f.mux.HandleFunc("/control/try", func(w http.ResponseWriter, r *http.Request) {
		said, err := try(r.FormValue("what"), r.FormValue("of"))
		answer(w, said, err)
	})
	f.mux.HandleFunc("/control/put", func(w http.ResponseWriter, r *http.Request) {
		digest, err := f.put(r.Body)
		answer(w, digest, err)
	})
	f.mux.HandleFunc("/control/register", f.register)
	f.mux.HandleFunc("/control/forget", func(w http.ResponseWriter, r *http.Request) {
		var n uint64
		_, _ = fmt.Sscan(r.FormValue("n"), &n)
		answer(w, nil, f.host.Forget(r.Context(), n))
	})
	f.mux.HandleFunc("/control/switch", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 20*time.Second)
		defer cancel()
		answer(w, nil, f.host.Switch(ctx, message.Switch{Name: r.FormValue("name"), Number: 7}))
	})
	f.mux.HandleFunc("/control/exit", func(http.ResponseWriter, *http.Request) { os.Exit(3) })
	return f, nil
}

func (f *functions) ServeHTTP(w http.ResponseWriter, r *http.Request) { f.mux.ServeHTTP(w, r) }

func (f *functions) Resolve(_ context.Context, name, qualifier string) (message.Resolved, error) {
	if name != "known" {
		return message.Resolved{}, &message.Fault{Status: 404, Type: "ResourceNotFoundException", Message: "no function " + name + ":" + qualifier}
	}
	return message.Resolved{Revision: function.Revision{ID: function.ID{Epoch: 1, Number: 7}}, Reserved: -1}, nil
}

func (f *functions) Environment(_ context.Context, revision uint64) (map[string]string, error) {
	return map[string]string{"REVISION": fmt.Sprint(revision)}, nil
}

func (f *functions) Verify(_ context.Context, v message.Verify) (message.Verdict, error) {
	return message.Verdict{Known: v.AccessKeyID == "known"}, nil
}

func (f *functions) Operators() http.Handler { return http.NotFoundHandler() }

func (f *functions) Close() error { return nil }

func (f *functions) blob(digest string) string {
	return filepath.Join(f.host.Config.Folder, "blobs", digest)
}

// put stores a blob and returns its digest.
func (f *functions) put(r io.Reader) (string, error) {
	b, err := io.ReadAll(r)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	digest := hex.EncodeToString(sum[:])
	return digest, os.WriteFile(f.blob(digest), b, 0o600)
}

// register registers a message.Revision that is given in JSON. The query "file" names a blob
// to send for every tree that is missing, "pipe", or "folder".
func (f *functions) register(w http.ResponseWriter, r *http.Request) {
	var rev message.Revision
	if err := json.NewDecoder(r.Body).Decode(&rev); err != nil {
		answer(w, nil, err)
		return
	}
	sent := 0
	program, err := f.host.Register(r.Context(), &rev, func(d message.Digest) (*os.File, error) {
		sent++
		switch file := r.FormValue("file"); file {
		case "":
			return os.Open(f.blob(hex.EncodeToString(d[:])))
		case "folder":
			return os.Open(f.host.Config.Folder)
		case "pipe":
			reader, _, err := os.Pipe()
			return reader, err
		case "write-only":
			return os.OpenFile(f.blob(hex.EncodeToString(d[:])), os.O_WRONLY, 0)
		default:
			return os.Open(f.blob(file))
		}
	})
	answer(w, map[string]any{"program": program, "sent": sent}, err)
}

// try does what a process that was taken over would do.
func try(what, of string) (any, error) {
	switch what {
	case "open":
		f, err := os.Open(of)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return "opened", nil
	case "create":
		return nil, os.WriteFile(of, nil, 0o600)
	case "connect":
		conn, err := net.DialTimeout("tcp", of, time.Second)
		if err == nil {
			conn.Close()
		}
		return nil, err
	case "socket":
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err == nil {
			unix.Close(fd)
		}
		return nil, err
	case "exec":
		return nil, exec.Command(of).Run()
	case "replace":
		return nil, syscall.Exec(of, []string{of}, nil)
	case "fork":
		pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		if errno != 0 {
			return nil, errno
		}
		if pid == 0 {
			unix.RawSyscall(unix.SYS_EXIT, 0, 0, 0)
		}
		return nil, nil
	case "kill":
		var pid int
		_, _ = fmt.Sscan(of, &pid)
		return nil, syscall.Kill(pid, 0)
	case "ptrace":
		var pid int
		_, _ = fmt.Sscan(of, &pid)
		return nil, unix.PtraceAttach(pid)
	case "violate": // the protocol
		for fd := range 20 {
			if kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err == nil && kind == unix.SOCK_SEQPACKET {
				_, err := unix.Write(fd, []byte("GET / HTTP/1.1"))
				return fd, err
			}
		}
	case "namespace":
		return nil, unix.Unshare(unix.CLONE_NEWUSER)
	case "setuid":
		return nil, unix.Setresuid(0, 0, 0)
	}
	return nil, fmt.Errorf("unknown attempt %q", what)
}
