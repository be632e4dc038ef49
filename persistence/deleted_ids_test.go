package persistence

import (
	"math/rand/v2"
	"testing"

	"github.com/caravan-dag/caravan/messages"
)

// TestDeletedRunIDsAgreeWithASet: ranges do what a set does, in as few ranges as possible, in each
// partition.
func TestDeletedRunIDsAgreeWithASet(t *testing.T) {
	testDeletedRunIDs(t, messages.Numbering{})
	for p := range uint64(6) {
		testDeletedRunIDs(t, messages.Numbering{Partitions: 6, Partition: p})
	}
}

func testDeletedRunIDs(t *testing.T, numbering messages.Numbering) {
	t.Helper()
	const most = uint64(1<<64 - 1)
	stride := numbering.Stride()
	highest := most - (most-numbering.Partition)%stride // the highest ID of the partition
	rng := rand.New(rand.NewPCG(3, 4))
	rounds := 200
	if testing.Short() {
		rounds = 10
	}
	for range rounds {
		d := deletedRunIDs{numbering: numbering}
		set := map[uint64]bool{}
		// Half of the sets lie at the very end of the IDs.
		base := []uint64{numbering.Partition, highest - 40*stride}[rng.IntN(2)]
		at := func(n uint64) uint64 { return base + n*stride }
		for range 30 {
			first := rng.Uint64N(40)
			last := min(first+rng.Uint64N(4), 40)
			d.Add(at(first)-min(at(first), rng.Uint64N(stride)), at(last)+min(most-at(last), rng.Uint64N(stride)))
			for n := first; n <= last; n++ {
				set[at(n)] = true
			}
			ranges := 0
			for n := range uint64(41) {
				if set[at(n)] && (n == 0 || !set[at(n-1)]) {
					ranges++
				}
				want := at(n)
				for set[want] && want < highest {
					want += stride
				}
				if set[want] { // the last ID of the partition is deleted, too
					want = most
				}
				if got := d.NextExisting(at(n)); got != want {
					t.Fatalf("%+v: from %d on %d may exist, want %d: %v", numbering, at(n), got, want, d.ranges)
				}
				if from := at(n) - min(at(n), stride/2); numbering.Number(messages.RunID(at(n))) > 0 {
					if got := d.NextExisting(from); got != want && (set[at(n)] || got != from) {
						t.Fatalf("%+v: from %d on %d may exist, want %d: %v", numbering, from, got, want, d.ranges)
					}
				}
			}
			if len(d.ranges) != ranges {
				t.Fatalf("%+v: %d ranges, want %d: %v", numbering, len(d.ranges), ranges, d.ranges)
			}
		}
	}
}

// TestDeletedRangesIgnoreOtherPartitions: a range without an ID of the partition changes nothing.
func TestDeletedRangesIgnoreOtherPartitions(t *testing.T) {
	d := deletedRunIDs{numbering: messages.Numbering{Partitions: 6, Partition: 4}}
	d.Add(0, 3)
	d.Add(5, 9)
	d.Add(11, 15)
	if len(d.ranges) != 0 {
		t.Errorf("ranges %v", d.ranges)
	}
	d.Add(0, 10)
	if got := d.String(); got != "[{0 1}]" {
		t.Errorf("ranges %s", got)
	}
}
