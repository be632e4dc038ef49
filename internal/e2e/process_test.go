package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
)

// TestDamagedOutput: one bit in an output file is found by every way of reading it. The
// other attempt's output in that file is served.
func TestDamagedOutput(t *testing.T) {
	s := e2etest.Start(t)
	run := s.Complete(e2etest.Graph(map[string]e2etest.Task{
		"a": e2etest.Sh("yes abcdefg | head -c 200000"),
		"b": e2etest.Sh("yes second | head -c 50000").After("a"),
	}))
	id := run.RunID
	name := filepath.Join(s.Config().Data, "output", fmt.Sprint(id/1000), fmt.Sprint(id, ".out"))
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	i := strings.LastIndex(string(text), "abcdefg")
	text[i] ^= 1
	if err := os.WriteFile(name, text, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for _, header := range [][]string{nil, {"Range", "bytes=199000-"}} {
			r := s.Want(500, "GET", e2etest.Path(id, "/task/a/log"), "", header...)
			if !strings.Contains(string(r.Body), name+" is damaged at offset ") {
				t.Errorf("%v: %s", header, r.Body)
			}
		}
		if r := s.Want(206, "GET", e2etest.Path(id, "/task/a/log"), "", "Range", "bytes=0-999"); len(r.Body) != 1000 {
			t.Errorf("what is whole: %d bytes", len(r.Body))
		}
		if r := s.Want(200, "GET", e2etest.Path(id, "/task/b/log"), ""); len(r.Body) != 50000 {
			t.Errorf("the other task: %d bytes", len(r.Body))
		}
		attempts := s.Get(id).TaskAttempts
		if log := attempts["a"][0].OutputLog; !strings.HasPrefix(log, "[caravan: output not readable: output file "+name) {
			t.Errorf("the document: %.200q", log)
		}
		if log := attempts["b"][0].OutputLog; len(log) != 50000 {
			t.Errorf("the document: %.200q", log)
		}
		s = s.Crash()
	}
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(s.Want(500, "GET", e2etest.Path(id, "/task/b/log"), "").Body), "output file "+name+": the file is missing") {
		t.Error("the missing file is not named")
	}
}
