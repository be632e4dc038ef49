package dag

import (
	"encoding/hex"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
)

// smallPlan is a_0 … a_4 (one retry after 1 s) -> b.
func smallPlan(t testing.TB) *Plan {
	return mustPlan(t, &Spec{
		Parameters: []Parameter{{Name: "N", List: true, Values: []string{"1", "2", "3", "4", "5"}}},
		Tasks: []TaskSpec{
			{Name: "a", Job: Job{Command: []string{"a", "{{N}}"}}, Retry: RetryPolicy{MaxRetries: 1, Interval: time.Second}},
			{Name: "b", Job: Job{Command: []string{"b"}}, Parents: []EdgeSpec{{Task: "a"}}},
		},
	})
}

// TestRecordBytes fixes the format of versions 1 and 2: what is on disk must be read
// by every later build. A change here is a new version.
func TestRecordBytes(t *testing.T) {
	const t0 = 1_700_000_000_000_000_000
	r := NewRun(smallPlan(t), Config{LostLimit: 1}, t0)
	for _, step := range []struct {
		what  string
		event Event // nil: the beginning
		want  string
	}{
		{"QUEUED, change 0", nil, "01 38 8080d0e2c6bfce972f 00 00"},
		{"RUNNING, change 1, a microsecond later; [0, 4) granted", Grant{0, 4, t0 + 1000}, "01 38 d08fd0e2c6bfce972f 01 01 11 03"},
		{"started: no record", Started{Task: 0, Attempt: 1, At: t0 + 1001}, ""},
		{"0 completed; times of a: from 999 ns before to now", Finished{0, 1, true, t0 + 2000, 0, 0}, "02 34 a09fd0e2c6bfce972f 1a 00 03 cd0f 00"},
		{"1 in retry: one failure, due in a second", Finished{1, 1, false, t0 + 2000, 0, 0}, "01 a3 a09fd0e2c6bfce972f 02 01 00 02 8094ebdc03"},
		{"2 queued: one attempt lost", Lost{2, 1, t0 + 2000, 0, 0}, "01 a2 a09fd0e2c6bfce972f 04 00 01"},
		{"2 granted, attempt 2", Grant{0, 1, t0 + 2000}, "01 61 a09fd0e2c6bfce972f 04 02 00"},
		{"2 errored, attempt 2", Lost{2, 2, t0 + 2000, 0, 0}, "01 65 a09fd0e2c6bfce972f 04 02"},
		{"3 is to be killed", KillTask{3, t0 + 2000}, "01 27 a09fd0e2c6bfce972f 06"},
		{"PAUSED, change 2", Pause{t0 + 3000}, "01 38 f0aed0e2c6bfce972f 02 02"},
		{"RUNNING, change 3: a moment after change 2", Resume{t0 + 3000}, "01 38 f2aed0e2c6bfce972f 03 01"},
		{"1 queued: one failure", RetryDue{1, 1, t0 + 2_000_000_000}, "01 a2 80d0fcd5d5bfce972f 02 01 00"},
		{"the run is to be killed", Kill{t0 + 2_000_000_000}, "01 39 80d0fcd5d5bfce972f"},
		{"3 killed; KILLED, change 4; a's newest end", Finished{3, 1, true, t0 + 2_000_000_000, 0, 0}, "02 26 80d0fcd5d5bfce972f 06 18 04 05 1a 00 02 00"},
		{"QUEUED, change 5: a restart", Restart{t0 + 2_000_000_000}, "01 38 82d0fcd5d5bfce972f 05 00"},
		{"RUNNING; 2, 4 (first attempt), 1 and 3 (second) granted", Grant{0, 9, t0 + 2_000_000_000}, ""},
	} {
		if step.event != nil {
			r.Apply(step.event)
			r.CheckInvariants()
		}
		if step.want == "" && !strings.Contains(step.what, "no record") {
			continue
		}
		if dirty := step.want != ""; r.HasRecords() != dirty {
			t.Errorf("%s: HasRecords() = %v", step.what, !dirty)
		}
		want := strings.ReplaceAll(step.want, " ", "")
		if got := hex.EncodeToString(r.TakeRecords(nil)); got != want {
			t.Errorf("%s: %s, want %s", step.what, got, want)
		}
		if r.HasRecords() || r.TakeRecords(nil) != nil {
			t.Errorf("%s: records are given twice", step.what)
		}
	}
}

// TestNeighbouringGrantsAreOneRecord: neighbours that are granted at one moment are one record, and
// only those.
func TestNeighbouringGrantsAreOneRecord(t *testing.T) {
	r := NewRun(mustPlan(t, fanSpec(10)), Config{}, 0)
	finishFirst(r)
	r.TakeRecords(nil)
	for _, at := range []int64{3, 3, 4} {
		r.Apply(Grant{0, 2, at})
	}
	// [1, 5) at 3, [5, 7) a nanosecond later
	if got, want := hex.EncodeToString(r.TakeRecords(nil)), "01"+"21060203"+"310201"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestRecordSize: attempts that end in order cost a few bytes each, a grant of
// neighbours one record.
func TestRecordSize(t *testing.T) {
	const n = 10_000
	r := NewRun(mustPlan(t, fanSpec(n)), Config{}, 1)
	finishFirst(r)
	r.TakeRecords(nil)
	at := int64(1_700_000_000_000_000_000)
	r.Apply(Grant{Class: 0, N: n, At: at})
	if got := len(r.TakeRecords(nil)); got > 16 {
		t.Errorf("a grant of %d tasks takes %d bytes", n, got)
	}
	for i := range uint32(n) {
		at += 50_000
		r.Apply(Finished{Task: 1 + i, Attempt: 1, OK: true, At: at})
	}
	if got := len(r.TakeRecords(nil)); got > 5*n {
		t.Errorf("%d ends take %d bytes", n, got)
	}
}

// TestSnapshotBytes fixes the format of headers and chunks.
func TestSnapshotBytes(t *testing.T) {
	r := NewRun(smallPlan(t), Config{}, 1000)
	r.Apply(Grant{0, 4, 2000})
	r.Apply(Started{Task: 0, Attempt: 1, At: 2500})
	r.Apply(Finished{1, 1, false, 3000, 0, 0})
	r.Apply(Lost{2, 1, 3000, 0, 0})
	r.Apply(KillTask{3, 4000})
	r.Apply(Pause{5000})
	// version, 6 tasks, last update, not killing, 3 changes (state, time), 2 retry states
	// (task, failures, lost, wait, time)
	header := "01 06 904e 00 03 00d00f 01d00f 02f02e 02 01 01 00 03 e088d6b907 00 00 01 00 00"
	if got := hex.EncodeToString(r.AppendHeader(nil)); got != strings.ReplaceAll(header, " ", "") {
		t.Errorf("header %s, want %s", got, header)
	}
	// version, 6 tasks, states (GRANTED, RETRY, QUEUED, GRANTED and to be killed,
	// 2 QUEUED), attempts (4 with one, 2 with none), times (the first template: both,
	// 2500 and 500 more)
	chunk := "02 06 0100 0300 0000 8100 0001 0103 0001 01 00 03 8827 f02e"
	if got := hex.EncodeToString(r.AppendChunk(nil, 0)); got != strings.ReplaceAll(chunk, " ", "") {
		t.Errorf("chunk %s, want %s", got, chunk)
	}
	uniform := NewRun(mustPlan(t, fanSpec(5000)), Config{}, 0).AppendChunk(nil, 1)
	if got := hex.EncodeToString(uniform); got != "01800800ff0700ff07" {
		t.Errorf("1,024 QUEUED tasks are %s", got)
	}
}

func TestDirtyChunks(t *testing.T) {
	r := NewRun(mustPlan(t, fanSpec(5000)), Config{}, 0)
	if got := r.DirtyChunks(0); len(got) != 0 {
		t.Errorf("at first %v", got)
	}
	finishFirst(r)
	r.Apply(Grant{Class: 0, N: 3000, At: 3})
	if got := r.DirtyChunks(0); len(got) != 3 || got[0] != 0 || got[2] != 2 {
		t.Errorf("after 3,000 tasks %v", got)
	}
	if got := r.DirtyChunks(2); len(got) != 2 || got[1] != 1 {
		t.Errorf("two of them: %v", got)
	}
	r.ClearDirty(0)
	r.ClearDirty(2)
	if got := r.DirtyChunks(9); len(got) != 1 || got[0] != 1 {
		t.Errorf("after two were taken %v", got)
	}
	r.Apply(Started{Task: 2500, Attempt: 1, At: 4})
	if got := r.DirtyChunks(0); len(got) != 1 {
		t.Errorf("after a start, which is not stored: %v", got)
	}
	r.Apply(KillTask{Task: 2500, At: 4})
	if got := r.DirtyChunks(0); len(got) != 2 || got[1] != 2 {
		t.Errorf("after a kill that is not done %v", got)
	}
	if got := panicText(t, func() { r.AppendChunk(nil, 5) }); got != "run: chunk 5 of 5002 tasks" {
		t.Error(got)
	}
}

// TestDamagedStorageIsAnError: what cannot be read is an error that says where; nothing panics.
func TestDamagedStorageIsAnError(t *testing.T) {
	p := smallPlan(t)
	r := NewRun(p, Config{}, 1000)
	first := r.TakeRecords(nil)
	r.Apply(Grant{0, 1, 2000})
	second := r.TakeRecords(nil)
	header, chunk := r.AppendHeader(nil), r.AppendChunk(nil, 0)
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, c := range []struct {
		want          string
		header, chunk []byte
		records       [][]byte
	}{
		{"the record of the run's first state is missing", nil, nil, nil},
		{"snapshot header: offset 0: version is missing", []byte{}, nil, nil},
		{"snapshot header: offset 1: version 9 is not known, this build reads up to 1", unhex("09"), nil, nil},
		{"snapshot header: offset 1: number of tasks is 7, at most 6 is possible", unhex("01 07"), nil, nil},
		{"snapshot header: offset 4: number of changes is missing or not a varint", unhex("01 06 00 00"), nil, nil},
		{"snapshot header: offset 7: run state 6 is not known", unhex("01 06 00 00 01 0600"), nil, nil},
		{"snapshot header: offset 6: time is missing or not a varint", unhex("01 06 00 00 01 01"), nil, nil},
		{"snapshot header: offset 9: task 6 of 6", unhex("01 06 00 00 01 0000 01 06"), nil, nil},
		{"snapshot header: offset 13: wait 4 is not known", unhex("01 06 00 00 01 0000 01 00 00 00 04 00"), nil, nil},
		{"snapshot header: offset 8: 1 bytes too many", unhex("01 06 00 00 01 0000 00 00"), nil, nil},
		{"snapshot chunk 0: offset 1: version 3 is not known, this build reads up to 2", header, unhex("03"), nil},
		{"snapshot chunk 0: offset 8: template 2 does not begin in the chunk", header, unhex("02 06 0005 0005 01 02"), nil},
		{"snapshot chunk 0: offset 9: times 4 are not known", header, unhex("02 06 0005 0005 01 00 04"), nil},
		{"snapshot chunk 0: offset 1: number of tasks is 7, at most 6 is possible", header, unhex("01 07"), nil},
		{"snapshot chunk 0: offset 3: task state 0x2 is not known", header, unhex("01 06 02"), nil},
		{"snapshot chunk 0: offset 3: task state 0x80 is not known", header, unhex("01 06 80"), nil},
		{"snapshot chunk 0: offset 3: run of states is 6, at most 5 is possible", header, unhex("01 06 00 06"), nil},
		{"snapshot chunk 0: offset 5: run of attempts is 6, at most 5 is possible", header, unhex("01 06 00 05 00 06"), nil},
		{"snapshot chunk 0: offset 4: attempts is missing or not a varint", header, unhex("01 06 00 05"), nil},
		{"snapshot chunk 0: offset 6: 1 bytes too many", header, unhex("01 06 00 05 00 05 00"), nil},
		{"records 1: offset 0: version is missing", nil, nil, [][]byte{first, {}}},
		{"records 1: offset 1: version 3 is not known, this build reads up to 2", nil, nil, [][]byte{first, {3}}},
		{"records 1: offset 2: template is 2, at most 1 is possible", nil, nil, [][]byte{first, unhex("02 1a 02")}},
		{"records 1: offset 4: times 0 are not known", nil, nil, [][]byte{first, unhex("02 1a 01 00")}},
		{"records 1: offset 5: times from 0 to -1", nil, nil, [][]byte{first, unhex("02 1a 01 02 01")}},
		{"snapshot chunk 0: offset 7: 2 bytes too many", header, unhex("02 06 0005 0005 00 0000"), nil},
		{"records 1: offset 2: time is missing or not a varint", nil, nil, [][]byte{first, unhex("01 38")}},
		{"records 1: offset 2: record kind 0 is not known", nil, nil, [][]byte{first, unhex("01 10")}},
		{"records 1: offset 1: task 6 of 6", nil, nil, [][]byte{first, unhex("01 04 0c")}},
		{"records 1: offset 1: task -1 of 6", nil, nil, [][]byte{first, unhex("01 04 01")}},
		{"records 1: offset 2: tasks is 6, at most 5 is possible", nil, nil, [][]byte{first, unhex("01 11 06")}},
		{"records 1: offset 5: wait 0 is not known", nil, nil, [][]byte{first, unhex("01 93 01 00 00")}},
		{"records 1: offset 2: number of the change is 2, at most 1 is possible", nil, nil, [][]byte{first, unhex("01 18 02 01")}},
		{"records 1: offset 4: run state 6 is not known", nil, nil, [][]byte{first, unhex("01 18 01 06")}},
		{"task 0 is GRANTED without an attempt", nil, nil, [][]byte{first, unhex("01 51 00 00")}},
		{"task 5 had an attempt, but it waits for 1 parents", nil, nil, [][]byte{first, unhex("01 01 0a 00")}},
		{"task 0 is in RETRY without a wait kind", header, unhex("01 06 0300 0004 0100 0004"), nil},
		{"task 0 waits for its retry, but it is QUEUED", unhex("01 06 00 00 01 0000 01 00 01 00 02 00"), nil, nil},
		{"the run is COMPLETED with 1 live and 4 ready tasks and 0 in RETRY", nil, nil, [][]byte{first, second, unhex("01 18 02 03")}},
		{"the run is QUEUED with 0 live and 0 ready tasks and 0 in RETRY", nil, nil, [][]byte{first, unhex("01 5600 5600 5600 5600 5600 5600")}},
		{"the run is QUEUED with 0 live and 5 ready tasks and 0 in RETRY", nil, nil, [][]byte{first, unhex("01 19")}},
	} {
		_, err := Recover(p, Config{}, c.header, func(uint32) []byte { return c.chunk }, c.records)
		if err == nil || err.Error() != c.want {
			t.Errorf("error %v\n want %s", err, c.want)
		}
	}
	for name, whole := range map[string][]byte{"header": header, "chunk": chunk} {
		for n := 1; n < len(whole); n++ {
			h, c := header, chunk
			if name == "header" {
				h = whole[:n]
			} else {
				c = whole[:n]
			}
			if _, err := Recover(p, Config{}, h, func(uint32) []byte { return c }, nil); err == nil {
				t.Errorf("%s of %d bytes instead of %d: no error", name, n, len(whole))
			}
		}
	}
	if _, err := Recover(p, Config{}, header, func(uint32) []byte { return chunk }, nil); err != nil {
		t.Error(err)
	}
}

// TestLargestNumbersAreStored: the greatest numbers go through records, header and chunk.
func TestLargestNumbersAreStored(t *testing.T) {
	p := mustPlan(t, &Spec{Tasks: []TaskSpec{{Name: "a", Job: Job{Command: []string{"a"}},
		Retry: RetryPolicy{MaxRetries: math.MaxUint32, Interval: math.MaxInt64}}}})
	r := NewRun(p, Config{LostLimit: math.MaxUint32}, math.MaxInt64-1)
	r.attempts[0] = math.MaxInt32 - 1
	r.templates[0].startedTasks = 1
	r.retries[0] = retryState{failures: math.MaxInt32 - 1, lost: math.MaxInt32}
	r.Apply(Grant{0, 1, math.MaxInt64})
	r.Apply(Finished{0, math.MaxInt32, false, math.MaxInt64, 0, 0})
	records := [][]byte{r.TakeRecords(nil)}
	again, err := Recover(p, r.config, nil, nil, records)
	if err != nil {
		t.Fatal(err)
	}
	mustMatch(t, again, r)
	again, err = Recover(p, r.config, r.AppendHeader(nil), func(uint32) []byte { return r.AppendChunk(nil, 0) }, nil)
	if err != nil {
		t.Fatal(err)
	}
	mustMatch(t, again, r)
}

// FuzzRecover: nothing that is read from storage may panic, nor what is done with
// the run that came of it.
func FuzzRecover(f *testing.F) {
	p := smallPlan(f)
	r := NewRun(p, Config{}, 1000)
	first := r.TakeRecords(nil)
	r.Apply(Grant{0, 4, 2000})
	r.Apply(Finished{1, 1, false, 3000, 0, 0})
	r.Apply(Lost{2, 1, 3000, 0, 0})
	r.Apply(KillTask{3, 4000})
	r.Apply(Pause{5000})
	f.Add(true, r.AppendHeader(nil), r.AppendChunk(nil, 0), []byte{})
	f.Add(false, []byte{}, []byte{}, append(first, r.TakeRecords(nil)[1:]...))
	r.Apply(Kill{5000})
	f.Add(true, r.AppendHeader(nil), r.AppendChunk(nil, 0), r.TakeRecords(nil))
	f.Fuzz(func(t *testing.T, snapshot bool, header, chunk, records []byte) {
		if !snapshot {
			header = nil
		}
		r, err := Recover(p, Config{}, header, func(uint32) []byte { return chunk }, [][]byte{first, records})
		if err != nil {
			return
		}
		again, err := Recover(p, Config{}, r.AppendHeader(nil), func(i uint32) []byte { return r.AppendChunk(nil, i) }, nil)
		if err != nil {
			t.Fatal(err)
		}
		if g, w := string(fingerprint(again)), string(fingerprint(r)); g != w {
			t.Fatalf("once more:\n%s\nwas:\n%s", g, w)
		}
		finishAll(r)
		if !r.State().Final() {
			t.Fatalf("the run does not end: %s", r.State())
		}
	})
}

// finishAll lets everything that is left succeed.
func finishAll(r *Run) {
	r.Init()
	if r.Allowed(RunRunning) == nil {
		r.Apply(Resume{At: r.lastUpdate})
	}
	for range 100 {
		for class := range r.classes {
			r.Apply(Grant{class, 9, r.lastUpdate})
		}
		r.EachLiveTask(func(task, attempt uint32, _ TaskState) { r.Apply(Finished{task, attempt, true, r.lastUpdate, 0, 0}) })
		for _, task := range r.tasksInRetry(waitDue) {
			r.Apply(RetryDue{task, r.attempts[task], math.MaxInt64})
		}
	}
}

// TestGrantTimesAfterRecovery: a recovered run knows when what is live was granted, from the records
// that it has; what they do not reach is as old as the run.
func TestGrantTimesAfterRecovery(t *testing.T) {
	r := NewRun(smallPlan(t), Config{}, 7)
	var records [][]byte
	apply := func(e Event) {
		r.Apply(e)
		records = append(records, r.TakeRecords(nil))
	}
	apply(Grant{0, 3, 10})
	apply(Grant{0, 1, 20})
	apply(Lost{0, 1, 30, 0, 0})
	apply(Finished{1, 1, true, 35, 0, 0})
	apply(Grant{0, 1, 40}) // 0 again
	for what, c := range map[string]struct {
		from int
		want [4]int64
	}{"all records": {0, [4]int64{40, 7, 10, 20}}, "from the second on": {1, [4]int64{40, 7, 7, 20}}} {
		var header []byte
		chunk := func(uint32) []byte { return nil }
		if c.from > 0 {
			header, chunk = r.AppendHeader(nil), func(i uint32) []byte { return r.AppendChunk(nil, i) }
		}
		got, err := Recover(r.Plan(), Config{}, header, chunk, records[c.from:])
		if err != nil {
			t.Fatal(err)
		}
		for task, want := range c.want {
			if at := got.GrantedAt(uint32(task)); at != want {
				t.Errorf("%s: task %d was granted at %d, want %d", what, task, at, want)
			}
		}
	}
}

// transitionWords are the transitions of a batch as text: "3:RETRY.1" is task 3 after one
// attempt, "RUNNING" the run.
func transitionWords(t *testing.T, batch []byte, tasks uint32) string {
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
		if got := transitionWords(t, batch, r.plan.Tasks); got != step.want {
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
