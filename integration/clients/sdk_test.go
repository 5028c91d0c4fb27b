//go:build integration

package clients

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// Functions that make clients of AWS while they initialize, with AWS's SDKs. All do the
// same: they answer the region of a client, and its access key or "".

// sdkFunctions are the flags of these functions.
func sdkFunctions(t *testing.T) map[string][]string {
	t.Helper()
	goDir := t.TempDir()
	harness.WriteFile(t, filepath.Join(goDir, "bootstrap"), harness.ReadFile(t, filepath.Join(clientDir(t, "sdkgo"), "bootstrap")), 0o755)
	return map[string][]string{
		"boto3":      {"--runtime=" + pythonRuntime(t), "--handler=app.handler", clientDir(t, "sdkpython")},
		"javascript": {"--runtime=nodejs20.x", "--handler=index.handler", "--layer", clientDir(t, "node3"), clientDir(t, "sdknode")},
		"go":         {goDir},
	}
}

// ENV-01, ENV-02: the SDKs make a client without any setting, and take the credentials and
// the region of the operator.
func TestClientSDKs(t *testing.T) {
	t.Parallel()
	for name, flags := range sdkFunctions(t) {
		t.Run(name, func(t *testing.T) {
			for setting, want := range map[string]string{
				"": `{"region":"us-east-1","key":""}`, // no credentials
				"--access-key-id=AKIDEXAMPLE --secret-access-key=secret --session-token=token --region=eu-north-1": `{"region":"eu-north-1","key":"AKIDEXAMPLE"}`,
			} {
				d := harness.Start(t, append(append([]string{"--memory=1769"}, strings.Fields(setting)...), flags...)...)
				var got, wanted struct{ Region, Key string }
				a := d.Invoke("")
				if err := json.Unmarshal(a.Body, &got); err != nil {
					t.Fatalf("%s: %v", a.Body, err)
				}
				if err := json.Unmarshal([]byte(want), &wanted); err != nil || got != wanted {
					t.Errorf("with %q: %s, want %s", setting, a.Body, want)
				}
				d.Stop()
			}
		})
	}
}
