package suite

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"time"
)

// referenceRound is how long a round of calibrate took on the machine on which the
// cases' upper bounds were written down.
const referenceRound = 8 * time.Millisecond

// calibrate measures how much slower than the reference this machine is now, at least
// 1: a hundred requests to a server on the loopback interface, again and again.
func calibrate() (float64, error) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	defer server.Close()
	var took []time.Duration
	for range 9 {
		began := time.Now()
		for range 100 {
			resp, err := server.Client().Get(server.URL)
			if err != nil {
				return 0, fmt.Errorf("measure the speed of this machine: %w", err)
			}
			resp.Body.Close()
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	return max(1, float64(took[len(took)-2])/float64(referenceRound)), nil
}
