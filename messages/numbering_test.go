package messages_test

import (
	"math"
	"testing"

	"github.com/caravan-dag/caravan/messages"
)

// TestNumberingIsABijection: each ID belongs to one partition, and has one number there.
func TestNumberingIsABijection(t *testing.T) {
	for _, partitions := range []uint64{0, 1, 2, 3, 6, 7, messages.MaxPartitions} {
		for id := range messages.RunID(3 * max(partitions, 1)) {
			owners := 0
			for p := range max(partitions, 1) {
				n := messages.Numbering{Partitions: partitions, Partition: p}
				if err := n.Check(); err != nil {
					t.Fatal(err)
				}
				if !n.Owns(id) {
					continue
				}
				owners++
				if got := n.ID(n.Number(id)); got != id {
					t.Errorf("%+v: run %d has number %d, which is run %d", n, id, n.Number(id), got)
				}
			}
			if owners != 1 {
				t.Errorf("of %d partitions, %d have run %d", partitions, owners, id)
			}
		}
	}
}

// TestZeroNumberingLeavesIDs: without partitions IDs are numbers.
func TestZeroNumberingLeavesIDs(t *testing.T) {
	var n messages.Numbering
	for _, id := range []messages.RunID{0, 1, 15, 16, 1 << 40, math.MaxUint64} {
		if !n.Owns(id) || n.Number(id) != uint64(id) || n.NumberFrom(id) != uint64(id) || n.ID(uint64(id)) != id {
			t.Errorf("run %d: owned %v, number %d, from %d", id, n.Owns(id), n.Number(id), n.NumberFrom(id))
		}
	}
}

// TestHighestNumberHasAnID: with as many partitions as there may be, no ID wraps around.
func TestHighestNumberHasAnID(t *testing.T) {
	n := messages.Numbering{Partitions: messages.MaxPartitions, Partition: messages.MaxPartitions - 1}
	if id := n.ID(messages.MaxNumber); id != math.MaxUint64 || n.Number(id) != messages.MaxNumber {
		t.Errorf("number %d has ID %d, which has number %d", uint64(messages.MaxNumber), id, n.Number(id))
	}
}

// TestNumberFromIsTheNextRunOfThePartition compares it with a search.
func TestNumberFromIsTheNextRunOfThePartition(t *testing.T) {
	for p := range uint64(6) {
		n := messages.Numbering{Partitions: 6, Partition: p}
		for id := range messages.RunID(40) {
			want := uint64(0)
			for n.ID(want) < id {
				want++
			}
			if got := n.NumberFrom(id); got != want {
				t.Errorf("partition %d: from run %d number %d, want %d", p, id, got, want)
			}
		}
	}
}

func TestNumberingOfNoPartitionIsRefused(t *testing.T) {
	for _, n := range []messages.Numbering{{Partition: 1}, {Partitions: 1, Partition: 1}, {Partitions: 6, Partition: 6}, {Partitions: messages.MaxPartitions + 1}} {
		if n.Check() == nil {
			t.Errorf("%+v is accepted", n)
		}
	}
}
