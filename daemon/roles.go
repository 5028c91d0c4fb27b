package daemon

import (
	"context"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/internal/message"
)

// Role is a role that functions may have.
type Role struct {
	ARN string
	// First are the credentials that it begins with, and Read reads them anew.
	First message.Credentials
	Read  func() (message.Credentials, error)
}

func rolesOf(roles []Role) (arns []string) {
	for _, r := range roles {
		arns = append(arns, r.ARN)
	}
	return arns
}

// readEvery is the least time between two readings of a role's credentials: the worker decides
// how often it asks.
const readEvery = time.Second

// roleSource has the credentials of a role. It is safe for concurrent use.
type roleSource struct {
	role Role
	log  *logrus.Logger

	mu      sync.Mutex
	last    message.Credentials // that could be read
	began   time.Time           // the last reading
	reading bool
	problem string // why they could not be read; "" if they could
}

func (d *Daemon) newRoleSources(roles []Role) (sources []*roleSource) {
	for _, r := range roles {
		sources = append(sources, &roleSource{role: r, log: d.log, last: r.First, began: time.Now()})
	}
	return sources
}

// current returns the credentials. Those that cannot be read change nothing, and while a disk does
// not answer, one caller waits for it and others do not.
func (s *roleSource) current() message.Credentials {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reading || time.Since(s.began) < readEvery {
		return s.last
	}
	s.reading, s.began = true, time.Now()
	s.mu.Unlock()
	c, err := s.role.Read()
	s.mu.Lock()
	s.reading = false
	switch {
	case err == nil:
		s.last, s.problem = c, ""
	case err.Error() != s.problem: // once for each problem
		s.problem = err.Error()
		s.log.WithError(err).WithField("role", s.role.ARN).Error("the credentials of a role could not be read again; functions keep those that they have")
	}
	return s.last
}

// credentials implements privsep.Config.Credentials: root alone knows which role a revision has,
// so a worker gets no credentials but those of the functions that it runs.
func (g *registrar) credentials(_ context.Context, revision uint64) ([]string, error) {
	var c message.Credentials
	if n := g.d.maker.revisions.roleOf(revision); n > 0 {
		c = g.roles[n-1].current()
	}
	return []string{c.AccessKeyID, c.SecretAccessKey, c.SessionToken}, nil
}
