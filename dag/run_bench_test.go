package dag

import (
	"strconv"
	"testing"
)

// fanSpec is a -> b (n tasks) -> c.
func fanSpec(n int) *Spec {
	values := make([]string, n)
	for i := range values {
		values[i] = strconv.Itoa(i)
	}
	return &Spec{
		Parameters: []Parameter{{Name: "N", List: true, Values: values}},
		Tasks: []TaskSpec{
			{Name: "a", Job: Job{Command: []string{"a"}}},
			{Name: "b", Job: Job{Command: []string{"b", "{{N}}"}}, Parents: []EdgeSpec{{Task: "a"}}},
			{Name: "c", Job: Job{Command: []string{"c"}}, Parents: []EdgeSpec{{Task: "b"}}},
		},
	}
}

func mustPlan(t testing.TB, s *Spec) *Plan {
	t.Helper()
	p, problems := NewPlan(s, Limits{})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	return p
}

// finishFirst grants and finishes the first task.
func finishFirst(r *Run) {
	r.Init()
	r.Apply(Grant{Class: 0, N: 1, At: 1})
	r.Apply(Finished{Task: 0, Attempt: 1, OK: true, At: 2})
}

// BenchmarkRun is a fan of 1,000,000 tasks, granted by 64, one at a time
// finished, records taken each 64.
func BenchmarkRun(b *testing.B) {
	p := mustPlan(b, fanSpec(1_000_000))
	var r *Run
	records := make([]byte, 0, 1<<16)
	bytes, left := 0, 0
	b.ReportAllocs()
	for b.Loop() {
		if left < 64 {
			b.StopTimer()
			r = NewRun(p, Config{}, 1_700_000_000_000_000_000)
			finishFirst(r)
			left = 1_000_000
			b.StartTimer()
		}
		at := 1_700_000_000_000_000_000 + int64(1_000_000-left)*3000
		effects := r.Apply(Grant{Class: 0, N: 64, At: at})
		first, ok := effects[0].(Start)
		if !ok {
			b.Fatal(effects[0])
		}
		for i := range uint32(64) {
			r.Apply(Finished{Task: first.Task + i, Attempt: 1, OK: true, At: at + int64(i)*3000})
		}
		left -= 64
		records = r.TakeRecords(records[:0])
		bytes += len(records)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/64, "ns/task")
	b.ReportMetric(float64(bytes)/float64(b.N)/64, "recordB/task")
}

// BenchmarkNewRun is the acceptance of 1,000,000 tasks.
func BenchmarkNewRun(b *testing.B) {
	p := mustPlan(b, fanSpec(1_000_000))
	b.ReportAllocs()
	for b.Loop() {
		NewRun(p, Config{}, 1).Init()
	}
}

// BenchmarkRecover is a run of 1,000,000 tasks, half done, back from its records.
func BenchmarkRecover(b *testing.B) {
	p := mustPlan(b, fanSpec(1_000_000))
	r := NewRun(p, Config{}, 1)
	finishFirst(r)
	for range 500_000 / 64 {
		for _, e := range append([]Effect(nil), r.Apply(Grant{Class: 0, N: 64, At: 3})...) {
			if s, ok := e.(Start); ok {
				r.Apply(Finished{Task: s.Task, Attempt: 1, OK: true, At: 4})
			}
		}
	}
	records := [][]byte{r.TakeRecords(nil)}
	header := r.AppendHeader(nil)
	chunks := make([][]byte, (p.Tasks+ChunkTasks-1)/ChunkTasks)
	for i := range chunks {
		chunks[i] = r.AppendChunk(nil, uint32(i))
	}
	b.Run("records", func(b *testing.B) {
		for b.Loop() {
			if _, err := Recover(p, Config{}, nil, nil, records); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("snapshot", func(b *testing.B) {
		for b.Loop() {
			if _, err := Recover(p, Config{}, header, func(i uint32) []byte { return chunks[i] }, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
}
