package dag

import (
	"fmt"
	"strings"
	"testing"
)

// words are the transitions of a batch as text: "3:RETRY.1" is task 3 after one
// attempt, "RUNNING" the run.
func words(t *testing.T, batch []byte, tasks uint32) string {
	t.Helper()
	var out []string
	err := Transitions(batch, tasks, func(tr Transition) {
		if tr.OfRun {
			out = append(out, tr.Run.String())
		} else {
			out = append(out, fmt.Sprintf("%d:%s.%d", tr.Task, tr.State, tr.Attempt))
		}
		if tr.At < 1000 || tr.At > 9000 {
			t.Errorf("at %d", tr.At)
		}
	})
	if err != nil {
		t.Error(err)
	}
	return strings.Join(out, " ")
}

func TestTransitions(t *testing.T) {
	r := NewRun(smallPlan(t), Config{LostLimit: 1}, 1000)
	for _, step := range []struct {
		events []Event
		want   string
	}{
		{nil, "QUEUED"},
		{[]Event{Grant{0, 4, 2000}}, "RUNNING"},
		{[]Event{Started{Task: 0, Attempt: 1, At: 2001}}, ""},
		{[]Event{Finished{0, 1, true, 3000, 0, 0}, Finished{1, 1, false, 3000, 0, 0}, Lost{2, 1, 3001, 0, 0}}, "0:COMPLETED.1 1:RETRY.1 2:QUEUED.1"},
		{[]Event{Grant{0, 1, 3002}, Lost{2, 2, 3003, 0, 0}, Grant{0, 1, 3004}}, "2:QUEUED.2 2:ERRORED.2"},
		{[]Event{KillTask{3, 4000}, Finished{3, 1, true, 4001, 0, 0}}, "3:KILLED.1"},
		{[]Event{Pause{5000}, Resume{5000}}, "PAUSED RUNNING"},
		{[]Event{Revoked{4, 1, 5001}, Kill{6000}}, "4:QUEUED.0 KILLED"},
		{[]Event{Restart{7000}, Grant{0, 9, 7001}}, "QUEUED RUNNING 1:QUEUED.2 2:QUEUED.3 3:QUEUED.2"},
		{[]Event{Finished{1, 2, true, 7002, 0, 0}, Finished{4, 1, true, 7003, 0, 0}}, "1:COMPLETED.2 4:COMPLETED.1"},
	} {
		for _, e := range step.events {
			r.Apply(e)
		}
		batch := r.TakeRecords(nil)
		if batch == nil && step.want == "" {
			continue
		}
		if got := words(t, batch, r.plan.Tasks); got != step.want {
			t.Errorf("%+v\n got %s\nwant %s", step.events, got, step.want)
		}
		for n := range batch {
			_ = Transitions(batch[:n], r.plan.Tasks, func(Transition) {}) // a part is an error or a shorter batch
		}
	}
	for _, bad := range []string{"", "\x03", "\x02\x1a\x00\x00", "\x01\x04", "\x01\x14\x24", "\x01\x0f\x00", "\x01\x31\x02\x05"} {
		if err := Transitions([]byte(bad), 5, func(Transition) {}); err == nil && bad != "" && bad != "\x01" {
			t.Errorf("%q is taken", bad)
		}
	}
}

// FuzzTransitions: whatever the bytes are, no task is out of range.
func FuzzTransitions(f *testing.F) {
	r := NewRun(smallPlan(f), Config{}, 1000)
	r.Apply(Grant{0, 4, 2000})
	r.Apply(Finished{1, 1, false, 3000, 0, 0})
	f.Add(r.TakeRecords(nil))
	f.Fuzz(func(t *testing.T, batch []byte) {
		_ = Transitions(batch, 6, func(tr Transition) {
			if tr.Task >= 6 {
				t.Errorf("task %d", tr.Task)
			}
		})
	})
}
