package message

import (
	"encoding/json"
	"os"
	"time"
)

// BackupCommand is the name, argv[0], under which the binary is the process that checks and
// restores backups. It begins with the backup as its standard input, and writes a
// [BackupAnswer] in JSON to its standard output. ConfigFD is a file with the BackupJob, and
// LineFD a line to the supervisor if the job has a Database.
const BackupCommand = "sandboxd-backup"

// BackupNote is what a backup says beside the store and the blobs, as JSON.
type BackupNote struct {
	HostKeys []string `json:"host_keys"`          // ids of those that its secrets are encrypted with
	Text     string   `json:"host_key,omitempty"` // the file of these keys, only if the operator wanted it
}

// String returns the note as a backup has it.
func (n BackupNote) String() string {
	b, _ := json.Marshal(n) // never fails
	return string(b)
}

// BackupJob says what becomes of a backup.
type BackupJob struct {
	Folder    string   // to be filled: that of a control process; "" only checks the backup, as do missing host keys
	Database  Database // in which the store is restored; the zero value is SQLite in Folder
	HostKeys  []byte   // the file of host keys that the new host has; nil if there is none yet
	FreeBytes int64    // of the disk that stay free
}

// File returns an open file in memory with the job. The caller closes the file.
func (j *BackupJob) File() (*os.File, error) { return writeConfig("backup process", j) }

// ReadBackupJob reads what [BackupJob.File] has written, and closes f.
func ReadBackupJob(f *os.File) (*BackupJob, error) { return readConfig[BackupJob]("backup process", f) }

// MaxBackupAnswer is the most bytes of a BackupAnswer.
const MaxBackupAnswer = 1 << 20

// BackupAnswer says what is in a backup that was checked or restored.
type BackupAnswer struct {
	Error string `json:",omitempty"` // why it could not be; the rest is zero then

	Made        time.Time
	Rows, Blobs uint64
	BlobBytes   uint64
	Note        BackupNote
	Missing     []string // ids of host keys that BackupJob.HostKeys does not have
}

// StoreFolder is the name of the store's folder, in that of the control process.
const StoreFolder = "store"

// Database is a PostgreSQL database that keeps the store.
type Database struct {
	URL      string // without a password; "" stands for SQLite
	Password string
	CA       []byte // PEM certificates that the server's certificate is verified by
}
