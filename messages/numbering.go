package messages

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// Numbering makes the run IDs of one partition, and takes them apart. Run number n of partition p of
// P has the ID n·P + p. So IDs are unique over all partitions, each ID tells its partition, and IDs
// ascend with the numbers. For example, with P = 6 and p = 2:
//
//	number   0   1   2   3
//	ID       2   8  14  20
//
// A dense structure, such as a bitmap of runs, goes by numbers: IDs of one partition have gaps of P.
//
// The zero Numbering is that of a server without partitions: each ID is its number.
type Numbering struct {
	Partitions uint64 // P; 0 stands for 1
	Partition  uint64 // p, less than P
}

// MaxPartitions is the largest number of partitions. It leaves each partition 2^52 runs, numbered up to
// MaxNumber.
const (
	MaxPartitions = 1 << 12
	MaxNumber     = 1<<52 - 1
)

// Check returns an error unless the partition is one of the partitions.
func (n Numbering) Check() error {
	if n.Partitions > MaxPartitions || n.Partition >= n.Stride() {
		return fmt.Errorf("partition %d of %d: must be one of 0 to %d, of at most %d", n.Partition, n.Stride(), n.Stride()-1, MaxPartitions)
	}
	return nil
}

// Stride returns the number of partitions, which is the distance between two IDs of one.
func (n Numbering) Stride() uint64 { return max(n.Partitions, 1) }

// ID returns the ID of a run of the partition.
func (n Numbering) ID(number uint64) RunID { return RunID(number*n.Stride() + n.Partition) }

// Number returns the number of a run within its partition, whichever that is. Without partitions it
// costs no division: it is called for each message to a shard.
func (n Numbering) Number(id RunID) uint64 {
	if n.Partitions <= 1 {
		return uint64(id)
	}
	return uint64(id) / n.Partitions
}

// Owns reports whether an ID is one of the partition.
func (n Numbering) Owns(id RunID) bool { return uint64(id)%n.Stride() == n.Partition }

// NumberFrom returns the number of the first run of the partition whose ID is not below id. For an ID
// near the highest one there may be no such run: then ID of the result wraps around.
func (n Numbering) NumberFrom(id RunID) uint64 {
	number := n.Number(id)
	if uint64(id)%n.Stride() > n.Partition {
		number++
	}
	return number
}

// HashKey returns the hash of an idempotency key. Stores keep it in place of the key.
func HashKey(key string) [32]byte { return sha256.Sum256([]byte(key)) }

// KeyPartition returns the partition that knows an idempotency key, by the key's hash. All nodes must agree
// on it, for ever: a repeat has to find the run of the first submission.
func KeyPartition(hash [32]byte, partitions uint64) uint64 {
	return binary.BigEndian.Uint64(hash[:]) % max(partitions, 1)
}
