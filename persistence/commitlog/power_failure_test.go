package commitlog_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/persistence/commitlog"
)

// TestPowerFailureInANewSegment: the power fails while the first record of a segment is being synced.
// The log opens with all that was acknowledged, also when the records before were retired at that
// time, and when the record is so long that the next segment was requested.
func TestPowerFailureInANewSegment(t *testing.T) {
	row := func(n uint64) *commitlog.RecordBuilder {
		g := new(commitlog.RecordBuilder)
		g.Reset()
		g.Set([]byte("key"), bytes.Repeat([]byte{byte(n)}, 11_000))
		return g
	}
	for last := uint64(0); last < 12; last += uint64(sample(3)) {
		for _, retired := range []bool{false, true} {
			t.Run(fmt.Sprint(last, retired), func(t *testing.T) {
				root := t.TempDir()
				disk, err := faults.NewDisk(root)
				must(t, err)
				dir := filepath.Join(root, "log")
				o := commitlog.Options{FS: disk, SegmentSize: 32 << 10, MaxRowsBytes: 12_000}
				l, err := commitlog.Open(dir, o)
				must(t, err)
				for n := range last {
					must(t, l.Append(n+1, row(n+1)))
					must(t, l.Sync())
				}
				must(t, l.Append(last+1, row(last+1)))
				if retired {
					must(t, l.Retire(last))
				}
				must(t, l.Close(false)) // waits for the segment that is being made
				for seed := range uint64(8 / sample(2)) {
					var rng *rand.Rand
					if seed > 0 {
						rng = rand.New(rand.NewPCG(seed, last))
					}
					after := t.TempDir()
					must(t, disk.PowerCut(after, rng))
					dir := filepath.Join(after, "log")
					o := o
					o.FS = nil
					end := last
					for range 2 {
						l, err := commitlog.Open(dir, o)
						if err != nil {
							t.Fatalf("seed %d: %v", seed, err)
						}
						next := l.Applied() + 1
						must(t, l.Replay(func(n uint64, b []byte) error {
							if n != next || !bytes.Equal(b, row(n).Bytes()) {
								t.Errorf("seed %d: record %d, expected %d", seed, n, next)
							}
							next++
							return nil
						}))
						if l.Last() != next-1 || l.Last() < end || l.Last() > end+1 {
							t.Errorf("seed %d: the log ends at %d, replay at %d; %d was acknowledged", seed, l.Last(), next-1, end)
						}
						for range 3 {
							must(t, l.Append(l.Last()+1, row(l.Last()+1)))
							must(t, l.Sync())
						}
						end = l.Last()
						must(t, l.Close(false))
					}
				}
			})
		}
	}
}

// TestPowerFailure cuts the power at each operation of a log's life. The synced records are there, and
// at most the one that was under way besides.
func TestPowerFailure(t *testing.T) {
	for seed := range uint64(3 / sample(3)) {
		root := t.TempDir()
		disk, err := faults.NewDisk(root)
		must(t, err)
		f := faults.New(disk)
		dir := filepath.Join(root, "log")
		rng := rand.New(rand.NewPCG(seed, 1))
		var acknowledged, applied atomic.Uint64
		cuts, torn := 0, 0
		var mu sync.Mutex // files are prepared by a goroutine of the log
		f.Add(faults.Rule{Do: func(c faults.Call) {
			switch c.Op {
			case faults.Write, faults.Sync, faults.SyncDir, faults.Rename, faults.Remove, faults.Create:
			default:
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if rng.IntN(3) != 0 {
				return
			}
			cuts++
			least := acknowledged.Load()
			source := rng
			if rng.IntN(3) == 0 {
				source = nil
			}
			left := filepath.Join(t.TempDir(), "left")
			must(t, disk.PowerCut(left, source))
			l, err := commitlog.Open(filepath.Join(left, "log"), small(nil))
			if err != nil {
				t.Errorf("seed %d, at %+v, %d acknowledged: %v", seed, c, least, err)
				return
			}
			defer l.Close(false)
			if l.Applied() > applied.Load() {
				t.Errorf("%d is applied, %d was", l.Applied(), applied.Load())
			}
			got := contents(t, l)
			want := numbers(l.Applied()+1, max(least, l.Last()))
			if !slices.Equal(got, want) || l.Last() > acknowledged.Load()+1 {
				t.Errorf("seed %d, at %+v: %v, want up to %d", seed, c, got, least)
			}
			if l.Last() > least {
				torn++
			}
			must(t, appendAndSync(l, l.Last()+1)) // it goes on
		}})
		l, err := commitlog.Open(dir, small(f))
		must(t, err)
		contents(t, l)
		for n := uint64(1); n <= 120 && !t.Failed(); n++ {
			must(t, appendAndSync(l, n))
			acknowledged.Store(n)
			if n%15 == 0 {
				applied.Store(n - 4)
				must(t, l.Retire(n-4))
			}
		}
		must(t, l.Close(true))
		t.Logf("seed %d: %d power failures, %d times the record under way was left", seed, cuts, torn)
	}
}
