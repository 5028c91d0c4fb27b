//go:build integration

package runc

import (
	"testing"

	"github.com/sandboxd/sandboxd/isolation"
)

// BenchmarkLife is one sandbox from nothing to nothing, without a process of a user.
func BenchmarkLife(b *testing.B) {
	spec := hostSpec(b, isolation.RuntimeDomain)
	for b.Loop() {
		s, err := engine.Create(b.Context(), spec)
		if err != nil {
			b.Fatal(err)
		}
		conn, err := s.Start(b.Context(), isolation.RuntimeDomain)
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Close(b.Context()); err != nil {
			b.Fatal(err)
		}
		conn.Close()
	}
}

func BenchmarkFreezeThaw(b *testing.B) {
	s, err := engine.Create(b.Context(), hostSpec(b, isolation.RuntimeDomain))
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close(b.Context())
	conn, err := s.Start(b.Context(), isolation.RuntimeDomain)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	for b.Loop() {
		if err := s.Freeze(b.Context()); err != nil {
			b.Fatal(err)
		}
		if err := s.Thaw(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
