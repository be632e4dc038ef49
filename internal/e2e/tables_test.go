package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
)

// marked is a table of a data folder in which a text stands, and where.
func marked(t *testing.T, data, text string) (path string, at int64) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(data, "db", "*.sst"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if i := bytes.Index(b, []byte(text)); i >= 0 {
			return name, int64(i)
		}
	}
	t.Fatalf("%q is in none of %d tables", text, len(names))
	return "", 0
}

// flip changes one bit of a file.
func flip(t *testing.T, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

// stopped is a data folder, stopped cleanly, with a paused run whose command writes a file
// that must not come to be.
func stopped(t *testing.T, command string) (s *e2etest.Server, run uint64) {
	t.Helper()
	s = e2etest.Start(t)
	run = s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"a": e2etest.Sh("sleep 0.01"), "b": e2etest.Sh(command).After("a").With("retryIntervalSeconds", 1),
	}).With("tag", "kept"))
	s.Want(200, "PATCH", e2etest.Path(run, "/state/PAUSED"), "")
	if _, _, err := s.Stop(e2etest.Patience); err != nil {
		t.Fatal(err)
	}
	return s, run
}

// TestDamagedTable: one bit in a command's text, in a table. The server refuses to start and
// names the file; nothing is executed.
func TestDamagedTable(t *testing.T) {
	t.Parallel()
	touched := filepath.Join(t.TempDir(), "touched")
	s, _ := stopped(t, "echo qzjxkvwpfbvmhg; touch "+touched)
	data := s.Config().Data
	path, at := marked(t, data, "qzjxkvwpfbvmhg")
	flip(t, path, at+3)
	_, err := e2etest.TryStart(t, e2etest.Data(data))
	if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "at offset") {
		t.Fatalf("start on a damaged table: %v", err)
	}
	flip(t, path, at+3)
	again := e2etest.Start(t, e2etest.Data(data))
	again.Want(200, "GET", "/healthz", "")
}

// TestMissingManifest: Badger alone would delete all tables.
func TestMissingManifest(t *testing.T) {
	t.Parallel()
	s, run := stopped(t, "echo qzjxkvwpfbvmhg")
	data := s.Config().Data
	manifest := filepath.Join(data, "db", "MANIFEST")
	whole, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	for what, damage := range map[string]func() error{
		"removed":          func() error { return os.Remove(manifest) },
		"cut to 25 bytes":  func() error { return os.WriteFile(manifest, whole[:25], 0o600) },
		"cut behind a row": func() error { return os.WriteFile(manifest, whole[:16], 0o600) },
		"a longer length":  func() error { b := bytes.Clone(whole); b[18] ^= 4; return os.WriteFile(manifest, b, 0o600) },
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		if _, err := e2etest.TryStart(t, e2etest.Data(data)); err == nil || !strings.Contains(err.Error(), manifest) {
			t.Errorf("%s: %v", what, err)
		}
		if err := os.WriteFile(manifest, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	again := e2etest.Start(t, e2etest.Data(data))
	if state := again.State(run); state != "PAUSED" {
		t.Errorf("the run is %s", state)
	}
}

// TestVerifyOff starts without a look at the tables, and says so.
func TestVerifyOff(t *testing.T) {
	t.Parallel()
	s, _ := stopped(t, "true")
	again := e2etest.Start(t, e2etest.Data(s.Config().Data), e2etest.Args("--verify", "off"))
	if !strings.Contains(again.Log(), "not verified") {
		t.Error("no warning in the log")
	}
}

// TestRotWhileItRuns overwrites a command in a table while the server has it open. Its run is
// an error from then on, and no other command; the server says so, and goes on.
func TestRotWhileItRuns(t *testing.T) {
	t.Parallel()
	touched := filepath.Join(t.TempDir(), "touched")
	first := e2etest.Start(t)
	graph := func(script string) e2etest.Doc {
		return e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh(script)})
	}
	var run uint64
	for i := range 100 { // its row is in a block of its own, which nothing reads at the start
		if i == 50 {
			run = first.Submit(graph("touch " + touched + "; exit 3 # qzjxkvwpfbvmhg"))
			first.Await(run, "ERRORED")
		}
		first.Submit(graph(fmt.Sprintf("true %d %s", i, strings.Repeat(fmt.Sprint(i), 100))))
	}
	if _, _, err := first.Stop(e2etest.Patience); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(touched); err != nil {
		t.Fatal(err)
	}
	data := first.Config().Data
	s := e2etest.Start(t, e2etest.Data(data))
	path, at := marked(t, data, "qzjxkvwpfbvmhg")
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("# rotten text"), at); err != nil {
		t.Fatal(err)
	}
	r := s.Do("PATCH", e2etest.Path(run, "/state/QUEUED"), "")
	if r.Status != 500 {
		t.Errorf("resumed: %d %s", r.Status, r.Body)
	}
	if r := s.Do("GET", e2etest.Path(run, ""), ""); r.Status != 500 || !strings.Contains(string(r.Body), "internal") {
		t.Errorf("the run: %d %s", r.Status, r.Body)
	}
	if r := s.Do("GET", "/healthz", ""); r.Status != 503 || !strings.Contains(string(r.Body), "not healthy") {
		t.Errorf("health: %d %s", r.Status, r.Body)
	}
	s.Complete(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("true")}))
	if _, err := os.Stat(touched); err == nil {
		t.Error("the command ran")
	}
}
