package message

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/sandboxd/sandboxd/function"
)

// Digest is the SHA-256 by which the store knows a tree. The zero value stands for a
// folder of the operator's, which is shown as it is.
type Digest [32]byte

// ParseDigest reads a digest in hexadecimal. "" is the zero Digest.
func ParseDigest(s string) (d Digest, err error) {
	if s == "" {
		return d, nil
	}
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(d) {
		return d, fmt.Errorf("%q is no digest of 64 hexadecimal digits", s)
	}
	return Digest(b), nil
}

// Revision is what root must know of a revision to make sandboxes of it. It has numbers
// and digests and nothing else: no name, no path, no handler, no variable and no secret
// passes through root.
type Revision struct {
	ID       function.ID
	MemoryMB uint32
	TmpMB    uint32
	MicroCPU uint32 // millionths of a processor
	PIDs     uint32
	Runtime  uint16 // its place in the operator's list
	Profile  uint16 // of system calls: its place in the list of isolation.Profiles
	Network  uint16 // its place in the operator's list
	Role     uint16 // its place in the operator's list, from 1 on; 0 has no credentials
	Code     Digest
	Layers   []Digest // at most function.MaxLayers, later ones win
}

// The form of a revision: numbers in little endian.
//
//	 0  magic        uint32        24  MemoryMB  uint32     44  layers   uint8
//	 4  version      uint16        28  TmpMB     uint32     45  zero     1 byte
//	 6  Runtime      uint16        32  MicroCPU  uint32     46  Role     uint16
//	 8  ID.Epoch     uint64        36  PIDs      uint32     48  Code     32 bytes
//	16  ID.Number    uint64        40  Profile   uint16     80  Layers   5 × 32 bytes, the rest zero
//	                               42  Network   uint16
const (
	revisionMagic   = 0x72786273 // "sbxr"
	revisionVersion = 3
	digestsAt       = 48

	// RevisionSize is how many bytes an encoded revision has.
	RevisionSize = digestsAt + len(Digest{})*MaxTrees

	// MaxTrees is how many trees a revision has at most: its code and its layers.
	MaxTrees = 1 + function.MaxLayers
)

// Trees returns the digests of the revision's trees: the code, then the layers.
func (r *Revision) Trees() []Digest { return slices.Concat([]Digest{r.Code}, r.Layers) }

// Encode returns the revision in its form. It panics if there are more layers than the
// form has room for: the caller has checked that.
func (r *Revision) Encode() []byte {
	if len(r.Layers) > function.MaxLayers {
		panic("a revision with too many layers")
	}
	b := make([]byte, RevisionSize)
	le := binary.LittleEndian
	le.PutUint32(b[0:], revisionMagic)
	le.PutUint16(b[4:], revisionVersion)
	le.PutUint16(b[6:], r.Runtime)
	le.PutUint64(b[8:], r.ID.Epoch)
	le.PutUint64(b[16:], r.ID.Number)
	for i, n := range []uint32{r.MemoryMB, r.TmpMB, r.MicroCPU, r.PIDs} {
		le.PutUint32(b[24+4*i:], n)
	}
	le.PutUint16(b[40:], r.Profile)
	le.PutUint16(b[42:], r.Network)
	b[44] = byte(len(r.Layers))
	le.PutUint16(b[46:], r.Role)
	for i, d := range r.Trees() {
		copy(b[digestsAt+i*len(d):], d[:])
	}
	return b
}

// ErrRevision is the kind of every error about a revision that cannot be taken.
var ErrRevision = errors.New("a revision that cannot be taken")

func badRevision(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrRevision, fmt.Sprintf(format, args...))
}

// DecodeRevision reads what Encode has written. Whatever has another form is an error of
// the kind [ErrRevision]: one revision has one encoding, so that equal bytes are equal
// revisions. It does not check ranges; see [Revision.Check].
func DecodeRevision(b []byte) (r Revision, err error) {
	if len(b) != RevisionSize {
		return r, badRevision("%d bytes, want %d", len(b), RevisionSize)
	}
	le := binary.LittleEndian
	if m := le.Uint32(b[0:]); m != revisionMagic {
		return r, badRevision("it begins with %#x", m)
	}
	if v := le.Uint16(b[4:]); v != revisionVersion {
		return r, badRevision("its form has the version %d, known is %d", v, revisionVersion)
	}
	layers := int(b[44])
	if layers > function.MaxLayers {
		return r, badRevision("%d layers, at most %d are allowed", layers, function.MaxLayers)
	}
	unused := slices.Concat(b[45:46], b[digestsAt+len(Digest{})*(1+layers):])
	if slices.ContainsFunc(unused, func(c byte) bool { return c != 0 }) {
		return r, badRevision("bytes that have no meaning are not zero")
	}
	r = Revision{
		ID:       function.ID{Epoch: le.Uint64(b[8:]), Number: le.Uint64(b[16:])},
		MemoryMB: le.Uint32(b[24:]), TmpMB: le.Uint32(b[28:]), MicroCPU: le.Uint32(b[32:]), PIDs: le.Uint32(b[36:]),
		Runtime: le.Uint16(b[6:]), Profile: le.Uint16(b[40:]), Network: le.Uint16(b[42:]), Role: le.Uint16(b[46:]),
		Code: Digest(b[digestsAt:]),
	}
	for i := range layers {
		r.Layers = append(r.Layers, Digest(b[digestsAt+len(Digest{})*(1+i):]))
	}
	return r, nil
}

// Check reports the first number of the revision that is out of its range, as an error of
// the kind [ErrRevision]. runtimes, profiles, networks and roles are how many there are.
func (r *Revision) Check(runtimes, profiles, networks, roles int) error {
	for _, n := range []struct {
		what            string
		is, least, most uint64
	}{
		{"the epoch", r.ID.Epoch, 1, ^uint64(0)},
		{"the number", r.ID.Number, 1, ^uint64(0)},
		{"the memory in MB", uint64(r.MemoryMB), function.MinMemoryMB, function.MaxMemoryMB},
		{"the size of /tmp in MB", uint64(r.TmpMB), function.MinEphemeralMB, function.MaxEphemeralMB},
		{"the CPU in millionths", uint64(r.MicroCPU), 1, function.MaxCPUs * 1_000_000},
		{"the number of processes", uint64(r.PIDs), 1, function.MaxPIDs},
	} {
		if n.is < n.least || n.is > n.most {
			return badRevision("%s is %d, must be from %d to %d", n.what, n.is, n.least, n.most)
		}
	}
	if int(r.Runtime) >= runtimes {
		return badRevision("there is no runtime %d", r.Runtime)
	}
	if int(r.Profile) >= profiles {
		return badRevision("there is no profile of system calls %d", r.Profile)
	}
	if int(r.Network) >= networks {
		return badRevision("there is no network %d", r.Network)
	}
	if int(r.Role) > roles {
		return badRevision("there is no role %d", r.Role)
	}
	return nil
}
