package message

import "os"

// ControlCommand is the name, argv[0], under which the binary is the control process.
const ControlCommand = "sandboxd-control"

// The descriptors that the control process begins with, beside 0, 1 and 2: LineFD, to the
// supervisor (internal/registry), ConfigFD, a file with the ControlConfig, and these.
const (
	HostKeyFD  = ConfigFD + 1 + iota // a file with the text of the host keys (internal/seal)
	OperatorFD                       // listens for operators and their commands
	FoldersFD                        // and those after it: ControlConfig.Folders, open
)

// ControlConfig is what the supervisor tells the control process at its start: all that it
// knows of the host and of the operator's choices.
type ControlConfig struct {
	Instance string // id of the daemon
	Folder   string // path of the folder that the control process may use, and nothing else

	LogLevel  string // least level of the daemon's own messages
	LogFormat string // "Text" or "JSON"

	Start       int       // which control process of this daemon it is, from 1 on
	FirstKey    AccessKey // an administrator's, to be stored unless there is or was one with its id; may be zero
	Unsigned    bool      // the worker may accept requests without a signature (--unsigned-loopback)
	SeriesLimit int       // most functions that have series of their own in the metrics
	TLS         bool      // clients reach the endpoint with https
	Limits      Limits

	Endpoint string   // URL at which clients reach the API
	Database Database // that keeps the store; the zero value is SQLite in Folder

	Region, AccountID string
	Runtimes          []string // names of the operator's; a Revision has the position
	Networks          []string // the same
	Profiles          []string // of system calls, the same
	Roles             []string // ARNs of those that have credentials, the same, from 1 on
	Folders           []Folder // from which code may come
	FreeBytes         int64    // of the disk, below which nothing more is stored
}

// Limits are what clients may use together. Zero values mean the defaults of package lambda.
type Limits struct {
	Functions int     // that exist
	CodeBytes int64   // of the code of all functions
	Uploads   int     // at once
	Rate      float64 // requests to the API a second, of one access key
	Burst     int     // the same at once
}

// Folder is a folder of the host that the operator has named.
type Folder struct{ Name, Path string }

// File returns an open file in memory with the configuration, for the control process's
// ConfigFD. The caller closes the file.
func (c *ControlConfig) File() (*os.File, error) { return writeConfig("control process", c) }

// ReadControlConfig reads what [ControlConfig.File] has written, and closes f.
func ReadControlConfig(f *os.File) (*ControlConfig, error) {
	return readConfig[ControlConfig]("control process", f)
}

// MemoryFile returns an open file in memory with text that a process is to read, at its
// beginning. The caller closes the file.
func MemoryFile(name string, text []byte) (*os.File, error) {
	return memoryFile(name, func(f *os.File) error {
		_, err := f.Write(text)
		return err
	})
}
