package control

import (
	"context"
	"io"

	"github.com/sandboxd/sandboxd/daemon/admin"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/state"
	"github.com/sandboxd/sandboxd/state/blob"
)

// backup returns what writes backups of the store and the blobs. A backup says which host keys
// its secrets need, and has them if that is wanted.
func (f *functions) backup(store *state.Store, blobs *blob.Store, keys admin.HostKeys) func(context.Context, io.Writer, bool) error {
	needed := keys.IDs
	if keys.Error == "" { // nothing is encrypted with the others
		needed = needed[:1]
	}
	return func(ctx context.Context, w io.Writer, hostKey bool) error {
		note := message.BackupNote{HostKeys: needed}
		if hostKey {
			note.Text = string(f.host.HostKeys)
		}
		_, err := store.Stream(ctx, w, blobs, note.String())
		return err
	}
}
