package lambda

import (
	"context"
	"encoding/json"
	"fmt"
	"time"
)

// Store keeps the state of functions. Its operations are those of package state.
type Store interface {
	// View runs f on one state of the store.
	View(ctx context.Context, f func(Reader) error) error
	// Update runs f, and returns when what it has changed is on disk. If f fails, nothing has
	// changed. f may run more than once.
	Update(ctx context.Context, f func(Tx) error) error
	// Epoch returns the epoch of the store, in which a revision's number is used once.
	Epoch() uint64
}

// Reader reads keys of a [Store].
type Reader interface {
	// Get returns the value of a key, nil if there is none.
	Get(key string) ([]byte, error)
	// List returns at most limit keys with a prefix, in order, that come after a key.
	List(prefix, after string, limit int) ([]Entry, error)
}

// Tx is a transaction of a [Store].
type Tx interface {
	Reader
	Put(key string, value []byte) error
	Delete(key string) error
}

// Entry is a key of a [Store] with its value.
type Entry struct {
	Key   string
	Value []byte
}

// Keys of the store.
const (
	functionKeys = "fn/"      // and the name: a record
	rolloutKeys  = "rollout/" // and the name: a task, while there is one
	revisionKeys = "rev/"     // and the number: a revisionRow
	oldKeys      = "old/"     // and a time and a number, of a revision that has been replaced
	counterKey   = "meta/number"
	usageKey     = "meta/usage"
)

// States of a function, and of its last update.
const (
	pending    = "Pending"
	active     = "Active"
	inactive   = "Failed"
	inProgress = "InProgress"
	successful = "Successful"
	unsuccess  = "Failed"
)

// A record is a function in the store.
type record struct {
	Name       string
	RevisionID string // new at each change of the record
	Modified   time.Time

	State, StateReason, StateReasonCode    string
	Update, UpdateReason, UpdateReasonCode string // LastUpdateStatus

	Tags    map[string]string `json:",omitempty"`
	Current *definition       `json:",omitempty"` // what runs; nil until the function is active
	Next    *definition       `json:",omitempty"` // what replaces it; nil if nothing does
}

// shown returns the definition that clients see: the next one, if there is one.
func (r *record) shown() *definition {
	if r.Next != nil {
		return r.Next
	}
	return r.Current
}

// A definition is what a revision of a function is made of. It does not change.
type definition struct {
	Number uint64 // of the revision

	Runtime     string `json:",omitempty"`
	Handler     string `json:",omitempty"`
	Role        string
	Description string `json:",omitempty"`
	Timeout     int
	Memory      int
	Ephemeral   int
	Package     string // Zip or Image
	Code        code
	Arch        string
	Env         []byte `json:",omitempty"` // sealed JSON; nil if the client has set none
	KMSKey      string `json:",omitempty"`
	Tracing     string
	SnapStart   string
	Log         logging
	VPC         *vpc         `json:",omitempty"`
	Tenancy     string       `json:",omitempty"`
	Image       *imageConfig `json:",omitempty"`
}

// code is the code of a definition.
type code struct {
	SHA256   string // in hexadecimal
	Size     int64
	ImageURI string `json:",omitempty"` // as the client named it
	Resolved string `json:",omitempty"` // with the digest
}

type logging struct {
	Format      string
	Application string `json:",omitempty"`
	System      string `json:",omitempty"`
	Group       string
}

type vpc struct {
	Subnets []string
	IPv6    bool `json:",omitempty"`
}

type imageConfig struct {
	EntryPoint       []string `json:",omitempty"`
	Command          []string `json:",omitempty"`
	WorkingDirectory string   `json:",omitempty"`
}

// A task is what is left to do to a function after a change has been acknowledged.
type task struct {
	Number uint64 // the revision that takes effect, or the number above all of a deleted function
	Gone   bool   `json:",omitempty"`
}

// A revisionRow finds the function of a revision. Of a replaced revision it has the
// environment, for requests that still run.
type revisionRow struct {
	Name     string
	Replaced bool   `json:",omitempty"`
	Env      []byte `json:",omitempty"`
}

// usage is how much the account has.
type usage struct {
	Functions int
	CodeBytes int64
}

// get reads a row into v, and reports whether there is one.
func get(r Reader, key string, v any) (bool, error) {
	b, err := r.Get(key)
	if err != nil || b == nil {
		return false, err
	}
	if err := decodeRow(key, b, v); err != nil {
		return false, err
	}
	return true, nil
}

func decodeRow(key string, b []byte, v any) error {
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("the row %s of the store cannot be read: %w", key, err)
	}
	return nil
}

// put writes v to a row.
func put(tx Tx, key string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return tx.Put(key, b)
}

// load reads a function, nil if there is none.
func load(r Reader, name string) (*record, error) {
	var rec record
	ok, err := get(r, functionKeys+name, &rec)
	if !ok {
		return nil, err
	}
	return &rec, nil
}

// nextNumber takes the next number of a revision.
func nextNumber(tx Tx) (uint64, error) {
	var n uint64
	if _, err := get(tx, counterKey, &n); err != nil {
		return 0, err
	}
	n++
	return n, put(tx, counterKey, n)
}

func revisionKey(number uint64) string { return fmt.Sprintf("%s%020d", revisionKeys, number) }

// oldKey is ordered by time.
func oldKey(until time.Time, number uint64) string {
	return fmt.Sprintf("%s%020d/%020d", oldKeys, until.Unix(), number)
}

// addUsage changes the account's usage.
func addUsage(tx Tx, functions int, bytes int64) error {
	var u usage
	if _, err := get(tx, usageKey, &u); err != nil {
		return err
	}
	u.Functions += functions
	u.CodeBytes += bytes
	return put(tx, usageKey, u)
}

// bytes returns the code bytes of a record that count: of its current and its next definition.
func (r *record) bytes() int64 {
	var n int64
	for _, d := range []*definition{r.Current, r.Next} {
		if d != nil {
			n += d.Code.Size
		}
	}
	if r.Current != nil && r.Next != nil && r.Current.Code.SHA256 == r.Next.Code.SHA256 {
		n -= r.Next.Code.Size
	}
	return n
}
