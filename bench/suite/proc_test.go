package suite

import (
	"os"
	"path/filepath"
	"testing"
)

func TestFilesOfTheKernel(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	text := "MemTotal:       24683000 kB\nPss:     17 kB\nmodel name\t: AMD EPYC\nPRETTY_NAME=\"Debian\"\nkernel 4096\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]float64{"Pss:": 17, "MemTotal:": 24683000, "kernel": 4096} {
		if got, err := field(path, key); err != nil || got != want {
			t.Errorf("field %s: %v, %v; want %v", key, got, err, want)
		}
	}
	if _, err := field(path, "MemAvailable:"); err == nil {
		t.Error("a field that is not there was found")
	}
	for key, want := range map[string]string{"model name": "AMD EPYC", "PRETTY_NAME": `="Debian"`, "none": ""} {
		if got := lineOf(path, key); got != want {
			t.Errorf("line %s: %q, want %q", key, got, want)
		}
	}
	if got, want := firstLine(path), "MemTotal:       24683000 kB"; got != want {
		t.Errorf("first line %q, want %q", got, want)
	}
	if pss, err := pssMB([]int{os.Getpid()}); err != nil || pss <= 0 {
		t.Errorf("own PSS %v MB, %v", pss, err)
	}
}

func TestRunNamesWhatItLacks(t *testing.T) {
	if _, err := Run(t.Context(), Config{Only: []string{"lives", "nonsense"}}); err == nil {
		t.Error("an experiment that is not there was run")
	}
	if _, err := Find("/nowhere/sandboxd", "/nowhere"); err == nil {
		t.Error("programs that are not there were found")
	}
}
