package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
)

// killed is a data folder whose server was killed: a run has ended, another one is paused
// with a command that marks a file when it runs.
func killed(t *testing.T) (data string, ended, paused uint64, ran func() int) {
	t.Helper()
	lines := filepath.Join(t.TempDir(), "lines")
	s := e2etest.Start(t)
	ended = s.Submit(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("echo ran >> " + lines)}))
	s.Await(ended, "COMPLETED")
	paused = s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"a": e2etest.Sh("sleep 0.01"), "b": e2etest.Sh("echo later >> " + lines).After("a"),
	}))
	s.Want(200, "PATCH", e2etest.Path(paused, "/state/PAUSED"), "")
	s.Kill()
	<-s.Ended()
	return s.Config().Data, ended, paused, func() int {
		text, _ := os.ReadFile(lines)
		return strings.Count(string(text), "ran")
	}
}

// TestDamagedBadgerLog: after a kill -9 a bit in the middle of Badger's own log changes
// nothing: all that was acknowledged is there, nothing runs twice, and ids go on.
func TestDamagedBadgerLog(t *testing.T) {
	t.Parallel()
	data, ended, paused, ran := killed(t)
	names, err := filepath.Glob(filepath.Join(data, "db", "*.mem"))
	if err != nil || len(names) == 0 {
		t.Fatalf("log files of Badger's: %v, %v", names, err)
	}
	for _, name := range names {
		for _, at := range []int64{0, 30, 200, 700} {
			flip(t, name, at)
		}
	}
	s := e2etest.Start(t, e2etest.Data(data))
	if state := s.State(ended); state != "COMPLETED" {
		t.Errorf("the run that had ended is %s", state)
	}
	if state := s.State(paused); state != "PAUSED" {
		t.Errorf("the run that was paused is %s", state)
	}
	next := s.Submit(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("true")}))
	if next != paused+1 {
		t.Errorf("the next run is %d behind %d", next, paused)
	}
	s.Await(next, "COMPLETED")
	if n := ran(); n != 1 {
		t.Errorf("the command ran %d times", n)
	}
}

// TestDamagedCommitLog: a bit in what was acknowledged last. The server refuses to start
// and names file and place; with the bit put right it goes on.
func TestDamagedCommitLog(t *testing.T) {
	data, ended, paused, ran := killed(t)
	segment := filepath.Join(data, "db", "log", "0000000001.log")
	content, err := os.ReadFile(segment)
	if err != nil {
		t.Fatal(err)
	}
	end := len(strings.TrimRight(string(content), "\x00"))
	for what, at := range map[string]int{"the header": 17, "the first record": 4100, "the middle": (4096 + end) / 2, "the last record": end - 3} {
		flip(t, segment, int64(at))
		_, err := e2etest.TryStart(t, e2etest.Data(data))
		if err == nil || !strings.Contains(err.Error(), segment) || !strings.Contains(err.Error(), "damaged at offset") {
			t.Errorf("%s: %v", what, err)
		}
		flip(t, segment, int64(at))
	}
	s := e2etest.Start(t, e2etest.Data(data))
	if a, b := s.State(ended), s.State(paused); a != "COMPLETED" || b != "PAUSED" || ran() != 1 {
		t.Errorf("%s, %s, ran %d times", a, b, ran())
	}
}
