package supervisor

import "time"

// eventBuffer is how many events wait for a slow observer.
const eventBuffer = 64

// Event tells observers that a process ended, or that events were dropped because
// they were not received in time (SUP-12).
type Event struct {
	Time   time.Time
	Domain string
	Name   string // of the process
	Exit   Exit
	Lost   int // number of dropped events; if not zero, all else but Time is empty
}

// A feed is a bounded stream of events. It never blocks who writes; its owner
// serialises the calls of its methods.
type feed struct {
	events chan Event
	lost   int
}

func newFeed() feed { return feed{events: make(chan Event, eventBuffer)} }

// publish adds e, or counts it as lost. A loss is told where it happened: before the
// next event that fits.
func (f *feed) publish(e Event) {
	if f.lost > 0 && f.offer(Event{Time: e.Time, Lost: f.lost}) {
		f.lost = 0
	}
	if f.lost > 0 || !f.offer(e) {
		f.lost++
	}
}

func (f *feed) offer(e Event) bool {
	select {
	case f.events <- e:
		return true
	default:
		return false
	}
}

// close ends the stream. A loss that was not told yet takes the place of the oldest
// event, so that it cannot go unnoticed.
func (f *feed) close() {
	for f.lost > 0 && !f.offer(Event{Time: time.Now(), Lost: f.lost}) {
		select {
		case <-f.events:
			f.lost++
		default: // received meanwhile: there is room now
		}
	}
	close(f.events)
}
