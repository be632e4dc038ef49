package commitlog_test

import (
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/persistence/commitlog"
	"golang.org/x/sys/unix"
)

// BenchmarkAppend is the floor of a commit: one record of 200 bytes, appended and synced.
func BenchmarkAppend(b *testing.B) {
	l, err := commitlog.Open(filepath.Join(b.TempDir(), "log"), commitlog.Options{SegmentSize: 16 << 20, MaxRowsBytes: 1 << 20})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close(false)
	contents(b, l)
	var g commitlog.RecordBuilder
	value := make([]byte, 180)
	var took []time.Duration
	var before, after unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &before)
	b.ResetTimer()
	for i := range b.N {
		begin := time.Now()
		g.Reset()
		g.Set([]byte("a key"), value)
		if err := l.Append(uint64(i+1), &g); err != nil {
			b.Fatal(err)
		}
		if err := l.Sync(); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(begin))
	}
	b.StopTimer()
	_ = unix.Getrusage(unix.RUSAGE_SELF, &after)
	slices.Sort(took)
	cpu := unix.TimevalToNsec(after.Utime) + unix.TimevalToNsec(after.Stime) - unix.TimevalToNsec(before.Utime) - unix.TimevalToNsec(before.Stime)
	b.ReportMetric(float64(cpu)/1000/float64(b.N), "cpu-us/op")
	b.ReportMetric(float64(took[len(took)/10].Microseconds()), "p10-us")
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-us")
}
