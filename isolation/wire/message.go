// Package wire is the language that the supervisor and the init handler of a domain
// speak over a SOCK_SEQPACKET socket: one datagram is one message, open files travel
// beside it (SCM_RIGHTS). The daemon makes a socket with [Pair], keeps one end, and
// gives the other to the domain's PID 1, which wraps it with [NewConn].
//
// The daemon's end is written by a process inside a sandbox, so nothing that comes
// from it is trusted: every field is bounded, a message has exactly one encoding, and
// files sent to the daemon are refused by the kernel.
//
// The package is linked into the init handler and stays small: no fmt, no net.
package wire

import (
	"encoding/binary"
	"errors"
	"strconv"
	"strings"
)

// Version is what [Handshake] carries. Both ends come from one build, so a difference
// means that a daemon has started a foreign init handler.
const Version = 2

// Bounds of a message. What exceeds one is refused by Send and by Recv.
const (
	MaxMessage = 200 << 10 // bytes of an encoded message; fits a default socket buffer
	MaxFiles   = 16        // files of an Exec, stdout and stderr among them
	MaxPath    = 4095      // bytes of a path (PATH_MAX without the NUL)
	MaxStrings = 4096      // entries of Argv or Env
)

// Message is one of [Exec], [Signal], [KillAll], [Handshake], [Started], [Exited] and
// [Killed], as a value.
type Message interface {
	kind() kind
	check() error
	append([]byte) []byte
}

// Exec asks the init handler for a process. Its files are stdout, stderr, then those
// that become descriptor 3, 4, and so on; standard input is /dev/null. The answer is
// a [Started] with the same ID, and, if that reports success, later one [Exited].
type Exec struct {
	ID       uint32   // chosen by the sender, not in use by a live process
	Path     string   // absolute path of the program, inside the domain
	Argv     []string // complete, program name first
	Env      []string // complete: nothing is inherited
	Dir      string   // absolute working directory
	UID, GID uint32   // ids inside the domain's user namespace
}

// Signal asks for a signal to the process group of the process ID. It is dropped
// if that process has been reaped, so that it can never hit another one (SUP-21).
type Signal struct {
	ID     uint32
	Signal int32 // 1 to 64
}

// KillAll asks for the end of every process in the domain but the init handler. The
// answer, after the last one is reaped and its exit reported, is a [Killed].
type KillAll struct{ Seq uint32 }

// Handshake is the first message of an init handler: its limits are set, its privileges
// dropped, and it takes requests.
type Handshake struct{ Version uint32 }

// Started answers an [Exec].
type Started struct {
	ID    uint32
	PID   int32 // in the domain's pid namespace; 0 if the start failed
	Errno int32 // why the start failed; 0 if it did not
	Stage Stage // what failed
}

// Stage says which step of an [Exec] failed.
type Stage uint8

// The steps of an Exec.
const (
	StageNone Stage = iota // none: the process runs
	StageDir               // entering the working directory
	StageExec              // anything else: the fork, the ids, the program
)

// Exited reports the end of the process that an [Exec] started.
type Exited struct {
	ID     uint32
	Status uint32 // wait status, of an exit or of a deadly signal
}

// Killed answers a [KillAll].
type Killed struct{ Seq uint32 }

type kind uint8

const (
	kindExec kind = iota + 1
	kindSignal
	kindKillAll
	kindHandshake
	kindStarted
	kindExited
	kindKilled
)

func (Exec) kind() kind      { return kindExec }
func (Signal) kind() kind    { return kindSignal }
func (KillAll) kind() kind   { return kindKillAll }
func (Handshake) kind() kind { return kindHandshake }
func (Started) kind() kind   { return kindStarted }
func (Exited) kind() kind    { return kindExited }
func (Killed) kind() kind    { return kindKilled }

func (m Exec) append(b []byte) []byte {
	b = appendUint32(b, m.ID, m.UID, m.GID)
	b = appendString(b, m.Path)
	b = appendString(b, m.Dir)
	b = appendStrings(b, m.Argv)
	return appendStrings(b, m.Env)
}

func (m Signal) append(b []byte) []byte    { return appendUint32(b, m.ID, uint32(m.Signal)) }
func (m KillAll) append(b []byte) []byte   { return appendUint32(b, m.Seq) }
func (m Handshake) append(b []byte) []byte { return appendUint32(b, m.Version) }
func (m Started) append(b []byte) []byte {
	return appendUint32(b, m.ID, uint32(m.PID), uint32(m.Errno), uint32(m.Stage))
}
func (m Exited) append(b []byte) []byte { return appendUint32(b, m.ID, m.Status) }
func (m Killed) append(b []byte) []byte { return appendUint32(b, m.Seq) }

func (m Exec) check() error {
	for _, path := range []string{m.Path, m.Dir} {
		if !strings.HasPrefix(path, "/") {
			return errors.New("exec: " + strconv.Quote(path) + " is not an absolute path")
		}
		if len(path) > MaxPath {
			return errors.New("exec: a path is longer than " + strconv.Itoa(MaxPath) + " bytes")
		}
	}
	if len(m.Argv) == 0 {
		return errors.New("exec: no program name in the arguments")
	}
	if len(m.Argv) > MaxStrings || len(m.Env) > MaxStrings {
		return errors.New("exec: more than " + strconv.Itoa(MaxStrings) + " arguments or variables")
	}
	if hasNUL(m.Path, m.Dir) || hasNUL(m.Argv...) || hasNUL(m.Env...) {
		return errors.New("exec: a string contains a NUL byte")
	}
	return nil
}

func (m Signal) check() error {
	if m.Signal < 1 || m.Signal > 64 {
		return errors.New("signal: no such signal: " + strconv.Itoa(int(m.Signal)))
	}
	return nil
}

func (m KillAll) check() error   { return nil }
func (m Handshake) check() error { return nil }
func (m Killed) check() error    { return nil }

func (m Started) check() error {
	ok := m.Stage == StageNone && m.Errno == 0 && m.PID > 0
	failed := (m.Stage == StageDir || m.Stage == StageExec) && m.Errno > 0 && m.Errno < 4096 && m.PID == 0
	if !ok && !failed {
		return errors.New("started: neither a success nor a failure")
	}
	return nil
}

// check accepts what wait4 reports of a process that is no more: an exit (low byte
// zero) or a deadly signal (low seven bits 1 to 64, with or without a core dump).
func (m Exited) check() error {
	exited := m.Status&^0xff00 == 0
	signal := m.Status & 0x7f
	killed := m.Status <= 0xff && signal >= 1 && signal <= 64
	if !exited && !killed {
		return errors.New("exited: no status of a dead process")
	}
	return nil
}

func hasNUL(list ...string) bool {
	for _, s := range list {
		if strings.IndexByte(s, 0) >= 0 {
			return true
		}
	}
	return false
}

// encode gives the one encoding of m: a kind byte, then the fields as little-endian
// 32-bit numbers; a string is a length and bytes, a list a count and its strings.
func encode(m Message) ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	b := m.append([]byte{byte(m.kind())})
	if len(b) > MaxMessage {
		return nil, errors.New("a message of " + strconv.Itoa(len(b)) + " bytes exceeds the limit of " +
			strconv.Itoa(MaxMessage) + " bytes: pass fewer or shorter arguments and environment variables")
	}
	return b, nil
}

// decode is the inverse of encode. It accepts nothing that encode cannot produce.
func decode(b []byte) (Message, error) {
	if len(b) == 0 || len(b) > MaxMessage {
		return nil, errors.New("message of impossible size")
	}
	r := reader{rest: b[1:]}
	var m Message
	switch kind(b[0]) {
	case kindExec:
		m = Exec{ID: r.uint32(), UID: r.uint32(), GID: r.uint32(),
			Path: r.string(), Dir: r.string(), Argv: r.strings(), Env: r.strings()}
	case kindSignal:
		m = Signal{ID: r.uint32(), Signal: int32(r.uint32())}
	case kindKillAll:
		m = KillAll{Seq: r.uint32()}
	case kindHandshake:
		m = Handshake{Version: r.uint32()}
	case kindStarted:
		m = Started{ID: r.uint32(), PID: int32(r.uint32()), Errno: int32(r.uint32()), Stage: r.stage()}
	case kindExited:
		m = Exited{ID: r.uint32(), Status: r.uint32()}
	case kindKilled:
		m = Killed{Seq: r.uint32()}
	default:
		return nil, errors.New("message of unknown kind " + strconv.Itoa(int(b[0])))
	}
	if r.short || len(r.rest) > 0 {
		return nil, errors.New("message of wrong length")
	}
	return m, m.check()
}

func appendUint32(b []byte, values ...uint32) []byte {
	for _, v := range values {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return b
}

func appendString(b []byte, s string) []byte {
	return append(appendUint32(b, uint32(len(s))), s...)
}

func appendStrings(b []byte, list []string) []byte {
	b = appendUint32(b, uint32(len(list)))
	for _, s := range list {
		b = appendString(b, s)
	}
	return b
}

// reader takes fields off an encoded message. Once a field is missing it returns
// zero values and short stays set.
type reader struct {
	rest  []byte
	short bool
}

func (r *reader) take(n uint32) []byte {
	if r.short || uint64(n) > uint64(len(r.rest)) {
		r.short = true
		return nil
	}
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b
}

func (r *reader) uint32() uint32 {
	if b := r.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (r *reader) stage() Stage {
	v := r.uint32()
	if v > uint32(StageExec) {
		r.short = true
	}
	return Stage(v)
}

func (r *reader) string() string { return string(r.take(r.uint32())) }

func (r *reader) strings() []string {
	n := r.uint32()
	if n > MaxStrings || uint64(n)*4 > uint64(len(r.rest)) { // before memory is reserved
		r.short = true
	}
	if r.short || n == 0 {
		return nil
	}
	list := make([]string, n)
	for i := range list {
		list[i] = r.string()
	}
	return list
}
