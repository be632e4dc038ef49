package dag

import (
	"fmt"
	"strings"
	"testing"
)

// panicText returns what f panics with.
func panicText(t *testing.T, f func()) (text string) {
	t.Helper()
	defer func() {
		if text = fmt.Sprint(recover()); text == "<nil>" {
			t.Error("no panic")
		}
	}()
	f()
	return ""
}

// TestTransitionTables spells both transition tables out: what is not there panics with both names.
func TestTransitionTables(t *testing.T) {
	tasks := map[string]string{
		"QUEUED":    "GRANTED KILLED",
		"GRANTED":   "QUEUED RUNNING RETRY COMPLETED ERRORED KILLED",
		"RUNNING":   "QUEUED RETRY COMPLETED ERRORED KILLED",
		"RETRY":     "QUEUED GRANTED KILLED",
		"COMPLETED": "",
		"ERRORED":   "QUEUED",
		"KILLED":    "QUEUED",
	}
	for from := range NumTaskStates {
		for to := range NumTaskStates {
			move := func() { mustMoveTask(7, from, to) }
			if strings.Contains(" "+tasks[taskNames[from]]+" ", " "+taskNames[to]+" ") {
				move()
				continue
			}
			want := fmt.Sprintf("task 7: illegal move %s -> %s", taskNames[from], taskNames[to])
			if got := panicText(t, move); got != want {
				t.Errorf("panic %q, want %q", got, want)
			}
		}
	}
	runs := map[string]string{
		"QUEUED":    "RUNNING PAUSED KILLED",
		"RUNNING":   "PAUSED COMPLETED ERRORED KILLED",
		"PAUSED":    "QUEUED RUNNING COMPLETED ERRORED KILLED",
		"COMPLETED": "",
		"ERRORED":   "QUEUED",
		"KILLED":    "QUEUED",
	}
	for from := range numRunStates {
		for to := range numRunStates {
			move := func() { mustMoveRun(from, to) }
			if strings.Contains(" "+runs[from.String()]+" ", " "+to.String()+" ") {
				move()
				continue
			}
			want := fmt.Sprintf("run: illegal move %s -> %s", from, to)
			if got := panicText(t, move); got != want {
				t.Errorf("panic %q, want %q", got, want)
			}
		}
	}
}

func TestStateWords(t *testing.T) {
	words := []string{"QUEUED", "QUEUED", "RUNNING", "RETRY", "COMPLETED", "ERRORED", "KILLED"}
	for s := range NumTaskStates {
		if s.String() != words[s] {
			t.Errorf("task state %d is %q, want %q", s, s, words[s])
		}
		if final := s >= TaskCompleted; s.Final() != final {
			t.Errorf("%s.Final() = %v", s, !final)
		}
		if live := s == TaskGranted || s == TaskRunning; s.Live() != live {
			t.Errorf("task state %d: Live() = %v", s, !live)
		}
		if back, ok := ParseTaskState(words[s]); s != TaskGranted && (!ok || back != s) {
			t.Errorf("ParseTaskState(%q) = %d, %v", words[s], back, ok)
		}
	}
	if NumTaskStates.String() != "TaskState(7)" || NumTaskStates.Final() || NumTaskStates.Live() {
		t.Error("a task state that is none")
	}
	for _, word := range []string{"", "queued", "GRANTED", "PAUSED", "TaskState(7)"} {
		if s, ok := ParseTaskState(word); ok {
			t.Errorf("ParseTaskState(%q) = %s", word, s)
		}
	}
	for s := range numRunStates {
		if back, ok := ParseRunState(s.String()); !ok || back != s {
			t.Errorf("ParseRunState(%q) = %d, %v", s, back, ok)
		}
		if final := s >= RunCompleted; s.Final() != final {
			t.Errorf("%s.Final() = %v", s, !final)
		}
	}
	if numRunStates.String() != "RunState(6)" || numRunStates.Final() {
		t.Error("a run state that is none")
	}
	for _, word := range []string{"", "running", "RETRY"} {
		if s, ok := ParseRunState(word); ok {
			t.Errorf("ParseRunState(%q) = %s", word, s)
		}
	}
}
