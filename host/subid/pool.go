package subid

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// DefaultIDBase is the first host id of the default pool. From here to systemd's
// foreign range lie 4,094 ranges that no distribution hands out.
const DefaultIDBase = 0x70000000

// maxRanges is the most sandboxes that can have a range of their own.
const maxRanges = 4094

// Pool is a run of host ids that sandboxes take their ranges from.
type Pool struct {
	Base   uint32 // first id, a multiple of RangeSize
	Ranges uint32 // how many ranges of RangeSize ids follow, at least 1
}

// reserved is a run of host ids that sandboxes must not use.
type reserved struct {
	first, last uint64
	owner       string // for messages
}

// systemdRanges are the ids that Linux and systemd keep for themselves
// (systemd's UIDS-GIDS document).
var systemdRanges = []reserved{
	{0, 65535, "the host's own users"},
	{524288, 1879048191, "systemd's container range"},
	{2147352576, 2147418111, "systemd's foreign range"},
	{4294901760, 4294967295, "ids that the kernel reserves"},
}

// NewPool returns the pool that begins at base and ends before the next ids that
// belong to someone: to Linux and systemd, or to a user by root's etc/subuid and
// etc/subgid (root is "/" outside of tests). A base that is itself taken is an error
// that names the owner.
func NewPool(base uint32, root string) (Pool, error) {
	if base%RangeSize != 0 {
		return Pool{}, fmt.Errorf("--id-base %d: must be a multiple of %d", base, RangeSize)
	}
	taken := systemdRanges
	for _, name := range []string{"etc/subuid", "etc/subgid"} {
		sub, err := readSubordinate(filepath.Join(root, name))
		if err != nil {
			return Pool{}, err
		}
		taken = append(taken[:len(taken):len(taken)], sub...)
	}
	end := uint64(base) + maxRanges*RangeSize
	for _, r := range taken {
		switch {
		case r.last < uint64(base) || r.first >= end:
		case r.first >= uint64(base)+RangeSize:
			end = r.first
		default:
			return Pool{}, fmt.Errorf("--id-base %d: ids %d to %d belong to %s; choose another, such as %d", base, r.first, r.last, r.owner, DefaultIDBase)
		}
	}
	return Pool{Base: base, Ranges: uint32((end - uint64(base)) / RangeSize)}, nil
}

// readSubordinate reads a file in the form of /etc/subuid: name:first:count. A file
// that is missing has no entries, and lines of another form are not entries.
func readSubordinate(path string) ([]reserved, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []reserved
	for line := range strings.Lines(string(text)) {
		fields := strings.Split(strings.TrimSpace(line), ":")
		if len(fields) != 3 {
			continue
		}
		first, err1 := strconv.ParseUint(fields[1], 10, 32)
		count, err2 := strconv.ParseUint(fields[2], 10, 33)
		if err1 != nil || err2 != nil || count == 0 {
			continue
		}
		list = append(list, reserved{first, first + count - 1, fmt.Sprintf("%s (%s)", fields[0], path)})
	}
	return list, nil
}
