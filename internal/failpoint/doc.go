// Package failpoint lets a test choose that the daemon fails at a named point: that
// it is killed there, that a step is left out, or that the step ends with an error
// (docs/decisions/0014).
//
// It does so in binaries with the build tag failpoint only. In others [Pass] and [Do]
// are empty, and the compiler leaves nothing of them.
package failpoint

// Variable names the environment variable with the path of a file that says what is
// to happen. Each of its lines is a point and an action: "kill" ends the daemon with
// SIGKILL, or, in a process of the daemon's that cannot, stops at the point and prints
// [Held]; "hold" always does the latter; "skip" leaves the step out, and the name of an errno makes the step fail
// with it. The file is read anew whenever a point is passed; while it does not
// exist, nothing happens.
const Variable = "SANDBOXD_FAILPOINTS"

// Held is printed on standard error, with the point behind it, by a process that waits
// for the daemon to be killed.
const Held = "held at "

// Point names a place in the daemon's code.
type Point string

// The steps of S-01, in the order in which a sandbox's life passes them.
const (
	ZipStaged           Point = "zip-staged"           // a package is extracted and not yet published
	CgroupMade          Point = "cgroup-made"          // no process or file of the sandbox exists
	NetNSMade           Point = "netns-made"           // the Runtime API's socket is bound
	RootMounted         Point = "root-mounted"         // no domain exists
	InitUp              Point = "init-up"              // a domain's init handler has sent its handshake
	ExtensionRegistered Point = "extension-registered" // its answer is not sent
	Idle                Point = "idle"                 // everyone waits for an event
	Invoking            Point = "invoking"             // the event is handed out
	ResponseReceived    Point = "response-received"    // and not delivered
	ShuttingDown        Point = "shutting-down"        // no process has been told
	HalfTornDown        Point = "half-torn-down"       // domains have ended, cgroups are left
)

// Steps are the points at which a daemon may be killed (S-01).
var Steps = []Point{
	ZipStaged, CgroupMade, NetNSMade, RootMounted, InitUp, ExtensionRegistered,
	Idle, Invoking, ResponseReceived, ShuttingDown, HalfTornDown,
}

// WorkerStarted is passed by the worker before it reads or says anything.
const WorkerStarted Point = "worker-started"

// ControlStarted is passed by the control process before it reads or says anything.
const ControlStarted Point = "control-started"

// Sealing is passed before the daemon executes its sealed copy.
const Sealing Point = "sealing"

// The steps of an entry of the store after ZipStaged, in the order of its life.
const (
	EntryPublished   Point = "entry-published"    // it has its name, which is not yet durable
	EntryClaimed     Point = "entry-claimed"      // a collector has locked it and not yet taken it out
	EntrySetAside    Point = "entry-set-aside"    // it has left the store, nothing of it is removed
	EntryHalfRemoved Point = "entry-half-removed" // the first of its files is removed
)

// StoreSteps are the points at which a process may be killed that makes or removes an
// entry of the store.
var StoreSteps = []Point{ZipStaged, EntryPublished, EntryClaimed, EntrySetAside, EntryHalfRemoved}

// The steps of a rotation of the host key, in their order.
const (
	HostKeyAdded    Point = "host-key-added"    // the file has both keys, and the daemon was not told
	HalfResealed    Point = "half-resealed"     // some rows of the store are encrypted with the new key
	HostKeyUnneeded Point = "host-key-unneeded" // all rows are, and the file still has the old key
)

// RotationSteps are the points at which a process may be killed that takes part in a rotation.
var RotationSteps = []Point{HostKeyAdded, HalfResealed, HostKeyUnneeded}

// What is done with [Do]: a step that can fail, or be forgotten.
const (
	RemoveCgroup Point = "remove-cgroup" // rmdir of one cgroup folder of a sandbox
	UnmountRoot  Point = "unmount-root"  // of a sandbox's root
	CloseNetNS   Point = "close-netns"   // the descriptor of a network namespace
	ReapInit     Point = "reap-init"     // wait for an init handler that has ended
	RemoveLink   Point = "remove-link"   // the interfaces of a sandbox with egress
	RemoveFilter Point = "remove-filter" // what the packet filter has of such a sandbox
	ReleaseIDs   Point = "release-ids"   // the lease of a sandbox's ids, and with it of its addresses
)

// The syncs of a blob, which a test can leave out to see that they are missed.
const (
	SyncBlob       Point = "sync-blob"        // of its content
	SyncBlobFolder Point = "sync-blob-folder" // of the folder with its name
)
