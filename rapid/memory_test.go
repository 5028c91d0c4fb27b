package rapid

import (
	"testing"
	"testing/synctest"
	"time"
)

// LOG-26: the memory is looked at while processes work, more seldom when that lasts, and not
// while they wait for an event.
func TestMemoryIsWatched(t *testing.T) {
	for _, tt := range []struct {
		works       time.Duration
		least, most int // looks, that of the report included
	}{
		{0, 1, 2}, // perhaps one timer that fires in vain
		{lookEvery * 3 / 2, 2, 2},
		{300 * time.Millisecond, 14, 16},
		{2900 * time.Millisecond, 60, 75},
	} {
		inWorld(t, echo(tt.works), func(w *world) {
			synctest.Wait()
			time.Sleep(time.Minute) // the initialization is over
			for range 3 {
				before := w.sup.Looks()
				<-w.invoke("a").Done
				time.Sleep(time.Minute)
				if looks := w.sup.Looks() - before; looks < tt.least || looks > tt.most {
					t.Errorf("%v of work: %d looks, want %d to %d", tt.works, looks, tt.least, tt.most)
				}
			}
		})
	}
}
