package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
)

// TestCheckReadsWorkerJournals: check of a folder whose server was killed while a task runs
// reads the registry of workers and the journal of the one that lives. What is damaged there
// is named; nothing is changed by the look.
func TestCheckReadsWorkerJournals(t *testing.T) {
	t.Parallel()
	e2etest.OneByOne(t)
	s := e2etest.Start(t)
	data, dir := s.Config().Data, t.TempDir()
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("while [ ! -e stop ]; do sleep 0.05; done").Job("workDir", dir)}))
	s.AwaitTask(run, "a", "RUNNING")
	s.Kill()
	journals, err := filepath.Glob(filepath.Join(data, "worker", "w-*", "journal"))
	if err != nil || len(journals) != 1 {
		t.Fatalf("journals: %v, %v", journals, err)
	}
	journal, registry := journals[0], filepath.Join(data, "worker", "workers")
	if r, code, text := offline(t, "check", data); code != 0 || !r.Whole {
		t.Errorf("beside a living worker: %d, %s", code, text)
	}
	for _, file := range []string{journal, registry} {
		whole, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for what, damage := range map[string]func() error{
			"one bit":  func() error { flip(t, file, int64(len(whole)/2)); return nil },
			"cut":      func() error { return os.Truncate(file, int64(len(whole)-3)) },
			"missing":  func() error { return os.Rename(file, file+".away") },
			"all zero": func() error { return os.WriteFile(file, make([]byte, len(whole)), 0o600) },
		} {
			if err := damage(); err != nil {
				t.Fatal(err)
			}
			r, code, text := offline(t, "check", data)
			if code != 1 || r.Whole || len(r.Findings) != 1 || r.Findings[0].File != file || len(r.Damaged) != 0 {
				t.Errorf("%s, %s: %d, %s", filepath.Base(file), what, code, text)
			}
			if what == "missing" {
				err = os.Rename(file+".away", file)
			} else {
				err = os.WriteFile(file, whole, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, code, text := offline(t, "check", data); code != 0 || strings.Contains(text, "worker") {
		t.Errorf("put right again: %d, %s", code, text)
	}
	again := s.Restart()
	if err := os.WriteFile(filepath.Join(dir, "stop"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	again.Await(run, "COMPLETED")
}
