package worker

import (
	"crypto/rand"
	"encoding/hex"
	"time"

	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/rapid"
	"github.com/sandboxd/sandboxd/rapid/telemetry"
)

// lifeOf returns the life cycle configuration for the revision's sandboxes, without
// credentials.
func lifeOf(c *message.WorkerConfig, rev *function.Revision) rapid.Config {
	life := rapid.Config{
		Function:       functionOf(c, rev),
		Settings:       settingsOf(c),
		MaxConcurrency: rev.Managed,
	}
	switch {
	case rev.Managed > 0:
		life.Initialization, life.Settings.InitTimeout = rapid.Managed, longInit(c, rev)
	case rev.SnapStart:
		life.Initialization, life.Settings.InitTimeout = rapid.SnapStart, longInit(c, rev)
	}
	return life
}

// functionOf converts the revision for package rapid.
func functionOf(c *message.WorkerConfig, rev *function.Revision) rapid.Function {
	f := rapid.Function{
		Name: rev.Name, Version: rev.Version, ARN: rev.ARN, Handler: rev.Handler,
		Runtime: rev.Runtime, Region: c.Region, AccountID: c.AccountID,
		MemoryMB: rev.MemoryMB, Timeout: rev.Timeout, Env: rev.Env,
		LogFormat: telemetry.Format(rev.LogFormat), LogGroup: "/aws/lambda/" + rev.Name,
		LogLevel: rev.ApplicationLogLevel, SystemLogLevel: telemetry.Level(rev.SystemLogLevel),
		Bootstrap:  rapid.Entry(rev.Program.Bootstrap),
		Extensions: rev.Program.Extensions, ExtensionsDisabled: rev.Program.ExtensionsDisabled,
		Locale: rev.Program.Locale,
	}
	if i := rev.Program.Image; i != nil {
		f.Image = &rapid.Image{Entrypoint: i.Entrypoint, Cmd: i.Cmd, WorkingDir: i.WorkingDir}
		f.Env = i.Env
	}
	return f
}

// settingsOf returns the default settings with those of the operator applied.
func settingsOf(c *message.WorkerConfig) rapid.Settings {
	s := rapid.DefaultSettings()
	s.InitTimeout = c.Life.InitTimeout
	s.Linger = c.Life.Linger
	s.InternalWindow = c.Life.InternalWindow
	s.ExternalWindow = c.Life.ExternalWindow
	s.RuntimeShare = c.Life.RuntimeShare
	s.BillInit = c.Life.BillInit
	s.Stream.Rate = c.Life.StreamRate
	s.Descriptors = telemetry.Descriptors(c.Descriptors)
	return s
}

// longInit returns the time limit of an initialization that no invocation waits for (LC-06).
func longInit(c *message.WorkerConfig, rev *function.Revision) time.Duration {
	return max(c.Life.InitTimeout, 130*time.Second, rev.Timeout)
}

// newLogStream returns a new name for a sandbox's log stream, in the form that Lambda uses
// (ENV-04): programs that read logs want the 32 hexadecimal digits.
func newLogStream(rev *function.Revision) string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	return time.Now().UTC().Format("2006/01/02/") + "[" + rev.Version + "]" + hex.EncodeToString(id[:])
}
