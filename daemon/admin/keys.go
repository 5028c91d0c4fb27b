package admin

import "time"

// The paths of what the control process answers on the operators' socket.
const (
	MetricsPath  = "/metrics"      // GET
	HealthPath   = "/health"       // GET: 200 while the control process runs
	ReadyPath    = "/ready"        // GET: 200 if functions can be called
	KeysPath     = "/v1/keys"      // GET, answered with a list of Key; POST of NewKey, answered with CreatedKey
	RevokePath   = "/v1/revoke"    // POST of RevokeKey, answered with Key
	HostKeysPath = "/v1/host-keys" // GET, answered with HostKeys
	EndpointPath = "/v1/endpoint"  // GET, answered with Endpoint
	APIPath      = "/2015-03-31/"  // the Lambda API, without signatures
	BackupPath   = "/v1/backup"    // GET, answered with a backup and BackupTrailer; with ?host-key=1, for root alone, it has the host key
)

// BackupTrailer is the trailer that ends a backup: BackupWhole, or why the backup is not whole.
const (
	BackupTrailer = "Sandboxd-Backup"
	BackupWhole   = "whole"
)

// Endpoint is where clients reach the Lambda API of a daemon.
type Endpoint struct {
	URL      string `json:"url"`
	Region   string `json:"region"`
	Unsigned bool   `json:"unsigned,omitempty"` // requests from this host need no signature
}

// Key describes an access key.
type Key struct {
	ID        string    `json:"id"`
	Kind      string    `json:"kind"`                // admin or invoke
	Functions []string  `json:"functions,omitempty"` // patterns of names; of invoke keys
	Created   time.Time `json:"created"`
	Used      string    `json:"used,omitempty"` // the last day, in UTC; "" if never
	Revoked   time.Time `json:"revoked,omitzero"`
}

// NewKey asks for an access key: one that may only invoke functions, or, without patterns, one
// that may do everything.
type NewKey struct {
	Invoke []string `json:"invoke,omitempty"`
}

// CreatedKey is a new access key.
type CreatedKey struct {
	Key
	Secret string `json:"secret"`
}

// RevokeKey revokes an access key.
type RevokeKey struct {
	ID string `json:"id"`
}

// HostKeys says with which host keys the secrets in the store are encrypted.
type HostKeys struct {
	IDs        []string `json:"ids"`             // those that the control process has; the first one encrypts
	Unreadable int      `json:"unreadable"`      // secrets that none of them decrypts
	Error      string   `json:"error,omitempty"` // why not all secrets are encrypted with the first one
}

// Failure is the answer to a request that failed.
type Failure struct {
	Error string `json:"error"`
}
