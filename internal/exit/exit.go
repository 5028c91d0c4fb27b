// Package exit is how a process of sandboxd ends: by its exit code, or because it was told
// to by signals.
package exit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/sandboxd/sandboxd/internal/logging"
)

// Exit codes, as the help of each command documents them.
const (
	OK       = 0
	Function = 1 // the function failed, doctor found a must-have missing, or inspect a wrong posture
	Usage    = 2 // the command line, the configuration, or the host is at fault
)

// FlushTime is how long the last messages may take to reach their reader.
const FlushTime = 2 * time.Second

// Error gives an error an exit code other than Usage. Without Err nothing is printed: all
// has been said already.
type Error struct {
	Code int
	Err  error
}

func (e *Error) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit code %d", e.Code)
	}
	return e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// Report prints err on stderr, as one line, and returns the exit code that it stands for.
func Report(err error, stderr io.Writer) int {
	if err == nil {
		return OK
	}
	code := Usage
	if coded, ok := errors.AsType[*Error](err); ok {
		code, err = coded.Code, coded.Err
	}
	if err != nil {
		last := logging.NewAsyncWriter(stderr) // its reader may have stopped
		fmt.Fprintf(last, "sandboxd: %s\n", oneLine(err))
		last.Close(FlushTime)
	}
	return code
}

// oneLine makes one line of an error, joined errors included.
func oneLine(err error) string {
	return strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}

// forceKey finds the channel of OnSignals in a context.
type forceKey struct{}

// OnSignals returns a context that ends with the first signal. The second signal closes
// the channel that [Forced] returns.
func OnSignals(ctx context.Context, signals <-chan os.Signal) context.Context {
	second := make(chan struct{})
	ctx, cancel := context.WithCancel(context.WithValue(ctx, forceKey{}, (<-chan struct{})(second)))
	go func() {
		<-signals
		cancel()
		<-signals
		close(second)
	}()
	return ctx
}

// Forced returns a channel that is closed when the user wants the end at once: what is
// still orderly is then cut short. It is nil, which is never closed, if ctx knows of no
// signals.
func Forced(ctx context.Context) <-chan struct{} {
	second, _ := ctx.Value(forceKey{}).(<-chan struct{})
	return second
}
