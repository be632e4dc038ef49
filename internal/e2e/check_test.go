package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
)

// checkReport is the JSON output of check and salvage.
type checkReport struct {
	Whole    bool     `json:"whole"`
	Runs     int      `json:"runs"`
	Damaged  []uint64 `json:"damagedRuns"`
	LeftOut  []uint64 `json:"leftOut"`
	Kept     int      `json:"kept"`
	NextRun  uint64   `json:"nextRun"`
	Findings []struct {
		Text, File string
		Run        *uint64
	} `json:"findings"`
}

// runOffline runs a command that reads a data folder.
func runOffline(t *testing.T, args ...string) (r checkReport, code int, text string) {
	t.Helper()
	cmd := exec.Command(e2etest.Binary(), append(args, "-o", "json")...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	if out.Len() > 0 {
		if err := json.Unmarshal(out.Bytes(), &r); err != nil {
			t.Fatalf("%v: %s", err, &out)
		}
	}
	return r, code, out.String() + errs.String()
}

// TestCheckAndSalvage: check accepts an intact folder. For a damaged one it names the file and the
// runs; salvage keeps the other runs under their ids, with their output.
func TestCheckAndSalvage(t *testing.T) {
	t.Parallel()
	e2etest.OneByOne(t)
	s := e2etest.Start(t)
	data := s.Config().Data
	good := s.Complete(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("head -c 20000 /dev/zero | tr '\\0' 'y'")}))
	bad := s.Complete(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("echo qzjxkvwpfbvmhg")}))
	if _, code, text := runOffline(t, "check", data); code != 1 || !strings.Contains(text, "in use") && !strings.Contains(text, "server") {
		t.Errorf("check next to a server: %d, %s", code, text)
	}
	if _, _, err := s.Stop(e2etest.Patience); err != nil {
		t.Fatal(err)
	}
	if r, code, text := runOffline(t, "check", data); code != 0 || !r.Whole || r.Runs != 2 {
		t.Fatalf("check of a whole folder: %d, %s", code, text)
	}
	var outputs []string
	_ = filepath.WalkDir(filepath.Join(data, "output"), func(path string, e os.DirEntry, _ error) error {
		if strings.HasSuffix(path, ".out") {
			outputs = append(outputs, path)
		}
		return nil
	})
	if len(outputs) != 1 {
		t.Fatalf("output files: %v", outputs)
	}
	flipBit(t, outputs[0], 9000)
	r, code, text := runOffline(t, "check", data)
	if code != 1 || r.Whole || r.Runs != 1 || fmt.Sprint(r.Damaged) != fmt.Sprintf("[%v]", good.RunID) || r.Findings[0].File != outputs[0] {
		t.Errorf("check of damaged output: %d, %s", code, text)
	}
	flipBit(t, outputs[0], 9000)

	manifest := filepath.Join(data, "db", "MANIFEST")
	whole, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(manifest); err != nil {
		t.Fatal(err)
	}
	if r, code, text = runOffline(t, "check", data); code != 1 || r.Whole || !strings.Contains(text, manifest) {
		t.Errorf("check without a manifest: %d, %s", code, text)
	}
	into := filepath.Join(t.TempDir(), "saved")
	if r, code, text = runOffline(t, "salvage", data, into); code != 0 || r.Kept != 2 || r.NextRun < 2 {
		t.Fatalf("salvage without a manifest: %d, %s", code, text)
	}
	if err := os.WriteFile(manifest, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	again := e2etest.Start(t, e2etest.Data(into), e2etest.Args("--resume"))
	for _, run := range []*e2etest.Run{good, bad} {
		if state := again.State(run.RunID); state != "COMPLETED" {
			t.Errorf("run %d is %s", run.RunID, state)
		}
	}
	if log := again.Want(200, "GET", e2etest.Path(good.RunID, "/task/a/log"), "").Body; len(log) != 20000 {
		t.Errorf("%d bytes of output", len(log))
	}
	if next := again.Submit(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("true")})); next < r.NextRun {
		t.Errorf("the next run is %d, want %d or more", next, r.NextRun)
	}

	path, at := findInTables(t, data, "qzjxkvwpfbvmhg")
	flipBit(t, path, at)
	if r, code, text = runOffline(t, "check", data); code != 1 || r.Whole || len(r.Damaged) == 0 || r.Findings[0].File != path {
		t.Errorf("check of a damaged table: %d, %s", code, text)
	}
}

// TestCheckReadsWorkerJournals checks a folder whose server was killed while a task runs. The check
// reads the registry of workers and the journal of the living worker, names damage there, and
// changes nothing.
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
	if r, code, text := runOffline(t, "check", data); code != 0 || !r.Whole {
		t.Errorf("next to a living worker: %d, %s", code, text)
	}
	for _, file := range []string{journal, registry} {
		whole, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for what, damage := range map[string]func() error{
			"one bit":  func() error { flipBit(t, file, int64(len(whole)/2)); return nil },
			"cut":      func() error { return os.Truncate(file, int64(len(whole)-3)) },
			"missing":  func() error { return os.Rename(file, file+".away") },
			"all zero": func() error { return os.WriteFile(file, make([]byte, len(whole)), 0o600) },
		} {
			if err := damage(); err != nil {
				t.Fatal(err)
			}
			r, code, text := runOffline(t, "check", data)
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
	if _, code, text := runOffline(t, "check", data); code != 0 || strings.Contains(text, "worker") {
		t.Errorf("put right again: %d, %s", code, text)
	}
	again := s.Restart()
	if err := os.WriteFile(filepath.Join(dir, "stop"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	again.Await(run, "COMPLETED")
}
