package persistence

import (
	"math/rand/v2"
	"testing"

	"github.com/caravan-dag/caravan/messages"
)

// Ranges do what a set does, in as few ranges as there are.
func TestGone(t *testing.T) {
	const most = messages.RunID(1<<64 - 1)
	rng := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		var g gone
		set := map[messages.RunID]bool{}
		// Half of them lie at the very end of what there is.
		base := []messages.RunID{0, most - 40}[rng.IntN(2)]
		for range 30 {
			first := messages.RunID(rng.IntN(40))
			last := min(first+messages.RunID(rng.IntN(4)), 40)
			g.add(base+first, base+last)
			for id := first; id <= last; id++ {
				set[base+id] = true
			}
			ranges := 0
			for id := range messages.RunID(41) {
				if at := base + id; set[at] && (id == 0 || !set[at-1]) {
					ranges++
				}
				want := base + id
				for set[want] && want < most {
					want++
				}
				if got := g.after(base + id); got != want {
					t.Fatalf("after %d comes %d, want %d: %v", base+id, got, want, g.ranges)
				}
			}
			if len(g.ranges) != ranges {
				t.Fatalf("%d ranges, want %d: %v", len(g.ranges), ranges, g.ranges)
			}
		}
	}
}
