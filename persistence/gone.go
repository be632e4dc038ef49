package persistence

import (
	"slices"
	"sync"

	"github.com/caravan-dag/caravan/messages"
)

// gone is the ids of runs that were deleted, or are not in use for another reason, and
// never come back: a list jumps over them, where it would pass over their deleted rows.
// The oldest go first, so that there are few ranges.
type gone struct {
	mu     sync.RWMutex
	ranges []idRange // ascending, with something between them
}

// idRange is the ids from first to last.
type idRange struct{ first, last messages.RunID }

// add notes the ids from first to last.
func (g *gone) add(first, last messages.RunID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	// Those from i to end touch the new one.
	i, _ := slices.BinarySearchFunc(g.ranges, first, func(r idRange, id messages.RunID) int {
		if id > 0 && r.last < id-1 {
			return -1
		}
		return 1
	})
	end := i
	for ; end < len(g.ranges) && g.ranges[end].first <= last+min(1, 1<<64-1-last); end++ {
		first, last = min(first, g.ranges[end].first), max(last, g.ranges[end].last)
	}
	g.ranges = slices.Replace(g.ranges, i, end, idRange{first, last})
}

// after is the first id from one on that may be in use. The very last one always may.
func (g *gone) after(id messages.RunID) messages.RunID {
	g.mu.RLock()
	defer g.mu.RUnlock()
	i, _ := slices.BinarySearchFunc(g.ranges, id, func(r idRange, id messages.RunID) int {
		if r.last < id {
			return -1
		}
		return 1
	})
	if i == len(g.ranges) || g.ranges[i].first > id {
		return id
	}
	return g.ranges[i].last + min(1, 1<<64-1-g.ranges[i].last)
}
