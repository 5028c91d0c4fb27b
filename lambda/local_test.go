package lambda

import (
	"context"
	"io"
	"strings"
	"testing"
)

// A localFolder is what a path of the host leads to.
type localFolder struct {
	content string
	closed  int
	asked   []string
}

func (l *localFolder) open(_ context.Context, path string) (io.ReadCloser, error) {
	l.asked = append(l.asked, path)
	if path == "/elsewhere" {
		return nil, badParameter("not below a folder")
	}
	return l, nil
}

func (l *localFolder) Read(p []byte) (int, error) {
	n := copy(p, l.content)
	if l.content = l.content[n:]; n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (l *localFolder) Close() error { l.closed++; return nil }

// Code that a client names by a path is stored as an upload is, within a limit of its own, and is
// released whatever becomes of the request.
func TestLocalCode(t *testing.T) {
	local := &localFolder{}
	f := newFixture(t, func(c *Config, _ *fixture) { c.Local, c.Limits.Local, c.Limits.Zip = local.open, 100, 5 })
	named := func(bucket, key string) j { return j{"S3Bucket": bucket, "S3Key": key} }
	local.content = "zip of a folder"
	got := f.create(merge(newFunction("local"), j{"Code": named("hot-reload", "/srv/app")}))
	if got["CodeSize"] != float64(len("zip of a folder")) || local.closed != 1 || f.blobs.pins != 0 {
		t.Errorf("%v; closed %d times, %d blobs held", got, local.closed, f.blobs.pins)
	}
	local.content = "another zip"
	if a := f.send("PUT", functions+"/local/code", named("hot-reload", "/srv/app")); a.status != 200 || a.body["CodeSize"] != float64(len("another zip")) {
		t.Errorf("update: %d %s", a.status, a.raw)
	}
	f.settled("local")
	for what, code := range map[string]j{
		"not below a folder": named("hot-reload", "/elsewhere"), "S3Key is missing": {"S3Bucket": "hot-reload"},
		"the bucket hot-reload":         named("bucket", "key"),
		"other FunctionCode parameters": merge(named("hot-reload", "/srv/app"), j{"ZipFile": []byte("x")}),
		"S3ObjectVersion":               merge(named("hot-reload", "/srv/app"), j{"S3ObjectVersion": "1"}),
	} {
		if a := f.send("POST", functions, merge(newFunction("bad"), j{"Code": code})); a.status != 400 || !strings.Contains(a.text(), what) {
			t.Errorf("%s: %d %s", what, a.status, a.raw)
		}
	}
	local.content = strings.Repeat("x", 101)
	if a := f.send("POST", functions, merge(newFunction("bad"), j{"Code": named("hot-reload", "/srv/app")})); a.status != 400 || !strings.Contains(a.text(), "smaller than 100 bytes") {
		t.Errorf("too large: %d %s", a.status, a.raw)
	}
	if f.blobs.pins != 0 || local.closed != 3 {
		t.Errorf("%d blobs are held, closed %d times", f.blobs.pins, local.closed)
	}
}
