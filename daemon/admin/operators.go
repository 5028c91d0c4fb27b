package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/sandboxd/sandboxd/host/instance"
)

// commandTime limits a command's wait for an answer: the control process may have to open its
// functions first.
const commandTime = time.Minute

// Operators is a client of the operators' socket of one daemon.
type Operators struct {
	instance.Info
	http *http.Client
}

// Serving finds the running daemon below runDir that serves many functions. If there are
// several, id must choose one, by its beginning.
func Serving(ctx context.Context, runDir, id string) (*Operators, error) {
	all, err := instance.Candidates(runDir)
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("%w: use sudo, or become a member of group %s, where it exists when 'sandboxd serve' starts", err, DefaultGroup)
	}
	if err != nil {
		return nil, err
	}
	var found []*Operators
	var refused error
	for _, i := range all {
		if !strings.HasPrefix(i.ID, id) {
			continue
		}
		o := newOperators(i)
		switch err := o.try(ctx); {
		case errors.Is(err, fs.ErrPermission):
			refused = fmt.Errorf("user %d may not use daemon %s: %w; use sudo, or become a member of group %s", os.Geteuid(), i.ID, err, DefaultGroup)
		case err == nil:
			found = append(found, o)
		case !absent(err):
			return nil, fmt.Errorf("daemon %s does not answer: %w", i.ID, err)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		var ids []string
		for _, o := range found {
			ids = append(ids, o.ID)
		}
		return nil, fmt.Errorf("%d daemons run 'sandboxd serve' with --run-dir %s: choose one with --instance (%s)", len(found), runDir, strings.Join(ids, ", "))
	case refused != nil:
		return nil, refused
	case id != "":
		return nil, fmt.Errorf("no daemon that runs 'sandboxd serve' with --run-dir %s has the id %q", runDir, id)
	}
	return nil, fmt.Errorf("no daemon runs 'sandboxd serve' with --run-dir %s: start one, or give its --run-dir", runDir)
}

func newOperators(i instance.Info) *Operators {
	return &Operators{Info: i, http: &http.Client{Timeout: commandTime, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", i.AdminSocket())
		},
	}}}
}

// try opens a connection, and closes it.
func (o *Operators) try(ctx context.Context) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", o.AdminSocket())
	if err != nil {
		return err
	}
	return conn.Close()
}

// Keys returns all access keys.
func (o *Operators) Keys(ctx context.Context) (list []Key, err error) {
	return list, o.ask(ctx, http.MethodGet, KeysPath, nil, &list)
}

// CreateKey makes an access key.
func (o *Operators) CreateKey(ctx context.Context, k NewKey) (created CreatedKey, err error) {
	return created, o.ask(ctx, http.MethodPost, KeysPath, k, &created)
}

// RevokeKey revokes an access key, and returns when it is not accepted any more.
func (o *Operators) RevokeKey(ctx context.Context, id string) (revoked Key, err error) {
	return revoked, o.ask(ctx, http.MethodPost, RevokePath, RevokeKey{id}, &revoked)
}

// HostKeys returns which host keys the daemon has.
func (o *Operators) HostKeys(ctx context.Context) (keys HostKeys, err error) {
	return keys, o.ask(ctx, http.MethodGet, HostKeysPath, nil, &keys)
}

// ask sends a request and decodes the answer.
func (o *Operators) ask(ctx context.Context, method, path string, question, answer any) error {
	body := io.Reader(http.NoBody)
	if question != nil {
		b, err := json.Marshal(question)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://sandboxd"+path, body)
	if err != nil {
		return err
	}
	res, err := o.http.Do(req)
	if err != nil {
		return fmt.Errorf("ask daemon %s: %w", o.ID, err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, maxListBytes))
	if err != nil {
		return fmt.Errorf("read the answer of daemon %s: %w", o.ID, err)
	}
	if res.StatusCode == http.StatusOK {
		return json.Unmarshal(text, answer)
	}
	var f Failure
	if json.Unmarshal(text, &f) != nil || f.Error == "" {
		f.Error = fmt.Sprintf("%s: %.200q", res.Status, text)
	}
	return errors.New(f.Error)
}
