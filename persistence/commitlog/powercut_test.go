package commitlog_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/persistence/commitlog"
)

// TestPowerFailureInANewSegment: the power fails while the first record of a segment is
// being synced. Whether what came before was retired meanwhile, or the record is so long
// that the segment behind it is wanted, the log opens with all that was acknowledged.
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
				o := commitlog.Options{FS: disk, SegmentSize: 32 << 10, MaxRows: 12_000}
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
