package worker

import (
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/messages"
)

func TestMarksAreFoundInEnvironments(t *testing.T) {
	own := taskMark("w-1", messages.AttemptKey{Run: 1 << 40, Task: 7, Attempt: 2})
	for env, want := range map[string]*messages.AttemptKey{
		"A=1\x00" + own + "\x00":       {Run: 1 << 40, Task: 7, Attempt: 2},
		"CARAVAN_WORKER=w-1\x00B=2":    nil,
		"CARAVAN_WORKER=w-1\x00" + own: nil,
	} {
		k, has := findMark([]byte(env), "w-1")
		if !has || (k == nil) != (want == nil) || k != nil && *k != *want {
			t.Errorf("%q: %v, %v", env, k, has)
		}
	}
	for _, env := range []string{"", "A=1", "CARAVAN_WORKER=w-12", "CARAVAN_WORKER=w-1/1.2", "CARAVAN_WORKER=w-1/1.2.3x", "X" + own} {
		if k, has := findMark([]byte(env), "w-1"); has {
			t.Errorf("%q: %v", env, k)
		}
	}
}

func TestParseStat(t *testing.T) {
	line := "42 (a) (b) S 1 43 44 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 99 0"
	if p, ok := parseStat([]byte(line)); !ok || p != (process{pid: 42, group: 43, session: 44, ticks: 99}) {
		t.Errorf("%+v %v", p, ok)
	}
	if p, ok := parseStat([]byte(strings.Replace(line, " S ", " Z ", 1))); !ok || !p.dead {
		t.Errorf("%+v %v", p, ok)
	}
	for _, bad := range []string{"", "42 (a", "42 (a) S 1 2", strings.Replace(line, "43", "x", 1), strings.Replace(line, "42", "x", 1)} {
		if p, ok := parseStat([]byte(bad)); ok {
			t.Errorf("%q: %+v", bad, p)
		}
	}
	if _, err := readProcess(1 << 30); err == nil {
		t.Error("a process that there is not")
	}
}
