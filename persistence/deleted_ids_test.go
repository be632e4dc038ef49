package persistence

import (
	"math/rand/v2"
	"testing"
)

// TestDeletedRunIDsAgreeWithASet: ranges do what a set does, in as few ranges as possible.
func TestDeletedRunIDsAgreeWithASet(t *testing.T) {
	const most = uint64(1<<64 - 1)
	rng := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		var d deletedRunIDs
		set := map[uint64]bool{}
		// Half of the sets lie at the very end of the IDs.
		base := []uint64{0, most - 40}[rng.IntN(2)]
		for range 30 {
			first := rng.Uint64N(40)
			last := min(first+rng.Uint64N(4), 40)
			d.Add(base+first, base+last)
			for id := first; id <= last; id++ {
				set[base+id] = true
			}
			ranges := 0
			for id := range uint64(41) {
				if at := base + id; set[at] && (id == 0 || !set[at-1]) {
					ranges++
				}
				want := base + id
				for set[want] && want < most {
					want++
				}
				if got := d.NextExisting(base + id); got != want {
					t.Fatalf("from %d on %d may exist, want %d: %v", base+id, got, want, d.ranges)
				}
			}
			if len(d.ranges) != ranges {
				t.Fatalf("%d ranges, want %d: %v", len(d.ranges), ranges, d.ranges)
			}
		}
	}
}
