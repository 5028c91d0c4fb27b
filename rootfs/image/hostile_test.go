package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/rootfs/store"
)

// hostile is a process that an image has taken over.
type hostile = func(ctx context.Context, c *net.UnixConn) error

// played is Options.Read with other in place of the process.
func played(other hostile) func(context.Context, ReadJob, *os.File, *os.File, *os.File) error {
	return func(ctx context.Context, _ ReadJob, conn, _, _ *os.File) error {
		c, err := unixConn(conn)
		if err != nil {
			return err
		}
		defer c.Close()
		defer context.AfterFunc(ctx, func() { c.SetDeadline(longAgo) })() // as if it were killed
		return other(ctx, c)
	}
}

// prepareHostile prepares an image that such a process reads.
func prepareHostile(t *testing.T, e *env, given string, other hostile) error {
	t.Helper()
	_, err := e.prepare(t, Options{Image: given, Read: played(other)})
	return err
}

// describing sends a description and waits until the layers are asked for.
func describing(text string, then hostile) hostile {
	return func(ctx context.Context, c *net.UnixConn) error {
		if err := writeMessage(c, msgImage, []byte(text)); err != nil {
			return err
		}
		if _, _, err := readMessage(c, nil); err != nil || then == nil {
			return err
		}
		return then(ctx, c)
	}
}

// A process that an image has taken over cannot put other files into the store under
// the diffIDs of an image: what it sends goes through our hands.
func TestStoreIsNotPoisoned(t *testing.T) {
	victim, other := baseLayer(t), baseLayer(t, file("backdoor", "x"))
	id, _, err := v1.SHA256(strings.NewReader(string(victim)))
	must(t, err)
	claim := fmt.Sprintf(`{"ID":%q,"Layers":[{"DiffID":%q,"Size":-1}],"Entrypoint":["/main"]}`, id, id)
	e := newEnv(t)
	send := func(layers ...[]byte) hostile {
		return describing(claim, func(_ context.Context, c *net.UnixConn) error {
			for _, l := range layers {
				if _, err := (&dataWriter{w: c}).Write(l); err != nil {
					return err
				}
				if err := writeMessage(c, msgEnd, nil); err != nil {
					return err
				}
			}
			return nil
		})
	}
	for name, layers := range map[string][][]byte{
		"another layer":       {other},
		"one with more":       {append(victim[:len(victim):len(victim)], 0)},
		"one that is cut off": {victim[:len(victim)/2]},
		"none":                nil,
	} {
		if err := prepareHostile(t, e, t.TempDir(), send(layers...)); err == nil {
			t.Errorf("%s was taken", name)
		}
		if trees := e.trees(t); len(trees) > 0 {
			t.Fatalf("%s made %q", name, trees)
		}
	}
	// Control: the layer itself is taken.
	if err := prepareHostile(t, e, t.TempDir(), send(victim)); err != nil {
		t.Error(err)
	}
}

// What is said of an image is taken in one form only.
func TestDescriptions(t *testing.T) {
	hash := `"sha256:` + strings.Repeat("0", 64) + `"`
	good := `{"ID":` + hash + `,"Layers":[{"DiffID":` + hash + `,"Size":1}],"Entrypoint":["/main"],"Cmd":null,"Env":["A=\n"],"WorkingDir":"/"}`
	if d, err := parseDescription([]byte(good)); err != nil || d.Env[0] != "A=\n" {
		t.Fatal(err)
	}
	for _, bad := range []string{
		"", "{}", "null", good + good, good[:len(good)-1], strings.Replace(good, `"Cmd"`, `"Command"`, 1),
		strings.Replace(good, hash, `"sha256:../../x"`, 1), strings.Replace(good, hash, `"sha256:`+strings.Repeat("0", 63)+`/"`, 1),
		strings.Replace(good, `"DiffID":`+hash, `"DiffID":""`, 1), strings.Replace(good, `"Size":1`, `"Size":-2`, 1),
		strings.Replace(good, `["/main"]`, `[["/main"]]`, 1),
		`{"ID":` + hash + `,"Layers":[` + strings.Repeat(`{"DiffID":`+hash+`,"Size":1},`, maxLayers) + `{"DiffID":` + hash + `,"Size":1}]}`,
	} {
		if _, err := parseDescription([]byte(bad)); err == nil {
			t.Errorf("%.300q was taken", bad)
		}
		if err := prepareHostile(t, newEnv(t), t.TempDir(), describing(bad, nil)); err == nil {
			t.Errorf("%.300q was taken for an image", bad)
		}
	}
}

// A process that reads a directory gets files of the directory, and nothing else.
func TestFilesThatAreAskedFor(t *testing.T) {
	outside := t.TempDir()
	dir := filepath.Join(outside, "layout")
	must(t, errors.Join(os.MkdirAll(filepath.Join(dir, "sub"), 0o700), os.WriteFile(filepath.Join(outside, "secret"), nil, 0o644),
		os.WriteFile(filepath.Join(dir, "sub/own"), []byte("12345"), 0o600), unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600),
		os.Symlink("../secret", filepath.Join(dir, "out")), os.Symlink("/etc/passwd", filepath.Join(dir, "abs")), os.Symlink("sub/own", filepath.Join(dir, "in"))))
	got := map[string]string{}
	names := []string{"sub/own", "in", "no", "../secret", "/etc/passwd", "out", "abs", "fifo", "sub", ".", "", "sub/../../secret", "a\x00b"}
	err := prepareHostile(t, newEnv(t), dir, func(_ context.Context, c *net.UnixConn) error {
		for _, name := range names {
			rc, size, err := askedFiles{c}.open(name)
			if err == nil {
				rc.Close()
			}
			switch {
			case errors.Is(err, fs.ErrNotExist):
				got[name] = "missing"
			case err != nil:
				got[name] = "refused"
			default:
				got[name] = strconv.FormatInt(size, 10)
				if _, err := rc.(*os.File).Write(nil); err == nil {
					t.Error("it can be written")
				}
			}
		}
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "ended early") {
		t.Error(err)
	}
	for _, name := range names {
		want := map[string]string{"sub/own": "5", "in": "5", "no": "missing"}[name]
		if want == "" && got[name] != "refused" && got[name] != "missing" || want != "" && got[name] != want {
			t.Errorf("%q: %s", name, got[name])
		}
	}
}

// Messages that are none end the reading, and so does a file where there is no folder.
func TestHostileMessages(t *testing.T) {
	archive := writeFile(t, []byte("x"))
	raw := func(b []byte) hostile {
		return func(ctx context.Context, c *net.UnixConn) error {
			_, err := c.Write(b)
			<-ctx.Done() // it does not end by itself
			return err
		}
	}
	head := func(kind byte, n int) []byte {
		b := make([]byte, headBytes)
		putHead(b, kind, n)
		return b
	}
	for name, other := range map[string]hostile{
		"unknown kind":             raw(head('?', 0)),
		"giant":                    raw(head(msgImage, 1<<32-1)),
		"giant data":               raw(head(msgData, maxData+1)),
		"data before the image":    raw(head(msgData, 0)),
		"progress of a wrong form": raw(append(head(msgProgress, 1), 0)),
		"a file of an archive":     raw(head(msgFile, 0)),
	} {
		if err := prepareHostile(t, newEnv(t), archive, other); err == nil || !strings.Contains(err.Error(), "not what it should be") && !strings.Contains(err.Error(), "failed") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Data without bytes, which no limit would end, is no data.
func TestHostileEmptyData(t *testing.T) {
	r := reads(t, func(ctx context.Context, c *net.UnixConn) error {
		err := writeMessage(c, msgData, nil)
		<-ctx.Done()
		return err
	})
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, _, err := r.unpack(ctx, &description{Layers: []layerClaim{{}}}, root, Options{Limits: Limits{}.withDefaults(), Store: newEnv(t).store}); !errors.Is(err, errProtocol) {
		t.Error(err)
	}
}

// A process that a layer has taken over may leave anything, and may end whenever it
// likes: nothing of it is kept.
func TestHostileUnpacking(t *testing.T) {
	given := writeLayout(t, indexOf(makeImage(t, mainConfig, baseLayer(t, file("big", strings.Repeat("x", 1<<20))))))
	for name, make := range map[string]func(ctx context.Context, layers *os.File, tree string) error{
		"ends at once": func(context.Context, *os.File, string) error { return errors.New("ended at once") },
		"fifo": func(_ context.Context, layers *os.File, tree string) error {
			_, err := io.Copy(io.Discard, layers)
			return errors.Join(err, unix.Mkfifo(filepath.Join(tree, "x"), 0o600))
		},
		"set-user-id": func(_ context.Context, layers *os.File, tree string) error {
			_, err := io.Copy(io.Discard, layers)
			return errors.Join(err, os.WriteFile(filepath.Join(tree, "x"), nil, 0o755), os.Chmod(filepath.Join(tree, "x"), 0o755|fs.ModeSetuid))
		},
		"nothing": func(_ context.Context, layers *os.File, _ string) error {
			_, err := io.Copy(io.Discard, layers)
			return err
		},
		"hides the host's": func(_ context.Context, layers *os.File, tree string) error {
			_, err := io.Copy(io.Discard, layers)
			return errors.Join(err, folders(tree), os.Symlink("../../../secret", filepath.Join(tree, "hide/1")))
		},
		"links to the host's": func(_ context.Context, layers *os.File, tree string) error {
			_, err := io.Copy(io.Discard, layers)
			return errors.Join(err, folders(tree), os.Symlink("x", filepath.Join(tree, "link/1.new")), os.Symlink("/etc/shadow", filepath.Join(tree, "link/1.old")))
		},
		"half a link": func(_ context.Context, layers *os.File, tree string) error {
			_, err := io.Copy(io.Discard, layers)
			return errors.Join(err, folders(tree), os.Symlink("x", filepath.Join(tree, "link/1.new")))
		},
		"fills the disk": func(ctx context.Context, _ *os.File, tree string) error {
			err := errors.Join(os.WriteFile(filepath.Join(tree, "x"), nil, 0o755), os.Truncate(filepath.Join(tree, "x"), 1<<40))
			<-ctx.Done()
			return errors.Join(err, ctx.Err())
		},
	} {
		e := newEnv(t)
		_, err := e.prepare(t, Options{Image: given, Unpack: func(ctx context.Context, _ UnpackJob, layers, tree *os.File) error {
			path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(tree.Fd())))
			return errors.Join(err, make(ctx, layers, path))
		}})
		want := map[string]string{"ends at once": "ended at once", "fills the disk": "was stopped", "nothing": "no such file", "half a link": "no such file",
			"hides the host's": "out of the image", "links to the host's": "out of the image"}[name]
		if want == "" {
			want = "take over"
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
		if trees := append(e.trees(t), e.entries(t, store.KindLayer)...); len(trees) > 0 {
			t.Errorf("%s made %q", name, trees)
		}
	}
}

func folders(tree string) error {
	return errors.Join(os.Mkdir(filepath.Join(tree, addFolder), 0o755), os.Mkdir(filepath.Join(tree, hideFolder), 0o755), os.Mkdir(filepath.Join(tree, linkFolder), 0o755))
}

// The operator's credentials reach the process that speaks with the registry, those for
// other registries do not.
func TestCredentials(t *testing.T) {
	var names, passwords []string
	reg := newRegistry(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			name, password, ok := r.BasicAuth()
			if r.Method == http.MethodGet && !ok {
				w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			if ok {
				names, passwords = append(names, name), append(passwords, password)
			}
			next.ServeHTTP(w, r)
		})
	})
	config := fmt.Sprintf(`{"auths":{%q:{"username":"me","password":"mine"},"registry.example":{"username":"other","password":"theirs"}}}`, reg.host)
	must(t, os.WriteFile(filepath.Join(os.Getenv("DOCKER_CONFIG"), "config.json"), []byte(config), 0o600))
	t.Setenv("HOME", t.TempDir())
	given := reg.pushImage(t, "a:1", makeImage(t, mainConfig, baseLayer(t)))
	names = nil
	var auth string
	_, err := newEnv(t).prepare(t, Options{Image: given, Read: func(ctx context.Context, job ReadJob, conn, archive, spool *os.File) error {
		auth = fmt.Sprint(job.Auth)
		os.Unsetenv("DOCKER_CONFIG") // the process has no files
		return job.Run(ctx, conn, archive, spool)
	}})
	must(t, err)
	if len(names) == 0 || names[0] != "me" || passwords[len(passwords)-1] != "mine" || strings.Contains(auth, "theirs") {
		t.Errorf("the registry was told %q; the job has %s", names, auth)
	}
}

// A process that was taken over cannot make its end wait for ours: a descriptor that it
// has sent, and that we have not received, goes when it has failed.
func TestHostileKeepsDescriptor(t *testing.T) {
	r, err := read(t.Context(), Options{Image: t.TempDir(), Read: func(_ context.Context, _ ReadJob, conn, _, _ *os.File) error {
		output, w, err := os.Pipe()
		if err != nil {
			return err
		}
		defer output.Close()
		c, err := unixConn(conn)
		if err != nil {
			return err
		}
		defer c.Close()
		bad := []byte{'x', 0, 0, 0, 0}
		rights := unix.UnixRights(int(w.Fd()))
		_, err = c.Write(bad)
		for range 2 { // one read gets the first of them at most
			_, _, werr := c.WriteMsgUnix(bad, rights, nil)
			err = errors.Join(err, werr)
		}
		w.Close()
		_, rerr := io.ReadAll(output) // as who waits for the process reads its output to the end
		return errors.Join(err, rerr)
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.stop()
	failed := make(chan error, 1)
	go func() {
		_, err := r.describe(t.Context())
		failed <- err
	}()
	select {
	case err := <-failed:
		if !errors.Is(err, errProtocol) {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Error("the descriptor is still open")
	}
}
