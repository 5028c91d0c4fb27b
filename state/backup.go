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
	"os"
	"time"
)

// A backup is one file, the same for both engines: magic, then parts of one letter, the
// length of what follows in 4 bytes and that many bytes:
//
//	H  header, JSON
//	N  the caller's note, if there is one
//	R  a row: the number of its table, its columns, its checksum
//	B  a blob begins: its digest
//	C  a chunk of it
//	D  it ends
//	E  summary, JSON
//	S  the SHA-256 of all before this part; nothing follows
const magic = "sandboxd backup 1\n"

const (
	partHeader  = 'H'
	partNote    = 'N'
	partRow     = 'R'
	partBlob    = 'B'
	partChunk   = 'C'
	partBlobEnd = 'D'
	partSummary = 'E'
	partSum     = 'S'
)

// maxPart bounds a part: the largest row with what is around it.
const maxPart = MaxValue + 4*MaxKey

// MaxNote is the most bytes of a backup's note.
const MaxNote = 256 << 10

// chunk is how much of a blob is in a part.
const chunk = 256 << 10

// header begins a backup.
type header struct {
	Format int // of the store's rows
	Epoch  string
	Made   time.Time
}

// Summary says what is in a backup.
type Summary struct {
	Format int
	Made   time.Time
	Rows   uint64
	Blobs  uint64
	Bytes  uint64 // of blobs
	Note   string // the caller's, see [Store.Stream]; it may have secrets
	tally  tally
}

// summary is how it is written.
type summary struct {
	Rows, Blobs, Bytes uint64
	Tally              []byte
}

// Blobs are files beside the store, each known by the SHA-256 of its content. Package
// state/blob has them; a nil Blobs has none.
type Blobs interface {
	// Hold keeps all blobs from being removed until release is called.
	Hold() (release func())
	// List returns the digests of all blobs.
	List(ctx context.Context) ([][sha256.Size]byte, error)
	// Open returns a reader whose error is not io.EOF if what it has read is another
	// content.
	Open(digest [sha256.Size]byte) (io.ReadCloser, error)
}

// Backup writes all of the store and its blobs to f, an empty file that it can also read,
// syncs it and checks it by reading it again. Updates go on meanwhile: the backup has what
// was stored when it began. It fails if anything is damaged.
func (s *Store) Backup(ctx context.Context, f *os.File, blobs Blobs) (Summary, error) {
	sess, err := s.engine.session(ctx)
	if err != nil {
		return Summary{}, s.engine.errorf(err, "back up the store")
	}
	defer sess.close()
	return s.backup(ctx, sess, f, blobs, len(formats))
}

// Stream is Backup for a reader that keeps the backup, and must check it by [CheckBackup]. The
// backup has a note of the caller's, at most MaxNote bytes, "" is none. The database keeps what
// the backup reads until its rows are written, so w must not wait for ever.
func (s *Store) Stream(ctx context.Context, w io.Writer, blobs Blobs, note string) (Summary, error) {
	if len(note) > MaxNote {
		return Summary{}, fmt.Errorf("%w: the note of a backup has %d bytes, of at most %d", ErrInvalid, len(note), MaxNote)
	}
	sess, err := s.engine.session(ctx)
	if err != nil {
		return Summary{}, s.engine.errorf(err, "back up the store")
	}
	defer sess.close()
	return s.stream(ctx, sess, w, blobs, Summary{Format: len(formats), Note: note})
}

func (s *Store) stream(ctx context.Context, sess *session, to io.Writer, blobs Blobs, sum Summary) (Summary, error) {
	if blobs != nil {
		defer blobs.Hold()()
	}
	defer sess.run("ROLLBACK") // if it failed
	w := &backupWriter{out: bufio.NewWriterSize(to, 64<<10), sum: sha256.New()}
	if err := s.writeBackup(ctx, sess, w, blobs, &sum); err != nil {
		return Summary{}, fmt.Errorf("back up the store: %w", err)
	}
	return sum, nil
}

func (s *Store) backup(ctx context.Context, sess *session, f *os.File, blobs Blobs, format int) (Summary, error) {
	sum, err := s.stream(ctx, sess, f, blobs, Summary{Format: format})
	if err != nil {
		return Summary{}, err
	}
	if err := f.Sync(); err != nil {
		return Summary{}, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return Summary{}, err
	}
	again, err := CheckBackup(ctx, f)
	if err == nil && again != sum {
		err = fmt.Errorf("%w: it is not what was written", ErrDamaged)
	}
	if err != nil {
		return Summary{}, fmt.Errorf("check the backup %s: %w", f.Name(), err)
	}
	return sum, nil
}

// writeBackup writes a backup. sum has its format and its note, and gets the rest.
func (s *Store) writeBackup(ctx context.Context, sess *session, w *backupWriter, blobs Blobs, sum *Summary) error {
	if err := sess.run(s.engine.BeginRead); err != nil {
		return s.engine.errorf(err, "read it")
	}
	t, err := sess.tally("")
	if err != nil {
		return s.noted(err)
	}
	sum.Made, sum.tally = time.Now().UTC().Round(0), *t
	w.text(magic)
	w.json(partHeader, header{Format: sum.Format, Epoch: s.epoch, Made: sum.Made})
	if sum.Note != "" {
		w.part(partNote, []byte(sum.Note))
	}
	for table := range table(tables) {
		if err := s.backUpTable(ctx, sess, w, table, t.counts[table]); err != nil {
			return err
		}
		sum.Rows += t.counts[table].rows
	}
	if err := sess.run("ROLLBACK"); err != nil { // the blobs are held, and may take long
		return s.engine.errorf(err, "read it")
	}
	if blobs != nil {
		if err := w.blobs(ctx, blobs, sum); err != nil {
			return err
		}
	}
	w.json(partSummary, summary{sum.Rows, sum.Blobs, sum.Bytes, t.bytes()})
	w.part(partSum, w.sum.Sum(nil))
	return w.flush()
}

func (s *Store) backUpTable(ctx context.Context, sess *session, w *backupWriter, t table, want count) error {
	var found count
	err := sess.rows(ctx, t, func(r row, sum []byte) error {
		if err := checked(t, shapes[t].label(r), r, sum); err != nil {
			return s.noted(err)
		}
		found.add(checksum(sum))
		w.part(partRow, encodeRow(t, r, checksum(sum)))
		return w.err
	})
	if err != nil {
		return s.engine.errorf(err, "read its %s", t)
	}
	if found != want {
		d := Damage{Table: t.String(), What: fmt.Sprintf("%d rows of %d are as they were written", found.rows, want.rows)}
		s.note(t, d)
		return fmt.Errorf("%w: %s", ErrDamaged, d)
	}
	return nil
}

// backupWriter writes parts and keeps the first error.
type backupWriter struct {
	out *bufio.Writer
	sum hash.Hash
	err error
}

func (w *backupWriter) bytes(b []byte) {
	if w.err == nil {
		w.sum.Write(b)
		_, w.err = w.out.Write(b)
	}
}

func (w *backupWriter) text(s string) { w.bytes([]byte(s)) }

func (w *backupWriter) part(kind byte, b []byte) {
	w.bytes(binary.LittleEndian.AppendUint32([]byte{kind}, uint32(len(b))))
	w.bytes(b)
}

func (w *backupWriter) json(kind byte, v any) {
	b, err := json.Marshal(v)
	if w.err = errors.Join(w.err, err); w.err == nil {
		w.part(kind, b)
	}
}

func (w *backupWriter) flush() error {
	if w.err == nil {
		w.err = w.out.Flush()
	}
	return w.err
}

func (w *backupWriter) blobs(ctx context.Context, blobs Blobs, sum *Summary) error {
	list, err := blobs.List(ctx)
	if err != nil {
		return fmt.Errorf("list the blobs: %w", err)
	}
	b := make([]byte, chunk)
	for _, digest := range list {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := w.blob(blobs, digest, b)
		if err != nil {
			return fmt.Errorf("back up the blob %x: %w", digest, err)
		}
		sum.Blobs++
		sum.Bytes += n
	}
	return nil
}

func (w *backupWriter) blob(blobs Blobs, digest [sha256.Size]byte, b []byte) (size uint64, err error) {
	r, err := blobs.Open(digest)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	w.part(partBlob, digest[:])
	for w.err == nil {
		n, err := io.ReadFull(r, b)
		if n > 0 {
			w.part(partChunk, b[:n])
			size += uint64(n)
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			break
		} else if err != nil {
			return 0, err
		}
	}
	w.part(partBlobEnd, nil)
	return size, w.err
}

// encodeRow is a row as a part: table, columns, checksum. A number has 8 bytes, bytes have
// their length before them.
func encodeRow(t table, r row, sum checksum) []byte {
	b := []byte{byte(t)}
	for _, column := range r {
		switch v := column.(type) {
		case int64:
			b = binary.LittleEndian.AppendUint64(b, uint64(v))
		case []byte:
			b = binary.LittleEndian.AppendUint32(b, uint32(len(v)))
			b = append(b, v...)
		}
	}
	return append(b, sum[:]...)
}

// decodeRow reads what encodeRow has made, and checks the checksum.
func decodeRow(b []byte) (t table, r row, sum checksum, err error) {
	short := fmt.Errorf("%w: a row is cut short", ErrDamaged)
	if len(b) == 0 || b[0] >= tables {
		return 0, nil, sum, fmt.Errorf("%w: a row of no table", ErrDamaged)
	}
	t, b = table(b[0]), b[1:]
	sh := &shapes[t]
	for i := range sh.columns {
		if sh.isNumber(i) {
			if len(b) < 8 {
				return 0, nil, sum, short
			}
			r, b = append(r, int64(binary.LittleEndian.Uint64(b))), b[8:]
			continue
		}
		if len(b) < 4 || uint64(len(b)-4) < uint64(binary.LittleEndian.Uint32(b)) {
			return 0, nil, sum, short
		}
		n := binary.LittleEndian.Uint32(b)
		r, b = append(r, b[4:4+n:4+n]), b[4+n:]
	}
	if len(b) != len(sum) {
		return 0, nil, sum, short
	}
	sum = checksum(b)
	return t, r, sum, checked(t, sh.label(r), r, sum[:])
}
