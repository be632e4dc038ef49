package persistence

import (
	"fmt"
	"slices"
	"sync"

	"github.com/caravan-dag/caravan/messages"
)

// deletedRunIDs is the set of row IDs that no longer exist and never come back. Scans use it to
// jump over the tombstones of deleted rows, which Badger would step through one by one. The oldest
// rows are deleted first, so a few ranges hold the set. The ranges are of numbers: the IDs of a
// partition have gaps, and would never merge. It is safe for concurrent use.
type deletedRunIDs struct {
	numbering messages.Numbering // set before the first use
	mu        sync.RWMutex
	ranges    []numberRange // ascending, with a gap between neighbours
}

// numberRange is the runs of a partition numbered from first to last, inclusive.
type numberRange struct{ first, last uint64 }

// Add adds the partition's IDs from firstID to lastID, inclusive.
func (d *deletedRunIDs) Add(firstID, lastID uint64) {
	if lastID < d.numbering.Partition {
		return
	}
	first := d.numbering.NumberFrom(messages.RunID(firstID))
	last := d.numbering.Number(messages.RunID(lastID - d.numbering.Partition))
	if first > last {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	// The ranges [i, end) touch the new one and are merged with it.
	i, _ := slices.BinarySearchFunc(d.ranges, first, func(r numberRange, number uint64) int {
		if number > 0 && r.last < number-1 {
			return -1
		}
		return 1
	})
	end := i
	for ; end < len(d.ranges) && d.ranges[end].first <= last+min(1, 1<<64-1-last); end++ {
		first, last = min(first, d.ranges[end].first), max(last, d.ranges[end].last)
	}
	d.ranges = slices.Replace(d.ranges, i, end, numberRange{first, last})
}

// NextExisting returns the first ID at or after id that may exist. The highest ID always may. IDs of
// other partitions are not told apart: they have no rows here.
func (d *deletedRunIDs) NextExisting(id uint64) uint64 {
	number := d.numbering.NumberFrom(messages.RunID(id))
	d.mu.RLock()
	defer d.mu.RUnlock()
	i, _ := slices.BinarySearchFunc(d.ranges, number, func(r numberRange, number uint64) int {
		if r.last < number {
			return -1
		}
		return 1
	})
	if i == len(d.ranges) || d.ranges[i].first > number {
		return id
	}
	last := uint64(d.numbering.ID(d.ranges[i].last))
	return last + min(d.numbering.Stride(), 1<<64-1-last)
}

// areNeighbours reports whether no run of the partition is between two of its runs.
func (d *deletedRunIDs) areNeighbours(id, next uint64) bool {
	return d.numbering.Number(messages.RunID(id))+1 == d.numbering.Number(messages.RunID(next))
}

// String lists the ranges.
func (d *deletedRunIDs) String() string {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return fmt.Sprint(d.ranges)
}
