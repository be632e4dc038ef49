package persistence

import (
	"fmt"
	"slices"
	"sync"
)

// deletedRunIDs is the set of row IDs that no longer exist and never come back. Scans use it to
// jump over the tombstones of deleted rows, which Badger would step through one by one. The oldest
// rows are deleted first, so a few ranges hold the set. It is safe for concurrent use.
type deletedRunIDs struct {
	mu     sync.RWMutex
	ranges []idRange // ascending, with a gap between neighbours
}

// idRange is the IDs from first to last, inclusive.
type idRange struct{ first, last uint64 }

// Add adds the IDs from first to last, inclusive.
func (d *deletedRunIDs) Add(first, last uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	// The ranges [i, end) touch the new one and are merged with it.
	i, _ := slices.BinarySearchFunc(d.ranges, first, func(r idRange, id uint64) int {
		if id > 0 && r.last < id-1 {
			return -1
		}
		return 1
	})
	end := i
	for ; end < len(d.ranges) && d.ranges[end].first <= last+min(1, 1<<64-1-last); end++ {
		first, last = min(first, d.ranges[end].first), max(last, d.ranges[end].last)
	}
	d.ranges = slices.Replace(d.ranges, i, end, idRange{first, last})
}

// NextExisting returns the first ID at or after id that may exist. The highest ID always may.
func (d *deletedRunIDs) NextExisting(id uint64) uint64 {
	d.mu.RLock()
	defer d.mu.RUnlock()
	i, _ := slices.BinarySearchFunc(d.ranges, id, func(r idRange, id uint64) int {
		if r.last < id {
			return -1
		}
		return 1
	})
	if i == len(d.ranges) || d.ranges[i].first > id {
		return id
	}
	return d.ranges[i].last + min(1, 1<<64-1-d.ranges[i].last)
}

// String lists the ranges.
func (d *deletedRunIDs) String() string {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return fmt.Sprint(d.ranges)
}
