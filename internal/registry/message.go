package registry

import (
	"bytes"
	"encoding/binary"
	"encoding/gob"
	"errors"
	"fmt"
	"math/bits"

	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/internal/message"
)

// Limits of the protocol.
const (
	version     = 1
	headSize    = 16
	requestSize = headSize + message.RevisionSize // bytes of every request
	maxReply    = 64 << 10                        // bytes of a reply; fits into a socket buffer of the default size
	maxFiles    = message.MaxTrees                // files of a message
	maxRequests = 16                              // of a client that have no answer
)

// op is the operation of a request.
type op uint16

const (
	opRegister  op = iota + 1 // register a revision; value has a bit for each tree whose file comes with the message, in order
	opForget                  // forget the revision with the number value if it has no sandbox
	opConnect                 // return a connection to the worker
	opDialStore               // return a connection to the operator's database
	ops                       // number of operations plus one
)

// request is a message of the control process, in little endian:
//
//	0  version  uint16     4  id     uint32    16  revision  240 bytes, zero but for opRegister
//	2  op       uint16     8  value  uint64
type request struct {
	id       uint32 // chosen by the control process; no other request without an answer has it
	op       op
	value    uint64
	revision []byte // encoded message.Revision, of opRegister
}

func (r request) encode() []byte {
	b := make([]byte, requestSize)
	le := binary.LittleEndian
	le.PutUint16(b, version)
	le.PutUint16(b[2:], uint16(r.op))
	le.PutUint32(b[4:], r.id)
	le.PutUint64(b[8:], r.value)
	copy(b[headSize:], r.revision)
	return b
}

// decodeRequest decodes a request that came with that number of files. It returns an error
// for a request that a correct control process never sends. It does not look into the
// revision. The request does not refer to b.
func decodeRequest(b []byte, files int) (request, error) {
	if len(b) != requestSize {
		return request{}, fmt.Errorf("request of %d bytes instead of %d", len(b), requestSize)
	}
	le := binary.LittleEndian
	if v := le.Uint16(b); v != version {
		return request{}, fmt.Errorf("request of version %d instead of %d", v, version)
	}
	r := request{op: op(le.Uint16(b[2:])), id: le.Uint32(b[4:]), value: le.Uint64(b[8:])}
	form := b[headSize:]
	ok, wantFiles := true, 0
	switch r.op {
	case opRegister:
		r.revision = bytes.Clone(form)
		ok, wantFiles = r.value < 1<<message.MaxTrees, bits.OnesCount64(r.value)
	case opForget:
		ok = r.value != 0
	default:
		ok = r.value == 0
	}
	switch {
	case r.op == 0 || r.op >= ops:
		return request{}, fmt.Errorf("unknown operation %d", r.op)
	case r.id == 0:
		return request{}, errors.New("request without an id")
	case !ok:
		return request{}, fmt.Errorf("operation %d with the value %#x", r.op, r.value)
	case files != wantFiles:
		return request{}, fmt.Errorf("operation %d with %d files instead of %d", r.op, files, wantFiles)
	case r.op != opRegister && !bytes.Equal(form, make([]byte, len(form))):
		return request{}, fmt.Errorf("operation %d with a revision", r.op)
	}
	return r, nil
}

// reply is a message of the supervisor: the answer to a request, or, with the id 0, a request
// to stop, or if missing is isStream a connection of the worker, its file.
type reply struct {
	id      uint32
	err     string        // why the request failed; "" if it succeeded
	kinds   message.Kinds // of err
	missing uint32        // a bit for each tree of opRegister whose file is needed
	program *function.Program
}

// isStream is missing of a reply that brings a connection. A request to stop has 0.
const isStream = 1

// replyHead is the number of bytes of a reply before its text.
const replyHead = 20

func (r reply) encode() ([]byte, error) {
	var b bytes.Buffer
	for _, n := range []uint32{r.id, r.missing, r.kinds.Set, r.kinds.Errno, uint32(len(r.err))} {
		_ = binary.Write(&b, binary.LittleEndian, n) // never fails
	}
	b.WriteString(r.err)
	if r.program != nil {
		if err := gob.NewEncoder(&b).Encode(r.program); err != nil {
			return nil, err
		}
	}
	if b.Len() > maxReply {
		return nil, fmt.Errorf("an answer of %d bytes is too large", b.Len())
	}
	return b.Bytes(), nil
}

var errMalformed = errors.New("malformed answer from the supervisor")

func decodeReply(b []byte) (reply, error) {
	if len(b) < replyHead || len(b) > maxReply {
		return reply{}, errMalformed
	}
	word := func(i int) uint32 { return binary.LittleEndian.Uint32(b[4*i:]) }
	r := reply{id: word(0), missing: word(1), kinds: message.Kinds{Set: word(2), Errno: word(3)}}
	text := b[replyHead:]
	if uint64(word(4)) > uint64(len(text)) {
		return reply{}, errMalformed
	}
	r.err, text = string(text[:word(4)]), text[word(4):]
	if len(text) == 0 {
		return r, nil
	}
	rest := bytes.NewReader(text)
	r.program = new(function.Program)
	if err := gob.NewDecoder(rest).Decode(r.program); err != nil || rest.Len() > 0 {
		return reply{}, errMalformed
	}
	return r, nil
}
