package daemon

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/internal/message"
)

// The worker gets the credentials of a revision's role, and none of other roles. They are read
// again, but not more often than readEvery; those that cannot be read change nothing.
func TestRoleCredentials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text strings.Builder
		log := logrus.New()
		log.SetOutput(&text)
		reads := 0
		fresh, bad := message.Credentials{AccessKeyID: "two", SecretAccessKey: "hushhush"}, error(nil)
		d := &Daemon{log: log, maker: &maker{revisions: newWatched(t).revisions}}
		g := &registrar{d: d, roles: d.newRoleSources([]Role{
			{ARN: "first", First: message.Credentials{AccessKeyID: "other"}, Read: func() (message.Credentials, error) { return message.Credentials{}, errors.New("unused") }},
			{ARN: "second", First: message.Credentials{AccessKeyID: "one"}, Read: func() (message.Credentials, error) { reads++; return fresh, bad }},
		})}
		d.maker.revisions.roles = 2
		for number, role := range map[uint64]uint16{1: 0, 2: 2} {
			rev := form(number, 128)
			rev.Role = role
			if err := d.maker.revisions.register(rev.Encode(), Files{}); err != nil {
				t.Fatal(err)
			}
		}
		third := form(3, 128)
		third.Role = 3
		if err := d.maker.revisions.register(third.Encode(), Files{}); !errors.Is(err, message.ErrRevision) {
			t.Errorf("a role that is none: %v", err)
		}
		want := func(revision uint64, ids ...string) {
			t.Helper()
			if got, err := g.credentials(t.Context(), revision); err != nil || !slices.Equal(got, ids) {
				t.Errorf("revision %d: %q, %v, want %q", revision, got, err, ids)
			}
		}
		want(1, "", "", "")
		want(9, "", "", "")
		want(2, "one", "", "")
		time.Sleep(readEvery)
		want(2, "two", "hushhush", "")
		want(2, "two", "hushhush", "")
		if reads != 1 {
			t.Errorf("read %d times", reads)
		}
		fresh, bad = message.Credentials{}, errors.New("half a credential")
		for range 3 {
			time.Sleep(readEvery)
			want(2, "two", "hushhush", "")
		}
		if n := strings.Count(text.String(), "half a credential"); n != 1 || strings.Contains(text.String(), "hushhush") {
			t.Errorf("the log: %s", text.String())
		}

		hangs := make(chan struct{})
		g.roles[1].role.Read = func() (message.Credentials, error) {
			<-hangs
			return message.Credentials{AccessKeyID: "three"}, nil
		}
		time.Sleep(readEvery)
		waits := make(chan []string)
		go func() {
			list, _ := g.credentials(t.Context(), 2)
			waits <- list
		}()
		synctest.Wait()
		want(2, "two", "hushhush", "") // while another waits for the disk
		close(hangs)
		if list := <-waits; list[0] != "three" {
			t.Errorf("%q", list)
		}
		d.maker.revisions.close()
	})
}
