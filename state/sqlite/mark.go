package sqlite

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
)

// mark is a file with the number of the last commit that was acknowledged. It is written
// after each commit and not synced: after a power failure it may tell of an earlier commit
// than the database has, never of a later one. So a database that has fewer commits has
// lost some: its log was damaged or cut, which SQLite itself takes for the end of the log.
//
// It has two places, written in turn, so that one is whole whenever the process ends.
type mark struct {
	*os.File
	count uint64 // when it was opened; 0 if it tells nothing
}

// place is the size of one: the number and a checksum.
const place = 12

func openMark(path string) (*mark, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	m := &mark{File: f}
	b := make([]byte, 2*place)
	n, _ := f.ReadAt(b, 0)
	for ; n >= place; n, b = n-place, b[place:] {
		if crc32.ChecksumIEEE(b[:8]) == binary.LittleEndian.Uint32(b[8:]) {
			m.count = max(m.count, binary.LittleEndian.Uint64(b))
		}
	}
	return m, nil
}

func (m *mark) set(commit uint64) error {
	b := binary.LittleEndian.AppendUint64(nil, commit)
	b = binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	_, err := m.WriteAt(b, int64(commit%2)*place)
	if commit == 1 {
		// A new store: from now on an empty database is one that was emptied.
		err = errors.Join(err, m.Sync())
	}
	return err
}
