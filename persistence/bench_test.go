package persistence

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence/badgerguard"
	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sys/unix"
)

const exampleSpec = `{"tag":"mediumtest","parameters":{"JOBNO":["1","2"]},"tasks":{"simple":{"job":{"command":["/usr/bin/python3","script.py","{{JOBNO}}"],"cores":"1","memoryMB":"100"}}}}`

// submitters is how many goroutines submit at once, as W3 has connections.
const submitters = 64

// inParallel runs b.N operations on 64 goroutines.
func inParallel(b *testing.B, op func(i int64)) {
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ReportAllocs()
	b.ResetTimer()
	for range submitters {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(b.N); i = next.Add(1) - 1 {
				op(i)
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "submissions/s")
}

// BenchmarkSubmit is W3's share of storage: durable submissions of the seed's
// example by 64 callers.
func BenchmarkSubmit(b *testing.B) {
	for _, mem := range []int64{4, 16, 32, 64} {
		b.Run(fmt.Sprintf("memtable=%dMiB", mem), func(b *testing.B) {
			s, err := OpenStore(Config{Dir: b.TempDir(), memTable: mem << 20})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			inParallel(b, func(i int64) {
				done := make(chan error, 1)
				now := time.Now().UnixNano()
				s.Append(&Batch{
					Run:     messages.RunID(i),
					Create:  &Creation{Definition: []byte(exampleSpec)},
					Summary: &messages.Summary{ID: messages.RunID(i), Tag: "mediumtest", State: dag.RunQueued, Start: now, LastUpdate: now, Tasks: 2, Counts: messages.Counts{2}},
					Seq:     1, Records: []byte("0123456789"),
					Done: func(err error) { done <- err },
				})
				if err := <-done; err != nil {
					b.Error(err)
				}
			})
		})
	}
}

// BenchmarkRawBadger is Badger alone, without the commit log and so without a sync: 64 callers, one
// transaction per drained group, one row of the spec's size each and nothing else.
func BenchmarkRawBadger(b *testing.B) {
	db, err := badger.Open(badgerguard.Options(b.TempDir(), 32<<20).WithLogger(nil))
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	type write struct {
		key  []byte
		done chan error
	}
	ch := make(chan write, submitters)
	go func() {
		for w := range ch {
			group := []write{w}
			for len(ch) > 0 {
				group = append(group, <-ch)
			}
			txn := db.NewTransaction(true)
			for _, w := range group {
				_ = txn.Set(w.key, []byte(exampleSpec))
			}
			err := txn.Commit()
			for _, w := range group {
				w.done <- err
			}
		}
	}()
	inParallel(b, func(i int64) {
		done := make(chan error, 1)
		ch <- write{fmt.Appendf(nil, "%09d", i), done}
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
	close(ch)
}

// BenchmarkFdatasync is the floor: one synced append of 64 specs at a time.
func BenchmarkFdatasync(b *testing.B) {
	f, err := os.Create(filepath.Join(b.TempDir(), "f"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, submitters*(len(exampleSpec)+100))
	b.ResetTimer()
	for range b.N {
		if _, err := f.Write(buf); err != nil {
			b.Fatal(err)
		}
		if err := datasync(f); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*submitters/b.Elapsed().Seconds(), "submissions/s")
}

// BenchmarkListPage reads a page of 100 runs, all of which are finished, of 100,000: each
// has left a deleted row among those of unfinished ones. The reference is the same page of
// rows by Badger alone.
func BenchmarkListPage(b *testing.B) {
	const runs, rows = 100_000, 100
	s, err := OpenStore(Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	done := make(chan error, runs)
	for i := range messages.RunID(runs) {
		sum := &messages.Summary{ID: i, Tag: "mediumtest", State: dag.RunQueued, Tasks: 2, Counts: messages.Counts{2}}
		end := &messages.Summary{ID: i, Tag: "mediumtest", State: dag.RunCompleted, Tasks: 2}
		s.Append(&Batch{Run: i, Create: &Creation{Definition: []byte(exampleSpec)}, Summary: sum})
		s.Append(&Batch{Run: i, Summary: end, Done: func(err error) { done <- err }})
	}
	for range runs {
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
	b.Run("page", func(b *testing.B) {
		for i := range b.N {
			n := 0
			q := messages.ListQuery{All: true, Limit: rows, HasAfter: true, After: messages.RunID(i * 977 % (runs - 2*rows))}
			if err := s.Summaries(q, func(*messages.Summary) bool { n++; return true }); err != nil || n != rows {
				b.Fatalf("%d rows, %v", n, err)
			}
		}
	})
	b.Run("badger", func(b *testing.B) {
		for i := range b.N {
			n := 0
			err := s.scanRows([]byte{typeFinished}, runKey(typeFinished, messages.RunID(i*977%(runs-2*rows))), false, func(_ []byte, item *badger.Item) (bool, error) {
				n++
				return n < rows, item.Value(func([]byte) error { return nil })
			})
			if err != nil || n != rows {
				b.Fatalf("%d rows, %v", n, err)
			}
		}
	})
}

// BenchmarkChainedCommits is a durable hop of a chain, without the actors: one batch at a time,
// each of a journal record and an attempt.
func BenchmarkChainedCommits(b *testing.B) {
	s, err := OpenStore(Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	var took []time.Duration
	done := make(chan error, 1)
	var before, after unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &before)
	b.ResetTimer()
	for i := range b.N {
		begin := time.Now()
		s.Append(&Batch{Run: 1, Seq: uint64(i + 1), Records: []byte("0123456789"), Attempts: []messages.AttemptRecord{{Task: uint32(i), Attempt: 1, Start: 1e18, Stop: 1e18 + 5}},
			Done: func(err error) { done <- err }})
		if err := <-done; err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(begin))
	}
	b.StopTimer()
	_ = unix.Getrusage(unix.RUSAGE_SELF, &after)
	slices.Sort(took)
	cpu := time.Duration(unix.TimevalToNsec(after.Utime) + unix.TimevalToNsec(after.Stime) - unix.TimevalToNsec(before.Utime) - unix.TimevalToNsec(before.Stime))
	b.ReportMetric(float64(cpu.Microseconds())/float64(b.N), "cpu-us/op")
	b.ReportMetric(float64(took[len(took)/10].Microseconds()), "p10-us")
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-us")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-us")
}

func datasync(f *os.File) error { return unix.Fdatasync(int(f.Fd())) }
