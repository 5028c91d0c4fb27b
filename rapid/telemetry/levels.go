package telemetry

import "slices"

// systemLevel returns the level of a platform record (LOG-41): WARN for failures, DEBUG for
// details, and INFO for the begin and end of each phase.
func systemLevel(p Platform) Level {
	failed := func(s Status, otherwise Level) Level {
		if s == Success {
			return otherwise
		}
		return LevelWarn
	}
	switch r := p.(type) {
	case *InitStart, *RestoreStart, *Start, *End:
		return LevelInfo
	case *Report:
		return failed(r.Status, LevelInfo)
	case *ManagedReport:
		return failed(r.Status, LevelInfo)
	case *RuntimeDone:
		return failed(r.Status, LevelInfo)
	case *InitRuntimeDone:
		return failed(r.Status, LevelDebug)
	case *InitReport:
		return failed(r.Status, LevelDebug)
	case *RestoreRuntimeDone:
		return failed(r.Status, LevelDebug)
	case *RestoreReport:
		return failed(r.Status, LevelDebug)
	case *Extension:
		if r.ErrorType == "" {
			return LevelDebug
		}
	case *Subscribed:
		return LevelDebug
	}
	return LevelWarn
}

// shows reports whether a log of level l contains p. A log of level "" contains all records.
func (l Level) shows(p Platform) bool {
	return slices.Index(frameLevels[:], systemLevel(p)) >= slices.Index(frameLevels[:], l)
}
