package state

import "strconv"

// Session is what the steps of a format work with.
type Session = session

// Define runs a statement that changes the schema.
func (s *session) Define(statement string) error { return s.define(statement) }

// AddFormat adds a format, for tests of migrations, until undo is called.
func AddFormat(step func(*Session) error) (undo func()) {
	before := formats
	formats = append(formats[:len(formats):len(formats)], step)
	return func() { formats = before }
}

// SetFormat changes what a store says of its format.
func SetFormat(e *Engine, format int) error {
	s, err := e.session(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	return s.transaction(func() error { return s.putFact(formatName, []byte(strconv.Itoa(format))) })
}

// Formats is the number of the newest format.
func Formats() int { return len(formats) }
