package state

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"strconv"
	"strings"
)

// BlobSink takes the blobs of a backup; state/blob has one.
type BlobSink interface {
	// Restore stores what r gives and makes it durable, unless it is another content than
	// the digest's.
	Restore(ctx context.Context, digest [sha256.Size]byte, r io.Reader) error
}

// CheckBackup reads a backup and checks all of it.
func CheckBackup(ctx context.Context, r io.Reader) (Summary, error) {
	return readBackup(ctx, r, visitor{})
}

// Restore fills the database that e has opened, which must have no store, with what a
// backup has, and its blobs with blobs, which may be nil if there are none. It checks all of
// the backup first, and gives the store a new epoch. It may be repeated after a failure. It
// closes e.
func Restore(ctx context.Context, e *Engine, backup io.ReadSeeker, blobs BlobSink) (sum Summary, err error) {
	defer func() { err = errors.Join(err, e.Close()) }()
	if sum, err = CheckBackup(ctx, backup); err != nil {
		return Summary{}, fmt.Errorf("check the backup: %w", err)
	}
	if sum.Blobs > 0 && blobs == nil {
		return Summary{}, fmt.Errorf("%w: the backup has %d blobs, and there is no place for them", ErrInvalid, sum.Blobs)
	}
	if _, err = backup.Seek(0, io.SeekStart); err != nil {
		return Summary{}, err
	}
	sess, err := e.session(ctx)
	if err != nil {
		return Summary{}, e.errorf(err, "restore")
	}
	defer sess.close()
	exists, err := sess.exists()
	if err == nil && (exists || e.Marked > 0) {
		err = fmt.Errorf("%w: there is a store in %s already: choose another place, or move it away", ErrInUse, e.Name)
	}
	if err != nil {
		return Summary{}, err
	}
	err = sess.transaction(func() error { return sess.restore(ctx, backup, blobs, sum) })
	if err != nil {
		return Summary{}, e.errorf(err, "restore")
	}
	if e.Mark != nil {
		err = e.Mark(sum.tally.commits)
	}
	return sum, err
}

// restore makes the store within a transaction, with the blobs first.
func (s *session) restore(ctx context.Context, backup io.Reader, blobs BlobSink, sum Summary) error {
	if err := s.empty(sum.Format, random()); err != nil {
		return err
	}
	inserts := make([]string, tables)
	for t := range inserts {
		inserts[t] = shapes[t].insert()
	}
	again, err := readBackup(ctx, backup, visitor{
		row: func(t table, r row, c checksum) error {
			return s.run(inserts[t], append(r, c[:])...)
		},
		blob: func(digest [sha256.Size]byte, r io.Reader) error { return blobs.Restore(ctx, digest, r) },
	})
	if err == nil && again != sum {
		err = fmt.Errorf("%w: the backup changed while it was read", ErrDamaged)
	}
	if err != nil {
		return err
	}
	if err := s.putTally(&sum.tally); err != nil {
		return err
	}
	for _, next := range formats[sum.Format:] {
		if err := next(s); err != nil {
			return err
		}
	}
	return s.putFact(formatName, []byte(strconv.Itoa(len(formats))))
}

// insert is the statement that adds a row with its checksum.
func (s *shape) insert() string {
	places := make([]string, len(s.columns)+1)
	for i := range places {
		places[i] = "$" + strconv.Itoa(i+1)
	}
	return fmt.Sprintf("INSERT INTO %s (%s, sum) VALUES (%s)", s.name, strings.Join(s.columns, ", "), strings.Join(places, ", "))
}

// visitor is told what is in a backup. A nil function is not told.
type visitor struct {
	row  func(t table, r row, c checksum) error
	blob func(digest [sha256.Size]byte, r io.Reader) error
}

// backupReader reads parts.
type backupReader struct {
	in  *bufio.Reader
	sum hash.Hash
	buf []byte
}

// part reads the next part. Its bytes are good until the next one is read.
func (b *backupReader) part() (kind byte, body []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(b.in, head[:]); err != nil {
		return 0, nil, cut(err)
	}
	n := binary.LittleEndian.Uint32(head[1:])
	if n > maxPart {
		return 0, nil, fmt.Errorf("%w: a part has %d bytes", ErrDamaged, n)
	}
	if uint32(cap(b.buf)) < n {
		b.buf = make([]byte, n)
	}
	body = b.buf[:n]
	if _, err := io.ReadFull(b.in, body); err != nil {
		return 0, nil, cut(err)
	}
	if head[0] != partSum {
		b.sum.Write(head[:])
		b.sum.Write(body)
	}
	return head[0], body, nil
}

// cut is the error of a backup that ends too early.
func cut(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return fmt.Errorf("%w: the backup is cut short", ErrDamaged)
	}
	return err
}

func readBackup(ctx context.Context, r io.Reader, v visitor) (sum Summary, err error) {
	b := &backupReader{in: bufio.NewReaderSize(r, 64<<10), sum: sha256.New()}
	begin := make([]byte, len(magic))
	if _, err := io.ReadFull(b.in, begin); err != nil || string(begin) != magic {
		return sum, errors.Join(fmt.Errorf("%w: it is no backup that this sandboxd knows", ErrInvalid), cut(err))
	}
	b.sum.Write(begin)
	if sum, err = b.header(); err != nil {
		return sum, err
	}
	var found tally
	for {
		if err := ctx.Err(); err != nil {
			return sum, err
		}
		kind, body, err := b.part()
		if err != nil {
			return sum, err
		}
		switch kind {
		case partNote:
			if sum.Note != "" || sum.Rows+sum.Blobs > 0 || len(body) == 0 || len(body) > MaxNote {
				return sum, fmt.Errorf("%w: a note of %d bytes", ErrDamaged, len(body))
			}
			sum.Note = string(body)
		case partRow:
			t, r, c, err := decodeRow(body)
			if err != nil {
				return sum, err
			}
			found.counts[t].add(c)
			sum.Rows++
			if v.row != nil {
				if err := v.row(t, r, c); err != nil {
					return sum, err
				}
			}
		case partBlob:
			if err := b.blob(body, v, &sum); err != nil {
				return sum, err
			}
		case partSummary:
			return sum, b.end(body, &sum, found)
		default:
			return sum, fmt.Errorf("%w: a part %q", ErrDamaged, kind)
		}
	}
}

func (b *backupReader) header() (sum Summary, err error) {
	var h header
	kind, body, err := b.part()
	if err != nil {
		return sum, err
	}
	if kind != partHeader || json.Unmarshal(body, &h) != nil || h.Format < 1 {
		return sum, fmt.Errorf("%w: the header of the backup", ErrDamaged)
	}
	if h.Format > len(formats) {
		return sum, fmt.Errorf("%w: the backup has %d, and this sandboxd knows formats up to %d: use a newer sandboxd", ErrNewer, h.Format, len(formats))
	}
	return Summary{Format: h.Format, Made: h.Made}, nil
}

// blob reads a blob, all of it, and checks its digest.
func (b *backupReader) blob(body []byte, v visitor, sum *Summary) error {
	if len(body) != sha256.Size {
		return fmt.Errorf("%w: a digest of %d bytes", ErrDamaged, len(body))
	}
	digest := [sha256.Size]byte(body)
	r := &blobReader{parts: b, hash: sha256.New(), digest: digest}
	if v.blob != nil {
		if err := v.blob(digest, r); err != nil {
			return fmt.Errorf("restore the blob %x: %w", digest, err)
		}
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		return err
	}
	sum.Blobs++
	sum.Bytes += r.size
	return nil
}

// blobReader gives the content of one blob of a backup.
type blobReader struct {
	parts  *backupReader
	hash   hash.Hash
	digest [sha256.Size]byte
	rest   []byte
	size   uint64
	err    error
}

func (r *blobReader) Read(p []byte) (int, error) {
	for r.err == nil && len(r.rest) == 0 {
		kind, body, err := r.parts.part()
		switch {
		case err != nil:
			r.err = err
		case kind == partChunk:
			r.rest = body
			r.hash.Write(body)
			r.size += uint64(len(body))
		case kind == partBlobEnd && [sha256.Size]byte(r.hash.Sum(nil)) == r.digest:
			r.err = io.EOF
		default:
			r.err = fmt.Errorf("%w: the blob %x in the backup", ErrDamaged, r.digest)
		}
	}
	if len(r.rest) > 0 {
		n := copy(p, r.rest)
		r.rest = r.rest[n:]
		return n, nil
	}
	return 0, r.err
}

// end checks the summary against what was found, the sum of all, and that nothing follows.
func (b *backupReader) end(body []byte, sum *Summary, found tally) error {
	var s summary
	if err := json.Unmarshal(body, &s); err != nil {
		return fmt.Errorf("%w: the summary of the backup: %w", ErrDamaged, err)
	}
	t, err := parseTally(s.Tally)
	if err != nil {
		return fmt.Errorf("%w: the summary of the backup: %w", ErrDamaged, err)
	}
	if sum.Rows != s.Rows || sum.Blobs != s.Blobs || sum.Bytes != s.Bytes || found.counts != t.counts {
		return fmt.Errorf("%w: the backup has %d rows and %d blobs, and should have %d and %d", ErrDamaged, sum.Rows, sum.Blobs, s.Rows, s.Blobs)
	}
	sum.tally = *t
	want := b.sum.Sum(nil)
	kind, body, err := b.part()
	if err != nil {
		return err
	}
	if _, err := b.in.ReadByte(); err != io.EOF || kind != partSum || string(body) != string(want) {
		return fmt.Errorf("%w: the backup's bytes are not those that were written", ErrDamaged)
	}
	return nil
}
