package actor

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/sandboxd/sandboxd/conformance/script"
)

// stamp completes an entry: whose it is, and when it was done.
func (a *Actor) stamp(e script.Entry) script.Entry {
	now := time.Now().UnixMicro()
	if e.Began == 0 {
		e.Began = now
	}
	e.Who, e.PID, e.Start, e.At = a.Who, os.Getpid(), a.process.start, now
	if e.Play == "" {
		e.Play = a.current()
	}
	return e
}

// Note writes an entry into the journal, in one piece, and returns it with its times. It
// is printed too if the actor's program says so.
func (a *Actor) Note(e script.Entry) script.Entry {
	return a.record(e, a.process.program.Announce)
}

// Announce notes an entry and prints it as well: the environment may be gone before
// anybody can ask for the journal.
func (a *Actor) Announce(e script.Entry) script.Entry { return a.record(e, true) }

func (a *Actor) record(e script.Entry, print bool) script.Entry {
	e = a.stamp(e)
	if print {
		_, _ = io.WriteString(a.Out, e.Print()) // nobody may read it any more
	}
	f, err := a.openJournal(os.O_WRONLY|os.O_CREATE|os.O_APPEND, syscall.LOCK_EX)
	if err == nil {
		_, err = io.WriteString(f, script.Encode(e)+"\n")
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		fmt.Fprintln(a.Err, "write the journal:", err)
	}
	return e
}

// openJournal opens the journal and locks it until it is closed: an entry is longer
// than what one write is sure to show to a reader at once.
func (a *Actor) openJournal(flags, lock int) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(a.Scratch, "conformance.journal"), flags, 0o666)
	if err != nil {
		return nil, err
	}
	for {
		if err = syscall.Flock(int(f.Fd()), lock); err != syscall.EINTR {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// readJournal returns the journal as a JSON list: all of it, or its beginning.
func (a *Actor) readJournal() ([]byte, error) {
	f, err := a.openJournal(os.O_RDONLY, syscall.LOCK_SH)
	if errors.Is(err, fs.ErrNotExist) {
		return []byte("[]"), nil
	}
	var text []byte
	if err == nil {
		text, err = io.ReadAll(io.LimitReader(f, script.JournalLimit))
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	text = text[:bytes.LastIndexByte(text, '\n')+1] // whole lines
	lines := bytes.Split(bytes.TrimSuffix(text, []byte("\n")), []byte("\n"))
	return append(append([]byte{'['}, bytes.Join(lines, []byte(","))...), ']'), nil
}
