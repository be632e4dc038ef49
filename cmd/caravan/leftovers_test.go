package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/caravan-dag/caravan/executor/worker"
	"github.com/caravan-dag/caravan/internal/datafolder"
)

// TestWorkerIn: what a killed command left is in use while its worker lives, and where that cannot
// be told.
func TestWorkerIn(t *testing.T) {
	for name, tt := range map[string]struct {
		left func(t *testing.T, workers string) error
		want bool
	}{
		"no workers' folder": {func(_ *testing.T, workers string) error { return os.Remove(workers) }, false},
		"no worker":          {func(*testing.T, string) error { return nil }, false},
		"a dead one":         {func(_ *testing.T, workers string) error { return os.Mkdir(workers+"/w-1", 0o700) }, false},
		"a living one": {func(t *testing.T, workers string) error {
			if err := os.Mkdir(workers+"/w-1", 0o700); err != nil {
				return err
			}
			lives, err := worker.Take(workers + "/w-1")
			if err == nil {
				t.Cleanup(lives.Release)
			}
			return err
		}, true},
		"one whose lock cannot be opened": {func(_ *testing.T, workers string) error {
			return os.MkdirAll(workers+"/w-1/lock", 0o700)
		}, true},
		"a folder that cannot be read": {func(_ *testing.T, workers string) error {
			if err := os.Remove(workers); err != nil {
				return err
			}
			return os.WriteFile(workers, nil, 0o600)
		}, true},
	} {
		temporary := t.TempDir()
		workers := datafolder.WorkerIn(filepath.Join(temporary, temporaryData))
		if err := os.MkdirAll(workers, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := tt.left(t, workers); err != nil {
			t.Fatal(err)
		}
		if got := workerIn(temporary); got != tt.want {
			t.Errorf("%s: in use: %t", name, got)
		}
	}
}
