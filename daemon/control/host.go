package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/daemon/control/folder"
	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/internal/registry"
	"github.com/sandboxd/sandboxd/internal/seal"
)

// Host is what an API gets of the daemon. Its methods are safe for concurrent use.
type Host struct {
	Config *message.ControlConfig
	Log    *logrus.Logger
	Lines  io.Writer // for other log lines, such as those of an audit

	// Ring has the host keys, which encrypt what is secret in the store.
	Ring *seal.Ring
	// HostKeys is the text of the file with them, for backups that shall have it.
	HostKeys []byte

	// Folders are those of the operator's from which code may come.
	Folders *folder.Folders

	client *registry.Client
	once   sync.Once
	worker *http.Client
}

// maxSends bounds how often the files of a revision are sent: the supervisor may have removed
// a tree between two requests.
const maxSends = 3

// Register registers a revision with the supervisor, which then makes sandboxes of it, and
// returns what the supervisor has found in its files. open opens the file of a tree that the
// supervisor does not have; Register closes it. Registering a revision again does no harm.
func (h *Host) Register(ctx context.Context, rev *message.Revision, open func(message.Digest) (*os.File, error)) (function.Program, error) {
	var files map[int]*os.File
	for n := 0; ; n++ {
		program, err := h.client.Register(ctx, rev, files)
		for _, f := range files {
			f.Close()
		}
		missing, ok := errors.AsType[*registry.Missing](err)
		if !ok || n == maxSends {
			return program, err
		}
		files = map[int]*os.File{}
		for _, i := range missing.Trees {
			if i >= len(rev.Trees()) {
				return program, fmt.Errorf("the supervisor wants tree %d of %d", i, len(rev.Trees()))
			}
			if files[i], err = open(rev.Trees()[i]); err != nil {
				delete(files, i)
				for _, f := range files {
					f.Close()
				}
				return program, err
			}
		}
	}
}

// Forget lets the supervisor forget a revision that will not be used any more. One that has
// sandboxes stays until the worker ends it.
func (h *Host) Forget(ctx context.Context, number uint64) error { return h.client.Forget(ctx, number) }
