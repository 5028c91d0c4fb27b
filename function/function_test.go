package function

import (
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestDefaultsAreValid(t *testing.T) {
	s := Defaults()
	if err := s.Validate(); err != nil {
		t.Error(err)
	}
	if s.MemoryMB != 128 || s.Timeout != 3*time.Second || s.EphemeralMB != 512 { // ENV-30, ENV-32, ENV-33
		t.Errorf("%+v", s)
	}
}

func TestValidate(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*Settings)
		want   string // in the message; "" means that the settings are valid
	}{
		"least":                      {func(s *Settings) { s.MemoryMB, s.Timeout = 128, time.Second }, ""},
		"most":                       {func(s *Settings) { s.MemoryMB, s.EphemeralMB, s.Timeout = 10240, 10240, 900*time.Second }, ""},
		"no name":                    {func(s *Settings) { s.Name = "" }, "function-name"},
		"name with a dot":            {func(s *Settings) { s.Name = "a.b" }, "function-name"},
		"long name":                  {func(s *Settings) { s.Name = strings.Repeat("a", 65) }, "1 to 64"},
		"little memory":              {func(s *Settings) { s.MemoryMB = 127 }, "memory 127: must be a number from 128 to 10240 MB"},
		"much memory":                {func(s *Settings) { s.MemoryMB = 10241 }, "10240 MB"},
		"small /tmp":                 {func(s *Settings) { s.EphemeralMB = 511 }, "ephemeral-storage 511"},
		"no time":                    {func(s *Settings) { s.Timeout = 0 }, "timeout 0s"},
		"half a second":              {func(s *Settings) { s.Timeout = 1500 * time.Millisecond }, "whole seconds"},
		"16 minutes":                 {func(s *Settings) { s.Timeout = 16 * time.Minute }, "15m0s"},
		"negative concurrency":       {func(s *Settings) { s.Concurrency = -1 }, "concurrency -1"},
		"unknown format":             {func(s *Settings) { s.LogFormat = "json" }, "Text or JSON"},
		"unknown system level":       {func(s *Settings) { s.SystemLogLevel = "ERROR" }, "system-log-level"},
		"unknown level":              {func(s *Settings) { s.ApplicationLogLevel = "LOUD" }, "application-log-level"},
		"snap-start":                 {func(s *Settings) { s.SnapStart = true }, ""},
		"snap-start and provisioned": {func(s *Settings) { s.SnapStart, s.Provisioned = true, 1 }, "cannot be used together"},
		"snap-start of an image":     {func(s *Settings) { s.SnapStart, s.Image = true, true }, "container images"},
		"snap-start with much /tmp":  {func(s *Settings) { s.SnapStart, s.EphemeralMB = true, 513 }, "allows 512 MB of ephemeral-storage, not 513"},
		"provisioned":                {func(s *Settings) { s.Provisioned, s.Concurrency = 2, 2 }, ""},
		"more provisioned than most": {func(s *Settings) { s.Provisioned, s.Concurrency = 3, 2 }, "provisioned 3 is more than concurrency 2"},
		"managed":                    {func(s *Settings) { s.Managed, s.LogFormat = 4, "JSON" }, ""},
		"managed in text":            {func(s *Settings) { s.Managed = 4 }, "add log-format JSON"},
		"managed for tenants":        {func(s *Settings) { s.Managed, s.LogFormat, s.TenantIsolation = 4, "JSON", true }, "managed cannot be used with"},
		"variables":                  {func(s *Settings) { s.Env = map[string]string{"A1": "", "PATH": "/x", "NODE_OPTIONS": "-x"} }, ""},
		"reserved variable":          {func(s *Settings) { s.Env = map[string]string{"AWS_REGION": "mars"} }, "env: AWS_REGION is reserved"},
		"too many variables":         {func(s *Settings) { s.Env = map[string]string{"A1": strings.Repeat("x", 4095)} }, "4097 bytes"},
		"own credentials": {func(s *Settings) {
			s.Env = map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:1"}
		}, ""},
		"own credentials, snap-start": {func(s *Settings) {
			s.SnapStart, s.Env = true, map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:1"}
		}, "with snap-start the platform sets it"},
	} {
		t.Run(name, func(t *testing.T) {
			s := Defaults()
			tt.change(&s)
			err := s.Validate()
			if tt.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if _, ok := errors.AsType[*Error](err); !ok || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

// Callers name settings as they know them.
func TestErrorText(t *testing.T) {
	s := Defaults()
	s.SnapStart, s.Provisioned = true, 1
	bad, ok := errors.AsType[*Error](s.Validate())
	if !ok {
		t.Fatal("no *Error")
	}
	got := bad.Text(func(setting string) string { return "--" + setting })
	if want := "--snap-start and --provisioned cannot be used together: leave one of them out"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// ENV-15 to ENV-18.
func TestVariables(t *testing.T) {
	for name, want := range map[string]string{
		"A1": "", "Stage_2": "", "PATH": "", "TZ": "", "LANG": "", "AWS_LAMBDA_LOG_FORMAT": "", "AWS_LAMBDA_EXEC_WRAPPER": "",
		"AWS_CONTAINER_CREDENTIALS_FULL_URI": "", "AWS_CONTAINER_AUTHORIZATION_TOKEN": "",
		"AWS_REGION": "reserved", "AWS_DEFAULT_REGION": "reserved", "AWS_SESSION_TOKEN": "reserved", "LAMBDA_TASK_ROOT": "reserved",
		"AWS_LAMBDA_MAX_CONCURRENCY": "reserved", "_HANDLER": "reserved", "_X_AMZN_TRACE_ID": "reserved", "_MINE": "reserved",
		"A": "a letter followed by at least one", "1A": "a letter followed by", "a.b": "a letter followed by", "a-b": "a letter followed by", "": "a letter followed by", "A B": "a letter followed by", "A=B": "a letter followed by",
	} {
		err := CheckVariable(name, "secret")
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v, want %q", name, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v repeats the value", name, err)
		}
	}
	if err := CheckVariable("A1", "a\x00b"); err == nil {
		t.Error("a NUL byte is taken")
	}
}

// A name is reserved, or a function's value of it wins, or the platform does not set it.
func TestPolicyIsOne(t *testing.T) {
	for _, name := range overridableEnv {
		if Reserved(name) || !Overrides(name) {
			t.Errorf("%s is reserved and overridable", name)
		}
	}
	seen := map[string]bool{}
	for _, name := range slices.Concat(reservedEnv, overridableEnv, snapStartEnv) {
		if seen[name] {
			t.Errorf("%s is there twice", name)
		}
		seen[name] = true
	}
}

func TestCPU(t *testing.T) { // ENV-32
	for memory, want := range map[int]float64{1769: 1, 3538: 2, 10240: 10240.0 / 1769, 128: 128.0 / 1769} {
		s := Settings{MemoryMB: memory}
		if got := s.CPU(); got != want {
			t.Errorf("%d MB: %v processors, want %v", memory, got, want)
		}
	}
}

// The text of an id is its own inverse, also in JSON, where a number of 64 bits would be
// rounded by some readers.
func TestIDText(t *testing.T) {
	want := ID{Epoch: math.MaxUint64, Number: 1<<63 + 1}
	text, err := json.Marshal(want)
	if err != nil || string(text) != `"ffffffffffffffff/9223372036854775809"` {
		t.Errorf("%s, %v", text, err)
	}
	var got ID
	if err := json.Unmarshal(text, &got); err != nil || got != want {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
	for _, bad := range []string{"", "1", "1/", "/1", "g/1", "1/-1", "1/2/3", "10000000000000000/1"} {
		if err := got.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}
