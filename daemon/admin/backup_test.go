package admin

import (
	"bytes"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// Only a backup that says that it is whole at its end is one, whatever ends it otherwise.
func TestOperatorsBackup(t *testing.T) {
	part := func(w http.ResponseWriter, result string) {
		w.Header().Set("Trailer", BackupTrailer)
		io.WriteString(w, strings.Repeat("part", 10000))
		if result != "" {
			w.Header().Set(BackupTrailer, result)
		}
	}
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"whole":  {func(w http.ResponseWriter, r *http.Request) { part(w, BackupWhole) }, ""},
		"error":  {func(w http.ResponseWriter, r *http.Request) { part(w, "the disk is damaged") }, "the disk is damaged"},
		"no end": {func(w http.ResponseWriter, r *http.Request) { part(w, "") }, "has ended within the backup"},
		"cut": {func(w http.ResponseWriter, r *http.Request) {
			part(w, "")
			panic(http.ErrAbortHandler)
		}, "read the backup from daemon"},
		"refused": {func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusConflict)
			io.WriteString(w, `{"error":"another backup"}`)
		}, "another backup"},
		"key": {func(w http.ResponseWriter, r *http.Request) {
			if r.URL.RequestURI() != BackupPath+"?host-key=1" {
				t.Error(r.URL)
			}
			part(w, BackupWhole)
		}, ""},
	} {
		runDir := filepath.Join(t.TempDir(), "run")
		serving(t, runDir, c.answer)
		o, err := Serving(t.Context(), runDir, "")
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		err = o.Backup(t.Context(), &b, name == "key")
		if c.want == "" && (err != nil || b.Len() != 40000) || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %d bytes, %v", name, b.Len(), err)
		}
	}
}
