package history

import (
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var storedHistory = flag.String("history", "", "a stored history to check again")

// TestStoredHistory checks the history of a former round, which the harness has stored.
func TestStoredHistory(t *testing.T) {
	if *storedHistory == "" {
		t.Skip("the flag -history names a file to check")
	}
	text, err := os.ReadFile(*storedHistory)
	if err != nil {
		t.Fatal(err)
	}
	var h History
	if err := json.Unmarshal(text, &h); err != nil {
		t.Fatal(err)
	}
	for _, v := range Check(&h, Options{}) {
		t.Error(v)
	}
}

// TestScriptMarks: a real shell writes marks that are read again: a start, signs of life, and the end
// with the exit code of the body.
func TestScriptMarks(t *testing.T) {
	file := filepath.Join(t.TempDir(), "it's marked")
	before := Clock()
	// A busy machine may start the first sleep of the signs of life after that of the body.
	for attempt, body := range map[string]string{"1": `until grep -q ' 1 alive' "$MARKS"; do sleep 0.05; done; sleep 0.2; exit 3`, "2": "true"} {
		cmd := exec.Command("/bin/sh", "-c", Script(file, "0.05", body))
		cmd.Env = []string{"CARAVAN_RUN_ID=7", "CARAVAN_TASK=a_0", "CARAVAN_ATTEMPT=" + attempt, "PATH=" + os.Getenv("PATH"), "MARKS=" + file}
		out, err := cmd.CombinedOutput()
		if want := map[string]int{"1": 3, "2": 0}[attempt]; cmd.ProcessState.ExitCode() != want || len(out) > 0 {
			t.Errorf("attempt %s: exit code %d, want %d: %v %s", attempt, cmd.ProcessState.ExitCode(), want, err, out)
		}
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	marks, err := ParseMarks(string(text) + "7 a_0 3 sta") // torn
	if err != nil {
		t.Fatal(err)
	}
	for attempt, want := range map[int]Mark{1: {RC: 3}, 2: {RC: 0}} {
		own := slices.DeleteFunc(slices.Clone(marks), func(m Mark) bool { return m.Attempt != attempt })
		first, last := own[0], own[len(own)-1]
		if first.Kind != MarkStarted || last.Kind != MarkEnded || last.RC != want.RC || first.Run != 7 || first.Task != "a_0" {
			t.Errorf("attempt %d: %+v", attempt, own)
		}
		if first.Time < before.Truncate(clockResolution) || last.Time > Clock() || attempt == 1 && (len(own) < 3 || last.Time-first.Time < 190*time.Millisecond) {
			t.Errorf("attempt %d: from %v: %+v", attempt, before, own)
		}
	}
	for _, bad := range []string{"7 a 1 start\n", "x a 1 start 1.0\n", "7 a x start 1.0\n", "7 a 1 begin 1.0\n", "7 a 1 end 1.0\n", "7 a 1 start:0 1.0\n", "7 a 1 end:x 1.0\n", "7 a 1 start x\n"} {
		if marks, err := ParseMarks(bad); err == nil {
			t.Errorf("%q is read as %+v", bad, marks)
		}
	}
}

// TestLease: an attempt may overlap with its successor only when its worker was interrupted, and a
// lease has passed since.
func TestLease(t *testing.T) {
	const lease = 5 * time.Second
	second := func(n float64) time.Duration { return time.Duration(n * float64(time.Second)) }
	for _, c := range []struct {
		name         string
		good         bool
		lease        time.Duration
		interrupted  []Interruption
		next         time.Duration // start of the second attempt
		firstEndMark time.Duration
	}{
		{"in turn", true, 0, nil, second(10), second(9)},
		{"at once after the end", true, 0, nil, second(9), second(9)},
		{"overlap without a lease", false, 0, []Interruption{{second(2), 0}}, second(10), second(11)},
		{"overlap without an interruption", false, lease, nil, second(10), second(11)},
		{"overlap after a lease", true, lease, []Interruption{{second(4), second(6)}}, second(9), second(11)},
		{"overlap before the lease is over", false, lease, []Interruption{{second(4), 0}}, second(8.9), second(11)},
		{"interrupted before the first attempt", false, lease, []Interruption{{second(0.5), second(0.9)}}, second(9), second(11)},
		{"interrupted from before the first attempt", true, lease, []Interruption{{second(0.5), second(3)}}, second(9), second(11)},
		{"that long ago, but too early", false, lease, []Interruption{{second(0.5), second(3)}}, second(5.9), second(11)},
		{"one of several", true, lease, []Interruption{{second(0.5), second(0.6)}, {second(2), second(2)}, {second(8), 0}}, second(9), second(11)},
	} {
		t.Run(c.name, func(t *testing.T) {
			marks := []Mark{{1, "a", 1, MarkStarted, 0, second(1)}, {1, "a", 2, MarkStarted, 0, c.next}}
			end := Mark{1, "a", 1, MarkEnded, 1, c.firstEndMark}
			if c.firstEndMark <= c.next {
				marks = slices.Insert(marks, 1, end)
			} else {
				marks = append(marks, end)
			}
			found := violations(&History{Marks: marks, Lease: c.lease, Interruptions: c.interrupted}, "attempts")
			if c.good != (len(found) == 0) {
				t.Errorf("good: %v; found: %v", c.good, found)
			}
		})
	}
}

// TestGapsMayBeAllowed: gap events are accepted where the options say so.
func TestGapsMayBeAllowed(t *testing.T) {
	h := &History{Streams: []Stream{{Events: []Event{{ID: 1}, {ID: 2, Missed: 5}}}}}
	if found := Check(h, Options{}); len(found) != 1 || !strings.Contains(found[0].Text, "left out 5 changes") {
		t.Errorf("found %v", found)
	}
	if found := Check(h, Options{AllowMissed: true}); len(found) != 0 {
		t.Errorf("found %v", found)
	}
}

// TestOutstandingOperationsAreUnknown: a call that its client never ends may have taken effect.
func TestOutstandingOperationsAreUnknown(t *testing.T) {
	now := time.Duration(0)
	r := NewRecorder(func() time.Duration { now += time.Millisecond; return now })
	r.Begin(Operation{Kind: Submit, Tag: "lost"})
	r.Begin(Operation{Kind: Submit, Tag: "kept"}).End(func(o *Operation) { o.Outcome, o.Run = Acknowledged, 4 })
	h := r.History()
	if len(h.Operations) != 2 || h.Operations[0].Outcome != Unknown || h.Operations[1].Outcome != Acknowledged ||
		h.Operations[1].Call != 2*time.Millisecond || h.Operations[1].Return != 3*time.Millisecond {
		t.Errorf("%+v", h.Operations)
	}
}
