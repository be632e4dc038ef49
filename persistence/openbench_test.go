package persistence_test

import (
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
	"github.com/caravan-dag/caravan/persistence/journaltest"
)

// BenchmarkOpenAfterKill opens a folder of 100,000 finished runs as a kill -9 leaves it: most
// of their rows lie in the commit log alone, and are applied again.
func BenchmarkOpenAfterKill(b *testing.B) {
	dir := b.TempDir()
	s, err := persistence.OpenBadger(persistence.Config{Dir: dir})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	const runs, together = 100_000, 1000
	for first := 0; first < runs; first += together {
		var batches []*persistence.Batch
		for i := range together {
			run := messages.RunID(first + i)
			created := journaltest.NewRun(run, "tag", `{"tag":"open","tasks":{"a":{"job":{"executor":"noop"}}}}`)
			ended := &persistence.Batch{Run: run, Seq: 1, Records: []byte("records"), Summary: journaltest.NewSummary(run, "tag", dag.RunCompleted),
				Attempts: []messages.AttemptRecord{{Task: 0, Attempt: 1}}}
			batches = append(batches, created, ended)
		}
		journaltest.MustAppend(b, s, batches...)
	}
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		left := copied(b, dir)
		b.StartTimer()
		s, err := persistence.OpenBadger(persistence.Config{Dir: left})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
