// Command actor is the function and the extensions of the end-to-end tests: the actor of
// the conformance suite with more operations, which use up resources, try the network and
// attack what is around them. It is built static. Started with arguments it plays a part
// that one of these operations needs a process for.
package main

import (
	"context"
	"os"
	"time"

	"github.com/sandboxd/sandboxd/conformance/actor"
	"github.com/sandboxd/sandboxd/conformance/script"
)

// operations are the steps that this program adds, by their Op.
var operations = map[string]actor.Operation{
	// files and time
	"await":     await,     // waits until the file Path exists
	"list":      list,      // the names in the folder Path
	"remove":    remove,    // Path, with what is in it
	"heartbeat": heartbeat, // prints an entry "heartbeat" every MS, for ever
	"frames":    frames,    // Data as framed log messages, split at every byte
	// processes
	"exec":    execute,  // Argv: what it printed, and its exit code in Status
	"clone":   clone,    // a process with the clone flags N
	"kill":    kill,     // SIGKILL to process N
	"fork":    forkMany, // up to N processes that do nothing, until one cannot be started: N is how many
	"bomb":    bomb,     // a fork bomb, which goes on
	"orphans": orphans,  // N processes whose parents end before them
	"threads": threads,  // N threads at once
	// network
	"dial":      dial,      // Path by Method, tcp or udp: sends Data, and has the answer that comes within MS
	"lookup":    lookup,    // the addresses of the name Path
	"bind":      bind,      // listens at the TCP address Path and stops again
	"rawsocket": rawSocket, // a socket of Method "ip" or "packet" for packets of one's own making
	"linkdown":  linkDown,  // lowers the interface Path
	// resources
	"spin":        spin,       // N threads, or one, are busy for MS: N is the CPU time in milliseconds
	"open":        openMany,   // up to N descriptors, until one cannot be had: N is how many
	"memfd":       memfd,      // a file in memory named Data, which stays open
	"shmget":      shmget,     // a segment of shared memory with the key N, which stays
	"fill":        fill,       // writes to the file Path up to N bytes, until that fails: N is how many
	"fill_inodes": fillInodes, // up to N files in the new folder Path, until that fails: N is how many
	"watch":       watch,      // up to N inotify instances, until one cannot be had: N is how many
	"pipes":       pipes,      // fills up to N pipes: N is the bytes that they hold together
	"sysinfo":     sysinfo,    // N threads, or one, call sysinfo(2) ten times each: N is the memory that each answer told
	"flood":       flood,      // N letters to standard error, a line ends after every MS of them, or never
	// connections to the Runtime API
	"bytes": rawBytes, // sends Data and then N letters: Status is that of the answer, 0 if the connection was closed without one
	"hold":  hold,     // opens N connections, sends Data on each and keeps them: N is how many there are
	"held":  heldOpen, // closes those of hold after MS: N is how many the other side had not
}

func main() {
	if actor.Daemon() {
		return
	}
	if len(os.Args) > 1 {
		child(os.Args[1])
		return
	}
	config, ok := actor.Role(os.Args[0])
	if !ok { // an image may call its program what it likes
		config = actor.Runtime(os.Args[0])
	}
	config.Operations = operations
	os.Exit(actor.Main(config))
}

func millis(s script.Step) time.Duration { return time.Duration(s.MS) * time.Millisecond }

// await looks again and again: nobody tells.
func await(ctx context.Context, _ *actor.Actor, s script.Step, e *script.Entry) {
	for ctx.Err() == nil {
		if _, err := os.Stat(s.Path); err == nil {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	e.Fail(ctx.Err())
}

func list(_ context.Context, _ *actor.Actor, s script.Step, e *script.Entry) {
	entries, err := os.ReadDir(s.Path)
	e.Fail(err)
	for _, entry := range entries {
		e.List = append(e.List, entry.Name())
	}
}

func remove(_ context.Context, _ *actor.Actor, s script.Step, e *script.Entry) {
	e.Fail(os.RemoveAll(s.Path))
}

func heartbeat(ctx context.Context, a *actor.Actor, s script.Step, _ *script.Entry) {
	for ctx.Err() == nil {
		a.Announce(script.Entry{Name: "heartbeat"})
		time.Sleep(millis(s))
	}
}
