package outputs

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// ErrDiskNearlyFull means that the rest of the disk is reserved for the journal.
var ErrNoRoom = errors.New("the disk is nearly full")

// JournalReserve returns how many bytes of a disk of total bytes output leaves free for the
// journal, so that runs can still end and be recorded. It exceeds the space that the store may need
// at once, which also depends on the size of the disk. It is smaller than the free space below
// which the store refuses new runs: that happens first.
func Reserve(total int64) int64 {
	const most = 1280 << 20
	least := int64(40 << 20)
	if total < 64<<20 {
		least = 10 << 20
	}
	return max(min(total/4, most), least)
}

// KeepFree makes Append refuse, with ErrDiskNearlyFull, to leave less free space than reserve
// returns for the size of the disk. It must be called before the first Append.
func (s *Store) KeepFree(reserve func(total int64) int64) { s.reserve = reserve }

// admitAppend accounts for an append that is not yet written. The caller calls leave after writing.
func (s *Store) admit(bytes int64) (leave func(), err error) {
	if s.reserve == nil {
		return func() {}, nil
	}
	leave = func() { s.pending.Add(-bytes) }
	pending := s.pending.Add(bytes) // includes other appends that may not be written yet
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		leave()
		return nil, fmt.Errorf("statfs %s: %w", s.dir, err)
	}
	free, reserve := int64(st.Bavail)*st.Bsize, s.reserve(int64(st.Blocks)*st.Bsize)
	if free-pending < reserve {
		leave()
		return nil, fmt.Errorf("%w: %d MiB are free and %d MiB are reserved for the journal", ErrNoRoom, free>>20, reserve>>20)
	}
	return leave, nil
}
