package persistence

import (
	"errors"
	"time"
)

// FailNext makes the next commit of the store fail.
func (s *Badger) FailNext() {
	s.room.mu.Lock()
	defer s.room.mu.Unlock()
	old := s.room.statfs
	s.room.statfs = func(string) (int64, int64, error) {
		s.room.statfs = old // called under mu
		return 0, 0, errors.New("injected by the test")
	}
}

// Small makes memtables and transactions as small as on the smallest disks.
func Small(c Config) Config {
	c.memory = 4 << 20
	return c
}

// WithDisk makes up a disk.
func WithDisk(c Config, statfs func(string) (free, total int64, err error)) Config {
	c.statfs = statfs
	return c
}

// Later makes what Room remembers old.
func Later(s *Badger) {
	s.room.mu.Lock()
	defer s.room.mu.Unlock()
	s.room.at, s.room.needAt = time.Time{}, time.Time{}
}
