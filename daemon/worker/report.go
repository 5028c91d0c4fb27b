package worker

import "github.com/sandboxd/sandboxd/daemon/admin"

// report returns the states of the sandboxes. It omits a sandbox that is being created and
// has no id yet.
func (w *worker) report() admin.Report {
	r := admin.Report{Functions: map[uint64]string{}, Versions: map[uint64]string{}, Sandboxes: []admin.State{}}
	for _, s := range w.functions.all() {
		r.Functions[s.rev.ID.Number], r.Versions[s.rev.ID.Number] = s.rev.Name, s.rev.Version
		for _, stat := range s.fleet.Stats() {
			box := s.factory.find(stat.ID)
			if box == nil {
				continue
			}
			st := admin.State{ID: stat.ID, State: stat.State, Invocations: stat.Invocations}
			if box.resolver != nil {
				st.LookupsAnswered, st.LookupsRefused = box.resolver.Lookups()
			}
			r.Sandboxes = append(r.Sandboxes, st)
		}
	}
	return r
}
