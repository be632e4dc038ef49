// Package rowdigest computes the digest of rows. Two replicas with the same rows as of a moment have the
// same digest, whatever tables the rows lie in, and so has a backup of them.
package rowdigest

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
)

// Digest is the digest of rows that come by ascending keys (SHA-256): per row, the lengths of key and value
// in eight bytes each, big-endian, key and value.
type Digest struct {
	sum  hash.Hash
	rows uint64
	head [16]byte
}

// New returns a digest, before the first row.
func New() *Digest { return &Digest{sum: sha256.New()} }

// Add adds the next row.
func (d *Digest) Add(key, value []byte) {
	d.rows++
	binary.BigEndian.PutUint64(d.head[:], uint64(len(key)))
	binary.BigEndian.PutUint64(d.head[8:], uint64(len(value)))
	d.sum.Write(d.head[:])
	d.sum.Write(key)
	d.sum.Write(value)
}

// Rows returns the number of rows.
func (d *Digest) Rows() uint64 { return d.rows }

// Sum returns the digest of the rows so far.
func (d *Digest) Sum() (sum [32]byte) {
	d.sum.Sum(sum[:0])
	return sum
}
