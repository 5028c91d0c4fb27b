package privsep

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/internal/seqpacket"
	"github.com/sandboxd/sandboxd/isolation"
)

// Limits of the protocol.
const (
	requestSize = 40       // bytes of every request
	maxReply    = 64 << 10 // bytes of a reply; fits into a socket buffer of the default size
	maxFiles    = 24       // files of a message
	maxText     = 8        // strings of a reply
)

// op is the operation of a request.
type op uint32

const (
	opCreate      op = iota + 1 // create a sandbox of the revision value; the answer has its number, id, cgroup and files
	opStart                     // create a domain; arg is its index in domains
	opThrottle                  // turn the CPU quota on (arg 1) or off (arg 0)
	opKill                      // kill every process of the sandbox
	opGivePipes                 // make the sandbox user the owner of the message's files, which are pipes of the worker
	opDial                      // connect to the TCP port arg on the sandbox's loopback address
	opClose                     // remove the sandbox
	opRenew                     // return the operator's current credentials
	opDomain                    // return the domain whose process created the connection, the message's file
	opAllow                     // let the sandbox connect to services at addr, for arg seconds
	opUpstream                  // return a socket to a name server of the host; arg is its index, plus streamed for TCP
	opConnect                   // return a connection to the control process
	opCredentials               // return the current credentials of the role of the sandbox's function
	opRetire                    // create no more sandboxes of the revision value, and forget it with its last one
	opKeyPair                   // return the endpoint's key pair, in a file, if another than the one of number value is current
	opSegment                   // open the segment value of the logs; arg 1 makes or empties it
	opCancel                    // cancel the request with the id arg; has no answer
	ops                         // number of operations plus one
)

// domains are the domains that opStart can create.
var domains = []string{isolation.RuntimeDomain, isolation.ExtensionDomain}

// ofNoSandbox are the operations on no sandbox.
var ofNoSandbox = []op{opCreate, opRenew, opUpstream, opConnect, opRetire, opKeyPair, opSegment, opCancel}

// Arguments of opUpstream.
const (
	maxUpstreams = 3      // name servers (resolv.conf(5))
	streamed     = 1 << 8 // flag: use TCP
)

// request is a message of the worker.
type request struct {
	id      uint32 // chosen by the worker; no other request without an answer has it
	op      op
	sandbox uint32 // number from the answer to opCreate; 0 if op needs no sandbox
	arg     uint32
	value   uint64     // opCreate, opRetire: number of a revision; opKeyPair: of a key pair; opSegment: of a segment; opAllow: a bit for each service (isolation.Policy.Services)
	addr    netip.Addr // opAllow
}

func (r request) encode() []byte {
	b := binary.LittleEndian.AppendUint32(make([]byte, 0, requestSize), r.id)
	b = binary.LittleEndian.AppendUint32(b, uint32(r.op))
	b = binary.LittleEndian.AppendUint32(b, r.sandbox)
	b = binary.LittleEndian.AppendUint32(b, r.arg)
	b = binary.LittleEndian.AppendUint64(b, r.value)
	var addr [16]byte
	if r.addr.IsValid() {
		addr = r.addr.As16()
	}
	return append(b, addr[:]...)
}

// decodeRequest decodes a request that came with that number of files. It returns an error
// for a request that a correct worker never sends.
func decodeRequest(b []byte, files int) (request, error) {
	if len(b) != requestSize {
		return request{}, fmt.Errorf("request of %d bytes instead of %d", len(b), requestSize)
	}
	word := func(i int) uint32 { return binary.LittleEndian.Uint32(b[4*i:]) }
	r := request{id: word(0), op: op(word(1)), sandbox: word(2), arg: word(3), value: binary.LittleEndian.Uint64(b[16:])}
	if addr := [16]byte(b[24:]); addr != [16]byte{} {
		r.addr = netip.AddrFrom16(addr).Unmap()
	}
	needsSandbox := !slices.Contains(ofNoSandbox, r.op)
	needsValue := r.op == opCreate || r.op == opRetire || r.op == opKeyPair || r.op == opSegment || r.op == opAllow
	var ok bool
	switch r.op {
	case opStart:
		ok = r.arg < uint32(len(domains))
	case opThrottle, opSegment:
		ok = r.arg <= 1
	case opDial:
		ok = r.arg >= 1 && r.arg <= 65535
	case opUpstream:
		ok = r.arg&^streamed < maxUpstreams
	case opAllow, opCancel:
		ok = true
	default:
		ok = r.arg == 0
	}
	switch {
	case r.op == 0 || r.op >= ops:
		return request{}, fmt.Errorf("unknown operation %d", r.op)
	case !ok:
		return request{}, fmt.Errorf("operation %d with the argument %d", r.op, r.arg)
	case needsSandbox != (r.sandbox != 0):
		return request{}, fmt.Errorf("operation %d on sandbox %d", r.op, r.sandbox)
	case (r.op == opGivePipes || r.op == opDomain) != (files > 0) || r.op == opDomain && files != 1:
		return request{}, fmt.Errorf("operation %d with %d files", r.op, files)
	case needsValue != (r.value != 0), (r.op == opAllow) != r.addr.IsValid():
		return request{}, fmt.Errorf("operation %d with the value %#x and the address %v", r.op, r.value, r.addr)
	}
	return r, nil
}

// reply is a message of the supervisor: the answer to a request, or, with the id 0, a
// request to stop, or if n is isStream a connection of the control process, its file.
type reply struct {
	id    uint32
	err   string        // why the request failed; "" if it succeeded
	kinds message.Kinds // of err
	n     uint32
	text  []string
}

// isStream is n of a reply that brings a connection. A request to stop has 0.
const isStream = 1

// replyHead is the number of bytes of a reply before its strings.
const replyHead = 16

// Pair returns the two ends of a new connection, both close-on-exec.
func Pair() (supervisor, worker *os.File, err error) { return seqpacket.Pair("worker", "supervisor") }

func closeAll(files []*os.File) { seqpacket.CloseAll(files) }

func (r reply) encode() ([]byte, error) {
	b := binary.LittleEndian.AppendUint32(nil, r.id)
	b = binary.LittleEndian.AppendUint32(b, r.n)
	b = binary.LittleEndian.AppendUint32(b, r.kinds.Set)
	b = binary.LittleEndian.AppendUint32(b, r.kinds.Errno)
	for _, s := range append([]string{r.err}, r.text...) {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	if len(b) > maxReply || len(r.text) > maxText {
		return nil, fmt.Errorf("an answer with %d bytes and %d strings is too large", len(b), len(r.text))
	}
	return b, nil
}

func decodeReply(b []byte) (reply, error) {
	if len(b) < replyHead || len(b) > maxReply {
		return reply{}, errMalformed
	}
	word := func(i int) uint32 { return binary.LittleEndian.Uint32(b[4*i:]) }
	r := reply{id: word(0), n: word(1), kinds: message.Kinds{Set: word(2), Errno: word(3)}}
	var text []string
	for b = b[replyHead:]; len(b) > 0; {
		if len(b) < 4 || uint64(binary.LittleEndian.Uint32(b)) > uint64(len(b)-4) || len(text) > maxText {
			return reply{}, errMalformed
		}
		n := binary.LittleEndian.Uint32(b)
		text = append(text, string(b[4:4+n]))
		b = b[4+n:]
	}
	if len(text) == 0 {
		return reply{}, errMalformed
	}
	r.err, r.text = text[0], text[1:]
	return r, nil
}
