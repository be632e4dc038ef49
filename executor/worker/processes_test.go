package worker

import (
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
