package privsep

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/isolation"
)

// Bounds of the protocol.
const (
	requestSize = 40       // bytes of a request, always
	maxReply    = 64 << 10 // bytes of a reply; fits a default socket buffer
	maxFiles    = 24       // files with one message
	maxText     = 8        // strings of a reply
)

// op is what a request asks for.
type op uint32

const (
	opCreate    op = iota + 1 // a sandbox of the revision value; the answer has its number, id, cgroup and files
	opStart                   // a domain; arg is its index in domains
	opThrottle                // arg: 1 on, 0 off
	opKill                    // every process of the sandbox
	opGivePipes               // pipes of the worker, beside the message, to the sandbox user
	opDial                    // arg: the TCP port on the sandbox's loopback
	opClose                   // the sandbox
	opRenew                   // the credentials as the operator has them now
	opDomain                  // the domain that made the connection beside the message; the answer names it
	opAllow                   // opens services at addr, for arg seconds
	opUpstream                // a socket to a name server of the host; arg: its place in the list, and streamed for TCP
	opCancel                  // arg: the request that is not waited for any more; has no answer
	ops                       // one more than the last
)

// domains are what opStart can name.
var domains = []string{isolation.RuntimeDomain, isolation.ExtensionDomain}

// Arguments of opUpstream.
const (
	maxUpstreams = 3      // servers (resolv.conf(5))
	streamed     = 1 << 8 // by TCP
)

// request is what the worker sends.
type request struct {
	id      uint32 // chosen by the worker, not in use by a request without an answer
	op      op
	sandbox uint32 // the number that the answer to opCreate gave; 0 where there is none
	arg     uint32
	value   uint64     // of opCreate the number of a revision; of opAllow a bit for each service (isolation.Policy.Services)
	addr    netip.Addr // of opAllow
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

// decodeRequest takes a request that came with so many files. It says what is wrong
// with one that no worker of ours can have sent.
func decodeRequest(b []byte, files int) (request, error) {
	if len(b) != requestSize {
		return request{}, fmt.Errorf("a request of %d bytes, want %d", len(b), requestSize)
	}
	word := func(i int) uint32 { return binary.LittleEndian.Uint32(b[4*i:]) }
	r := request{id: word(0), op: op(word(1)), sandbox: word(2), arg: word(3), value: binary.LittleEndian.Uint64(b[16:])}
	if addr := [16]byte(b[24:]); addr != [16]byte{} {
		r.addr = netip.AddrFrom16(addr).Unmap()
	}
	owned := r.op != opCreate && r.op != opRenew && r.op != opUpstream && r.op != opCancel
	valued := r.op == opCreate || r.op == opAllow
	var ok bool
	switch r.op {
	case opStart:
		ok = r.arg < uint32(len(domains))
	case opThrottle:
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
		return request{}, fmt.Errorf("a request for operation %d, which there is not", r.op)
	case !ok:
		return request{}, fmt.Errorf("operation %d with the argument %d", r.op, r.arg)
	case owned != (r.sandbox != 0):
		return request{}, fmt.Errorf("operation %d on sandbox %d", r.op, r.sandbox)
	case (r.op == opGivePipes || r.op == opDomain) != (files > 0) || r.op == opDomain && files != 1:
		return request{}, fmt.Errorf("operation %d with %d files", r.op, files)
	case valued != (r.value != 0), (r.op == opAllow) != r.addr.IsValid():
		return request{}, fmt.Errorf("operation %d with the value %#x and the address %v", r.op, r.value, r.addr)
	}
	return r, nil
}

// reply is what the supervisor sends: the answer to a request, or, with the id 0, the
// word that the daemon is to end.
type reply struct {
	id    uint32
	err   string        // why the request failed; "" if it did not
	kinds message.Kinds // of err
	n     uint32
	text  []string
}

// replyHead is how many bytes of a reply come before its texts.
const replyHead = 16

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
		return nil, fmt.Errorf("an answer of %d bytes, at most %d are allowed", len(b), maxReply)
	}
	return b, nil
}

func decodeReply(b []byte) (reply, error) {
	malformed := errors.New("malformed answer")
	if len(b) < replyHead || len(b) > maxReply {
		return reply{}, malformed
	}
	word := func(i int) uint32 { return binary.LittleEndian.Uint32(b[4*i:]) }
	r := reply{id: word(0), n: word(1), kinds: message.Kinds{Set: word(2), Errno: word(3)}}
	var text []string
	for b = b[replyHead:]; len(b) > 0; {
		if len(b) < 4 || uint64(binary.LittleEndian.Uint32(b)) > uint64(len(b)-4) || len(text) > maxText {
			return reply{}, malformed
		}
		n := binary.LittleEndian.Uint32(b)
		text = append(text, string(b[4:4+n]))
		b = b[4+n:]
	}
	if len(text) == 0 {
		return reply{}, malformed
	}
	r.err, r.text = text[0], text[1:]
	return r, nil
}
