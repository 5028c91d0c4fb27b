package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// Backup writes a backup of the daemon to w, and returns once it has the last byte of it. With
// hostKey, which only root gets, the backup has the host key. The daemon gives up on a w that
// takes nothing for long.
func (o *Operators) Backup(ctx context.Context, w io.Writer, hostKey bool) error {
	path := BackupPath
	if hostKey {
		path += "?host-key=1"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://sandboxd"+path, http.NoBody)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: o.http.Transport} // without the time limit of other commands
	res, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("ask daemon %s: %w", o.ID, err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		var f Failure
		text, _ := io.ReadAll(io.LimitReader(res.Body, maxListBytes))
		if json.Unmarshal(text, &f) != nil || f.Error == "" {
			f.Error = fmt.Sprintf("%s: %.200q", res.Status, text)
		}
		return errors.New(f.Error)
	}
	if _, err := io.Copy(w, res.Body); err != nil {
		return fmt.Errorf("read the backup from daemon %s: %w", o.ID, err)
	}
	switch result := res.Trailer.Get(BackupTrailer); result {
	case BackupWhole:
		return nil
	case "":
		return fmt.Errorf("daemon %s has ended within the backup", o.ID)
	default:
		return errors.New(result)
	}
}
