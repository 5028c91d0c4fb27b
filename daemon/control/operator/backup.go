package operator

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/sandboxd/sandboxd/daemon/admin"
)

// stallTime is how long an operator may read nothing of a backup. The database keeps what a
// backup reads, so one that is not read must end.
const stallTime = 30 * time.Second

// backup answers with a backup, one at a time. What goes wrong once it has begun is told in a
// trailer: without an empty one, the backup is not whole.
func (s *Server) backup(w http.ResponseWriter, r *http.Request) {
	peer, withKey := peerFrom(r.Context()), r.URL.Query().Get("host-key") == "1"
	refuse := func(status int, err error) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(admin.Failure{Error: err.Error()}) // fails only if the client has gone
	}
	if withKey && peer.UID != 0 {
		refuse(http.StatusForbidden, errors.New("only root gets a backup with the host key"))
		return
	}
	select {
	case s.backups <- struct{}{}:
		defer func() { <-s.backups }()
	default:
		refuse(http.StatusConflict, errors.New("another backup is being made: wait for its end"))
		return
	}
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{}) // the request was read; a test's recorder has no deadlines
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Trailer", admin.BackupTrailer)
	err := s.cfg.Backup(r.Context(), &patient{w, control, s.stall}, withKey)
	s.cfg.Audit.command(peer, "backup", "", err)
	result := admin.BackupWhole
	if err != nil {
		result = printable(err.Error())
		if r.Context().Err() == nil {
			s.cfg.Log.WithError(err).Error("a backup could not be made")
		}
	}
	w.Header().Set(admin.BackupTrailer, result)
	_ = control.SetWriteDeadline(time.Now().Add(s.stall))
}

// patient is a response that gives its reader a time for each part.
type patient struct {
	io.Writer
	control *http.ResponseController
	stall   time.Duration
}

func (p *patient) Write(b []byte) (int, error) {
	_ = p.control.SetWriteDeadline(time.Now().Add(p.stall))
	return p.Writer.Write(b)
}
