// Package backup is the process that checks and restores backups. The operator owns a backup,
// but the control process has written it, which may have been taken over. So the process is no
// root, and may use nothing but the backup and the folder that it fills. [Main] is its main
// function; package daemon starts it.
package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/confine"
	"github.com/sandboxd/sandboxd/internal/exit"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/internal/registry"
	"github.com/sandboxd/sandboxd/internal/seal"
	"github.com/sandboxd/sandboxd/state"
	"github.com/sandboxd/sandboxd/state/blob"
	"github.com/sandboxd/sandboxd/state/postgres"
	"github.com/sandboxd/sandboxd/state/sqlite"
)

// IsProcess reports whether this process is one for backups: then main must call [Main].
func IsProcess() bool { return os.Args[0] == message.BackupCommand }

// Main runs the process and returns its exit code.
func Main() int {
	answer, err := run(context.Background())
	if err != nil {
		answer = message.BackupAnswer{Error: err.Error()}
	}
	if err := json.NewEncoder(os.Stdout).Encode(answer); err != nil || answer.Error != "" {
		return exit.Usage
	}
	return exit.OK
}

// Resource limits of the process.
const (
	maxMemory = 1 << 30
	maxFiles  = 256 // descriptors
)

// run does the job.
func run(ctx context.Context) (answer message.BackupAnswer, err error) {
	job, err := message.ReadBackupJob(os.NewFile(message.ConfigFD, "job"))
	if err != nil {
		return answer, err
	}
	for resource, most := range map[int]uint64{unix.RLIMIT_DATA: maxMemory, unix.RLIMIT_NOFILE: maxFiles, unix.RLIMIT_MEMLOCK: 0, unix.RLIMIT_MSGQUEUE: 0} {
		if err := unix.Setrlimit(resource, &unix.Rlimit{Cur: most, Max: most}); err != nil {
			return answer, os.NewSyscallError("setrlimit", err)
		}
	}
	if err := confine.Store(); err != nil {
		return answer, err
	}
	sum, err := state.CheckBackup(ctx, os.Stdin)
	if err != nil {
		return answer, fmt.Errorf("check the backup: %w", err)
	}
	if answer, err = describe(sum, job.HostKeys); err != nil || job.Folder == "" || job.HostKeys != nil && len(answer.Missing) > 0 {
		return answer, err
	}
	if _, err := os.Stdin.Seek(0, 0); err != nil {
		return answer, err
	}
	return answer, restore(ctx, job)
}

// describe says what is in a backup, and which of the host keys that it needs are neither in it
// nor in text.
func describe(sum state.Summary, text []byte) (message.BackupAnswer, error) {
	a := message.BackupAnswer{Made: sum.Made, Rows: sum.Rows, Blobs: sum.Blobs, BlobBytes: sum.Bytes}
	if err := json.Unmarshal([]byte(sum.Note), &a.Note); err != nil || len(a.Note.HostKeys) == 0 {
		return a, errors.New("the backup does not say which host keys it needs: it was not made by 'sandboxd backup'")
	}
	if text == nil {
		text = []byte(a.Note.Text)
	}
	var has []string
	if len(text) > 0 {
		ring, err := seal.Parse(text)
		if err != nil {
			return a, fmt.Errorf("the file of host keys is not as sandboxd makes it: %w", err)
		}
		has = ring.IDs()
	}
	for _, id := range a.Note.HostKeys {
		if !slices.Contains(has, id) {
			a.Missing = append(a.Missing, id)
		}
	}
	return a, nil
}

// restore fills the folder of a control process, and the database if there is one. It verifies
// the store again as a start does.
func restore(ctx context.Context, job *message.BackupJob) (err error) {
	root, err := os.OpenRoot(job.Folder)
	if err != nil {
		return err
	}
	defer root.Close()
	blobs, err := blob.Open(root, blob.Options{Floor: job.FreeBytes})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, blobs.Close()) }()
	folder := filepath.Join(job.Folder, message.StoreFolder)
	if err := root.Mkdir(message.StoreFolder, 0o700); err != nil {
		return err
	}
	open := func() (*state.Engine, error) { return sqlite.Engine(ctx, sqlite.Options{Folder: folder}) }
	if job.Database.URL != "" {
		client, err := registry.NewClient(os.NewFile(message.LineFD, "supervisor"))
		if err != nil {
			return err
		}
		// The end of this process closes the line: until then the supervisor waits for the answer.
		open = func() (*state.Engine, error) {
			return postgres.Engine(ctx, postgres.Options{
				URL: job.Database.URL, Password: job.Database.Password, CA: job.Database.CA,
				Dial: func(ctx context.Context, _, _ string) (net.Conn, error) { return client.DialStore(ctx) },
			})
		}
	}
	e, err := open()
	if err != nil {
		return err
	}
	if _, err := state.Restore(ctx, e, os.Stdin, blobs); err != nil { // closes e
		return err
	}
	if e, err = open(); err != nil {
		return err
	}
	store, err := state.Open(ctx, e, state.Options{Folder: folder})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	if d := store.Damage(); len(d) > 0 {
		return fmt.Errorf("the restored store is damaged: %v: look at the disk", d[0])
	}
	if job.Database.URL != "" {
		return postgres.WriteFolder(folder, store.Epoch())
	}
	return nil
}
