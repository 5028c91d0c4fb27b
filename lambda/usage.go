package lambda

import "context"

// Usage returns how many functions there are, and how many bytes their code has.
func (s *Service) Usage(ctx context.Context) (functions int, codeBytes int64, err error) {
	var u usage
	err = s.cfg.Store.View(ctx, func(tx Reader) error {
		_, err := get(tx, usageKey, &u)
		return err
	})
	return u.Functions, u.CodeBytes, err
}

// Limits returns the limits that are in force.
func (s *Service) Limits() Limits { return s.cfg.Limits }

// Uploads returns how many uploads of code are under way, and how many wait for them. It is
// safe for concurrent use.
func (s *Service) Uploads() (running, waiting int) {
	running, all := len(s.uploads.places), len(s.uploads.queue)
	return running, max(all-running, 0)
}
