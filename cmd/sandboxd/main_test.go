package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/host/doctor"
	"github.com/sandboxd/sandboxd/internal/exit"
)

// command runs one command line in this process.
func command(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

// A bad command line is exit code 2, one line on standard error, and nothing else.
// A message about a variable or a credential does not repeat what may be a secret.
func TestSecretsAreNotRepeated(t *testing.T) {
	config := filepath.Join(t.TempDir(), "config")
	for _, args := range [][]string{
		{"--env", "A-B=hunter2"}, {"--env", "hunter2"}, {"--env", "AWS_REGION=hunter2"}, {"--env", "NAME=hunter2\x00"},
		{"--secret-access-key", "hunter2"}, {"--access-key-id", "hunter2"}, {"--session-token", "hunter2"},
		{"env: [A-B=hunter2]"}, {"env: {A-B: hunter2}"}, {"env: [hunter2]"}, {"secret-access-key: hunter2"},
	} {
		if len(args) == 1 {
			if err := os.WriteFile(config, []byte(args[0]+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			args = []string{"--config", config}
		}
		var out, stderr bytes.Buffer
		if code := run(t.Context(), append(append([]string{"run"}, args...), "x"), strings.NewReader(""), &out, &stderr); code != exit.Usage || strings.Contains(stderr.String(), "hunter2") || stderr.Len() == 0 {
			t.Errorf("%q: exit code %d, %s", args, code, stderr.String())
		}
	}
}

func TestUsageErrors(t *testing.T) {
	for name, tt := range map[string]struct {
		args []string
		want string // in the message
	}{
		"unknown command":        {[]string{"rum"}, `did you mean "run"`},
		"unknown flag":           {[]string{"run", "--speed", "x"}, "--speed"},
		"no code":                {[]string{"run"}, "one DIR or ZIP"},
		"two codes":              {[]string{"run", "a", "b"}, "2 arguments"},
		"memory below the least": {[]string{"run", "--memory", "127", "x"}, "from 128 to 10240 MB"},
		"memory above the most":  {[]string{"run", "--memory", "10241", "x"}, "from 128 to 10240 MB"},
		"memory with a unit":     {[]string{"run", "--memory", "1G", "x"}, "from 128 to 10240 MB"},
		"timeout of nothing":     {[]string{"run", "--timeout", "0", "x"}, "--timeout"},
		"timeout too long":       {[]string{"run", "--timeout", "901s", "x"}, "15m0s"},
		"timeout not whole":      {[]string{"run", "--timeout", "1500ms", "x"}, "whole seconds"},
		"/tmp too small":         {[]string{"run", "--ephemeral-storage", "511", "x"}, "from 512 to 10240 MB"},
		"no concurrency":         {[]string{"run", "--concurrency", "0", "x"}, "from 1"},
		"network unknown":        {[]string{"run", "--network", "tor", "x"}, "must be none"},
		"egress to nowhere":      {[]string{"run", "--network", "egress", "x"}, "add --allow CIDR"},
		"egress to a word":       {[]string{"run", "--network", "egress", "--allow", "here", "x"}, "must be CIDR"},
		"host by accident":       {[]string{"run", "--network", "host", "x"}, "add --unsafe-host-network"},
		"unsafe without host":    {[]string{"run", "--unsafe-host-network", "x"}, "needs --network host"},
		"rules without egress":   {[]string{"run", "--allow-name", "example.com", "x"}, "need --network egress"},
		"log format":             {[]string{"run", "--log-format", "json", "x"}, "Text or JSON"},
		"descriptors":            {[]string{"run", "--log-descriptors", "file", "x"}, "pipe or socket"},
		"function name":          {[]string{"run", "--function-name", "a/b", "x"}, "1 to 64 letters"},
		"function name too long": {[]string{"run", "--function-name", strings.Repeat("a", 65), "x"}, "1 to 64 letters"},
		"listen":                 {[]string{"run", "--listen", "9000", "x"}, "127.0.0.1:9000"},
		"http without a port":    {[]string{"run", "--http", "8000", "x"}, "127.0.0.1:9000"},
		"http mode unknown":      {[]string{"run", "--http", ":1", "--http-invoke-mode", "stream", "x"}, "RESPONSE_STREAM"},
		"http mode alone":        {[]string{"run", "--http-invoke-mode", "BUFFERED", "x"}, "need --http"},
		"http host alone":        {[]string{"run", "--http-host", "example.com", "x"}, "need --http"},
		"http host with a port":  {[]string{"run", "--http", ":1", "--http-host", "example.com:80", "x"}, "without a port"},
		"http and an event":      {[]string{"run", "--http", ":1", "--event", "-", "x"}, "--http has no effect with --event"},
		"http and tenants":       {[]string{"run", "--http", ":1", "--tenant-isolation", "x"}, "names no tenant"},
		"http where listen is":   {[]string{"run", "--http", "127.0.0.1:9000", "x"}, "same address"},
		"six layers":             {[]string{"run", "--layer=1", "--layer=2", "--layer=3", "--layer=4", "--layer=5", "--layer=6", "x"}, "at most 5 layers"},
		"env without value":      {[]string{"run", "--env", "A", "x"}, "NAME=VALUE"},
		"env reserved":           {[]string{"run", "--env", "AWS_REGION=x", "x"}, "AWS_REGION is reserved: the platform sets it, from --region"},
		"env credentials":        {[]string{"run", "--env", "AWS_ACCESS_KEY_ID=x", "x"}, "from --credentials env, --credentials FILE or --access-key-id"},
		"half a credential":      {[]string{"run", "--access-key-id", "x", "x"}, "access-key-id without --secret-access-key"},
		"the other half":         {[]string{"run", "--secret-access-key", "x", "x"}, "secret-access-key without --access-key-id"},
		"a token alone":          {[]string{"run", "--session-token", "x", "x"}, "session-token without"},
		"credentials twice":      {[]string{"run", "--credentials", "env", "--access-key-id", "x", "x"}, "leave one of them out"},
		"a profile of nothing":   {[]string{"run", "--profile", "x", "x"}, "--profile needs --credentials FILE"},
		"missing credentials":    {[]string{"run", "--credentials", "/nonexistent", "x"}, "--credentials /nonexistent: no such file"},
		"a region of no form":    {[]string{"run", "--region", "mars", "x"}, "a region such as us-east-1"},
		"id base":                {[]string{"run", "--id-base", "1879048193", "x"}, "multiple of 65536"},
		"id base of systemd":     {[]string{"run", "--id-base", "1048576", "x"}, "systemd"},
		"missing config":         {[]string{"run", "--config", "/nonexistent.yaml", "x"}, "/nonexistent.yaml"},
		"empty state folder":     {[]string{"run", "--state-dir", "", "x"}, "must not be empty"},
		"long run folder":        {[]string{"run", "--run-dir", strings.Repeat("/x", 60), "x"}, "at most 80 bytes"},
		"inspect nothing":        {[]string{"inspect"}, "sandboxd ps"},
		"serve something":        {[]string{"serve", "x"}, "takes no argument"},
		"serve for strangers":    {[]string{"serve", "--listen", ":9000"}, "not a loopback address"},
		"revoke nothing":         {[]string{"key", "revoke"}, "'sandboxd key list'"},
		"revoke two keys":        {[]string{"key", "revoke", "a", "b"}, "the id of one access key"},
		"a key for everybody":    {[]string{"key", "create", "x"}, "takes no argument"},
		"keys of no daemon":      {[]string{"key", "list", "--run-dir", "/nonexistent"}, "no daemon runs 'sandboxd serve' with --run-dir /nonexistent"},
		"ps of something":        {[]string{"ps", "x"}, "takes no argument"},
		"layer of nothing":       {[]string{"layer"}, "takes one RUNTIME"},
		"layer of two":           {[]string{"layer", "python3.11", "java17"}, "takes one RUNTIME"},
		"layer of a runtime":     {[]string{"layer", "provided.al2023"}, "nodejs20.x"},
		"prune something":        {[]string{"prune", "x"}, "takes no argument"},
		"prune all and some":     {[]string{"prune", "--all", "--older-than", "1h"}, "cannot be used together"},
		"prune a negative age":   {[]string{"prune", "--older-than", "-1h"}, "must be a duration"},
		"output":                 {[]string{"doctor", "-o", "xml"}, "table or json"},
	} {
		t.Run(name, func(t *testing.T) {
			code, stdout, stderr := command(t, tt.args...)
			if code != exit.Usage || stdout != "" {
				t.Errorf("exit code %d, stdout %q", code, stdout)
			}
			if !strings.Contains(stderr, tt.want) || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "sandboxd: ") {
				t.Errorf("stderr %q, want one line with %q", stderr, tt.want)
			}
		})
	}
}

func TestHelpAndVersion(t *testing.T) {
	for _, cmd := range [][]string{{"--help"}, {"run", "--help"}, {"serve", "--help"}, {"deploy", "--help"}, {"logs", "--help"}, {"doctor", "--help"}, {"ps", "--help"}, {"inspect", "--help"}, {"prune", "--help"}, {"layer", "--help"},
		{"key", "--help"}, {"key", "create", "--help"}, {"key", "list", "--help"}, {"key", "revoke", "--help"}, {"key", "rotate-host", "--help"}} {
		code, stdout, stderr := command(t, cmd...)
		if code != exit.OK || stderr != "" || !strings.Contains(stdout, "Examples:") || !strings.Contains(stdout, "Exit codes:") {
			t.Errorf("%v: exit code %d, stderr %q, stdout without examples or exit codes:\n%s", cmd, code, stderr, stdout)
		}
	}
	if code, stdout, _ := command(t, "version"); code != exit.OK || !strings.HasPrefix(stdout, "sandboxd ") {
		t.Errorf("version: %d %q", code, stdout)
	}
	if code, stdout, _ := command(t, "completion", "bash"); code != exit.OK || !strings.Contains(stdout, "sandboxd") {
		t.Errorf("completion: %d", code)
	}
}

func TestDoctor(t *testing.T) {
	code, stdout, stderr := command(t, "doctor", "--output", "json")
	var findings []doctor.Finding
	if err := json.Unmarshal([]byte(stdout), &findings); err != nil {
		t.Fatal(err)
	}
	want := exit.OK
	for _, f := range findings {
		if f.Status == doctor.Fail {
			want = exit.Function
		}
	}
	if code != want || (want == exit.OK) != (stderr == "") || len(findings) < 10 {
		t.Errorf("exit code %d, want %d; stderr %q; %d findings", code, want, stderr, len(findings))
	}
	code, table, _ := command(t, "doctor", "--id-base", "0")
	if code != exit.Function || !strings.Contains(table, "FAIL") {
		t.Errorf("with a must-have missing: exit code %d\n%s", code, table)
	}
}
