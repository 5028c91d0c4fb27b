package lambda

// Uploads returns how many uploads of code are under way, and how many wait for them. It is
// safe for concurrent use.
func (s *Service) Uploads() (running, waiting int) {
	running, all := len(s.uploads.places), len(s.uploads.queue)
	return running, max(all-running, 0)
}
