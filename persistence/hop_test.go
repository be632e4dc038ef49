package persistence

import (
	"slices"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/messages"
	"golang.org/x/sys/unix"
)

// BenchmarkHop is a durable hop of a chain, without the actors: one batch at a time,
// each of a journal record and an attempt.
func BenchmarkHop(b *testing.B) {
	s, err := OpenBadger(Config{Dir: b.TempDir()})
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
