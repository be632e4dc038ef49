package outputs

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// ErrNoRoom: the disk is nearly full, and what is left is the journal's.
var ErrNoRoom = errors.New("the disk is nearly full")

// Reserve is how much of a disk of so many bytes output leaves free, for the journal: with
// that, what runs can still end and be recorded. It is more than the store may need at
// once, which follows from the size of the disk, too, and less than what it has free
// when it refuses new runs: that comes first.
func Reserve(total int64) int64 {
	const most = 1280 << 20
	least := int64(40 << 20)
	if total < 64<<20 {
		least = 10 << 20
	}
	return max(min(total/4, most), least)
}

// KeepFree makes Append refuse with ErrNoRoom what would leave less free than
// reserve says of the disk's size. Call it before the first Append.
func (s *Store) KeepFree(reserve func(total int64) int64) { s.reserve = reserve }

// admit takes room on the disk for an append; leave gives it back, once it is written.
func (s *Store) admit(bytes int64) (leave func(), err error) {
	if s.reserve == nil {
		return func() {}, nil
	}
	leave = func() { s.pending.Add(-bytes) }
	pending := s.pending.Add(bytes) // of others, too: it may not be written yet
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		leave()
		return nil, fmt.Errorf("statfs %s: %w", s.dir, err)
	}
	free, reserve := int64(st.Bavail)*st.Bsize, s.reserve(int64(st.Blocks)*st.Bsize)
	if free-pending < reserve {
		leave()
		return nil, fmt.Errorf("%w: %d MiB are free, and %d MiB of them are the journal's", ErrNoRoom, free>>20, reserve>>20)
	}
	return leave, nil
}
