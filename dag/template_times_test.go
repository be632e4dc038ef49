package dag

import (
	"encoding/hex"
	"strings"
	"testing"
)

// mustRecover is r after everything of it was written, by chunks or by records.
func mustRecover(t *testing.T, r *Run, header []byte, chunks bool, records ...[]byte) *Run {
	t.Helper()
	chunk := func(uint32) []byte { return nil }
	if chunks {
		chunk = func(i uint32) []byte { return r.AppendChunk(nil, i) }
	}
	again, err := Recover(r.plan, Config{}, header, chunk, records)
	if err != nil {
		t.Fatal(err)
	}
	again.CheckInvariants()
	return again
}

// TestTemplateTimes: of a template the first start and the newest end, whatever order the
// attempts are told of in, by records and by chunks alike.
func TestTemplateTimes(t *testing.T) {
	r := NewRun(smallPlan(t), Config{}, 1000)
	records := [][]byte{r.TakeRecords(nil)}
	step := func(what string, want Times, events ...Event) {
		t.Helper()
		for _, e := range events {
			r.Apply(e)
		}
		if got := r.Times(0); got != want {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
		if batch := r.TakeRecords(nil); batch != nil {
			records = append(records, batch)
		}
	}
	step("granted", Times{}, Grant{0, 4, 2000})
	step("started", Times{2100, 0}, Started{Task: 0, Attempt: 1, At: 2100})
	step("another one, earlier", Times{2050, 0}, Started{Task: 1, Attempt: 1, At: 2101, Start: 2050})
	step("ended, told late", Times{2050, 2500}, Finished{0, 1, true, 3000, 2100, 2500})
	step("ended before that", Times{2050, 2500}, Finished{1, 1, true, 3001, 2050, 2400})
	step("started before all", Times{2010, 2600}, Finished{2, 1, false, 3002, 2010, 2600})
	step("lost, without times", Times{2010, 3003}, Lost{3, 1, 3003, 0, 0})
	step("a stale end", Times{2010, 3003}, Finished{0, 1, true, 9000, 1, 9000})
	if got := r.Times(1); got != (Times{}) {
		t.Errorf("b: %v", got)
	}
	if got := mustRecover(t, r, nil, false, records...).Times(0); got != (Times{2010, 3003}) {
		t.Errorf("by records: %v", got)
	}
	if got := mustRecover(t, r, r.AppendHeader(nil), true).Times(0); got != (Times{2010, 3003}) {
		t.Errorf("by chunks: %v", got)
	}
	if got := mustRecover(t, r, r.AppendHeader(nil), true, records[2:]...).Times(0); got != (Times{2010, 3003}) {
		t.Errorf("by chunks that are newer than the records: %v", got)
	}
}

// TestTimesOfManyTemplates: each chunk holds those that begin in it.
func TestTimesOfManyTemplates(t *testing.T) {
	s := &Spec{}
	for i := range 2500 {
		s.Tasks = append(s.Tasks, TaskSpec{Name: strings.Repeat("t", i+1), Job: Job{Command: []string{"t"}}})
	}
	r := NewRun(mustPlan(t, s), Config{}, 1)
	r.Apply(Grant{0, 2500, 10})
	for task := uint32(0); task < 2500; task += 7 {
		r.Apply(Finished{task, 1, true, int64(10 * task), int64(task) + 20, int64(3*task) + 50})
	}
	r.TakeRecords(nil)
	again := mustRecover(t, r, r.AppendHeader(nil), true)
	for i := range 2500 {
		want := Times{}
		if i%7 == 0 {
			want = Times{int64(i) + 20, int64(3*i) + 50}
		}
		if got := again.Times(i); got != want {
			t.Fatalf("template %d: %v, want %v", i, got, want)
		}
	}
}

// TestTimesOfVersion1: what was written by a build that kept no times is read. Where
// ends are missing nothing is said, also later; all else is complete.
func TestTimesOfVersion1(t *testing.T) {
	var records [][]byte
	for _, batch := range []string{"01 38 d00f 00 00", "01 38 a01f 01 01 11 03", "01 34 f02e"} { // a_0 has ended at 3000
		b, err := hex.DecodeString(strings.ReplaceAll(batch, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, b)
	}
	r := mustRecover(t, NewRun(smallPlan(t), Config{}, 1000), nil, false, records...)
	if r.TaskState(0) != TaskCompleted || r.TaskState(1) != TaskGranted {
		t.Fatalf("%s, %s", r.TaskState(0), r.TaskState(1))
	}
	for task := range uint32(4) {
		r.Apply(Finished{task, 1, true, 5000, 4000, 5000})
	}
	r.Apply(Grant{0, 1, 6000})
	r.Apply(Finished{4, 1, true, 7000, 6000, 7000})
	r.Apply(Grant{0, 1, 8000})
	r.Apply(Finished{5, 1, true, 9000, 8000, 9000})
	records = append(records, r.TakeRecords(nil))
	for _, r := range []*Run{r, mustRecover(t, r, nil, false, records...), mustRecover(t, r, r.AppendHeader(nil), true)} {
		if a, b := r.Times(0), r.Times(1); a != (Times{}) || b != (Times{8000, 9000}) {
			t.Errorf("a %v, b %v", a, b)
		}
	}
	granted := mustRecover(t, NewRun(smallPlan(t), Config{}, 1000), nil, false, records[:2]...)
	granted.Apply(Finished{0, 1, true, 5000, 2500, 3000})
	if got := granted.Times(0); got != (Times{2500, 3000}) {
		t.Errorf("nothing had ended: %v", got)
	}
}

// A start that is told late, as after a crash, is a change of now: by its time readers
// find it who have heard of everything before.
func TestLateStart(t *testing.T) {
	r := NewRun(smallPlan(t), Config{}, 1000)
	for _, e := range []Event{Grant{0, 1, 2000}, Pause{3000}, Restart{4000}, Started{Task: 0, Attempt: 1, At: 9000, Start: 2100}} {
		r.Apply(e)
	}
	changes := r.StateChanges()
	if c := changes[len(changes)-1]; c != (StateChange{9000, RunRunning}) || r.LastUpdate() != 9000 {
		t.Errorf("changes %v, last update %d", changes, r.LastUpdate())
	}
	if got := r.Times(0); got != (Times{First: 2100}) {
		t.Errorf("the attempt ran %v", got)
	}
}
