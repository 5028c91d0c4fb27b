package worker

import (
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/rapid"
	"github.com/sandboxd/sandboxd/rapid/telemetry"
)

func TestLifeOf(t *testing.T) {
	c := &message.WorkerConfig{Region: "us-east-1", Descriptors: "socket",
		Life: message.Life{InitTimeout: 7 * time.Second, RuntimeShare: 0.5, StreamRate: 2 << 20}}
	rev := &function.Revision{ARN: "arn", Version: "$LATEST", Settings: function.Defaults()}
	rev.Name, rev.ApplicationLogLevel, rev.Env = "fn", "TRACE", map[string]string{"A1": "x"}
	rev.Program.Bootstrap = function.Entry{Path: "/var/task/bootstrap", Dir: "/var/task"}
	cfg := lifeOf(c, rev)
	f := cfg.Function
	if f.ARN != "arn" || f.LogGroup != "/aws/lambda/fn" || f.Version != "$LATEST" || f.LogLevel != "TRACE" || f.SystemLogLevel != telemetry.LevelInfo ||
		f.Env["A1"] != "x" || f.Image != nil || f.Bootstrap.Path != "/var/task/bootstrap" || f.MemoryMB != 128 || f.Region != "us-east-1" {
		t.Errorf("%+v", f)
	}
	if s := cfg.Settings; s.RuntimeShare != 0.5 || s.Linger != 0 || s.Descriptors != telemetry.Sockets || s.KillWait == 0 || s.InitTimeout != 7*time.Second {
		t.Errorf("%+v", s)
	}
	if st := cfg.Settings.Stream; st.Rate != 2<<20 || st.Burst != 6<<20 || st.Bytes != 200<<20 { // RT-71
		t.Errorf("stream limits %+v", st)
	}
	if cfg.Initialization.String() != string(rapid.OnDemand) {
		t.Errorf("%+v", cfg)
	}

	rev.Managed, rev.Program.Image = 5, &function.Image{Cmd: []string{"x"}, Env: map[string]string{"PATH": "/x"}}
	cfg = lifeOf(c, rev)
	if cfg.Initialization != rapid.Managed || cfg.MaxConcurrency != 5 || cfg.Settings.InitTimeout != 130*time.Second { // LC-06
		t.Errorf("managed: %+v", cfg)
	}
	if f := cfg.Function; f.Image == nil || f.Env["PATH"] != "/x" || f.Env["A1"] != "" {
		t.Errorf("an image: %+v", f)
	}
	rev.Managed, rev.SnapStart = 0, true
	if cfg = lifeOf(c, rev); cfg.Initialization != rapid.SnapStart {
		t.Errorf("snap-start: %v", cfg.Initialization)
	}
}

func TestReadEvent(t *testing.T) {
	if b, err := readEvent("-", strings.NewReader(`{"a":1}`)); err != nil || string(b) != `{"a":1}` {
		t.Errorf("%s, %v", b, err)
	}
	if b, err := readEvent("-", strings.NewReader("")); err != nil || string(b) != "{}" { // INV-09
		t.Errorf("nothing: %s, %v", b, err)
	}
	for name, in := range map[string]string{
		"not valid JSON":        "{",
		"not UTF-8":             "{\"a\":\"\xff\"}",
		"larger than the limit": `"` + strings.Repeat("x", maxEventBytes) + `"`,
	} {
		if _, err := readEvent("-", strings.NewReader(in)); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%v, want %q", err, name)
		}
	}
}
