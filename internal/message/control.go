package message

import "os"

// ControlCommand is the name, argv[0], under which the binary is the control process.
const ControlCommand = "sandboxd-control"

// The descriptors that the control process begins with, beside 0, 1 and 2: LineFD, to the
// supervisor (internal/registry), and ConfigFD, a file with the ControlConfig.

// ControlConfig is what the supervisor tells the control process at its start: all that it
// knows of the host and of the operator's choices.
type ControlConfig struct {
	Instance string // id of the daemon
	Folder   string // path of the folder that the control process may use, and nothing else

	LogLevel  string // least level of the daemon's own messages
	LogFormat string // "Text" or "JSON"

	Region, AccountID string
	Runtimes          []string // names of the operator's; a Revision has the position
	Networks          []string // the same
	Profiles          []string // of system calls, the same
	FreeBytes         int64    // of the disk, below which nothing more is stored
}

// File returns an open file in memory with the configuration, for the control process's
// ConfigFD. The caller closes the file.
func (c *ControlConfig) File() (*os.File, error) { return writeConfig("control process", c) }

// ReadControlConfig reads what [ControlConfig.File] has written, and closes f.
func ReadControlConfig(f *os.File) (*ControlConfig, error) {
	return readConfig[ControlConfig]("control process", f)
}
