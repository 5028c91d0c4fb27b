package exit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
)

func TestOneLine(t *testing.T) {
	err := errors.Join(errors.New("a\nb"), errors.New("c"))
	if got := oneLine(err); got != "a; b; c" {
		t.Errorf("%q", got)
	}
}

func TestReport(t *testing.T) {
	for _, tt := range []struct {
		err  error
		code int
		want string
	}{
		{nil, OK, ""},
		{errors.New("bad\nflag"), Usage, "sandboxd: bad; flag\n"},
		{fmt.Errorf("wrapped: %w", &Error{Code: Function}), Function, ""},
		{&Error{Code: Function, Err: errors.New("it failed")}, Function, "sandboxd: it failed\n"},
	} {
		var b bytes.Buffer
		if code := Report(tt.err, &b); code != tt.code || b.String() != tt.want {
			t.Errorf("%v: exit code %d and %q, want %d and %q", tt.err, code, b.String(), tt.code, tt.want)
		}
	}
}

func TestSignals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		signals := make(chan os.Signal)
		ctx := OnSignals(context.Background(), signals)
		if Forced(t.Context()) != nil {
			t.Error("a context without signals can be forced")
		}
		signals <- syscall.SIGTERM
		synctest.Wait()
		select {
		case <-Forced(ctx):
			t.Fatal("forced by one signal")
		default:
		}
		if ctx.Err() == nil {
			t.Fatal("the context goes on after a signal")
		}
		signals <- syscall.SIGINT
		<-Forced(ctx)
	})
}
