package supervisor

import "time"

// eventBuffer is the number of events that are kept for a slow observer.
const eventBuffer = 64

// Event reports that a process exited, or that events were dropped because the observer did
// not receive them in time (SUP-12).
type Event struct {
	Time   time.Time
	Domain string
	Name   string // of the process
	Exit   Exit
	Lost   int // number of dropped events; if not zero, only Time is set besides
}

// A feed is a bounded stream of events whose writer never blocks. Its methods are not safe
// for concurrent use.
type feed struct {
	events chan Event
	lost   int
}

func newFeed() feed { return feed{events: make(chan Event, eventBuffer)} }

// publish adds e, or counts it as lost if the buffer is full. It reports a loss before the
// next event that fits, which is where the loss happened.
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

// close ends the stream. If a loss was not reported yet, its report replaces the oldest
// event.
func (f *feed) close() {
	for f.lost > 0 && !f.offer(Event{Time: time.Now(), Lost: f.lost}) {
		select {
		case <-f.events:
			f.lost++
		default: // the observer has received one meanwhile, so there is room
		}
	}
	close(f.events)
}
