package persistence

import (
	"fmt"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sys/unix"
)

// room watches the free space of the data folder. Badger writes its tables and
// log files through mappings of sparse files: on a full disk that is not an error but
// SIGBUS, in a goroutine of Badger's own, which nobody can recover. So the store stops
// while Badger still has what it may need at once.
//
// That is: the memtables in memory become tables, and compactions write their output
// before they delete their input. The commit log's own segments are filled before they
// are used, so they fail with an error; the next one is counted too.
type room struct {
	dir        string
	soft, hard int64                   // bytes; 0 = need() decides
	floor      func(total int64) int64 // see Config.SoftFreeFloor
	memTable   int64
	statfs     func(dir string) (free, total int64, err error)
	tables     func() []badger.TableInfo
	logBytes   func() int64 // of records that the commit log keeps
	now        func() time.Time

	mu      sync.Mutex
	at      time.Time // of what follows
	free    int64
	total   int64
	needed  int64
	needAt  time.Time
	written int64               // bytes since needAt
	pausing func(time.Duration) // between two looks while a compaction may give space back
}

const (
	roomFresh = 100 * time.Millisecond // how old free may be for CheckDiskSpace
	roomLoose = 5 * time.Millisecond   // and for a commit, when twice of what is needed is free
	needFresh = time.Second            // how old needed may be
	needTight = 10 * time.Millisecond  // and when it is not far from what is free
	roomPause = 20 * time.Millisecond  // between two looks meanwhile
	roomWait  = 3 * time.Second        // how long a group waits for compactions to give space back
)

func newRoom(c Config) *room {
	return &room{dir: c.Dir, floor: c.SoftFreeFloor, soft: c.SoftFreeBytes, hard: c.HardFreeBytes, memTable: c.memory,
		statfs: c.statfs, now: time.Now, pausing: time.Sleep}
}

func statfs(dir string) (free, total int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, fmt.Errorf("statfs %s: %w", dir, err)
	}
	return int64(st.Bavail) * st.Bsize, int64(st.Blocks) * st.Bsize, nil
}

// memTableSize suits the file system: Badger holds up to three memtables in
// memory, their files, and several tables of that size on disk.
func memTableSize(total int64) int64 {
	switch {
	case total < 64<<20:
		return 1 << 20
	case total < 1<<30:
		return 4 << 20
	case total < 8<<30:
		return 16 << 20
	}
	return 32 << 20
}

// need is what may be written at once, in bytes: all memtables as tables, a new log file
// of Badger's, a segment of the commit log, and the output of one compaction of level 0
// and one of a deeper level.
func (r *room) need() int64 {
	if r.hard > 0 {
		return r.hard
	}
	// Memtables become tables, and these may be compacted before anybody looks again.
	n := 6*r.memTable + r.memTable*5/4 + segmentSize(r.memTable)
	if r.tables == nil {
		return n
	}
	var levels [16]int64
	var largest int64
	for _, t := range r.tables() {
		levels[min(t.Level, len(levels)-1)] += int64(t.OnDiskSize)
		if t.Level > 0 {
			largest = max(largest, int64(t.OnDiskSize))
		}
	}
	n += levels[0]
	deeper := int64(0)
	first := true
	for _, size := range levels[1:] {
		if size == 0 {
			continue
		}
		if first {
			n += size // all of it may be merged with level 0
			first = false
			continue
		}
		deeper += size
	}
	return n + min(deeper, 12*largest)
}

// look refreshes free, total and needed and returns them. The tree has not changed much
// as long as less than half a memtable was written. Asking Badger for its tables takes 1 us
// each, and a commit waits for it: so even on a disk that is nearly full needed is not made
// anew for each commit. What a memtable needs as a table is part of it beforehand.
func (r *room) look(age time.Duration, size int64) (free, total, needed int64, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	r.written += size
	if r.free >= 2*r.needed { // nobody fills the disk with as much as is needed meanwhile
		age = max(age, roomLoose)
	}
	if !r.at.IsZero() && now.Sub(r.at) <= age {
		return r.free, r.total, r.needed, nil
	}
	if r.free, r.total, err = r.statfs(r.dir); err != nil {
		return 0, 0, 0, err
	}
	r.at = now
	old := now.Sub(r.needAt)
	if r.needAt.IsZero() || old > needFresh || r.written > r.memTable/2 || r.free < 2*r.needed && old > needTight {
		r.needed, r.needAt, r.written = r.need(), now, 0
	}
	return r.free, r.total, r.needed, nil
}

// check is nil when a group of size bytes may be written. When a compaction holds
// the space it waits a little.
func (r *room) check(size int64) error {
	for waited := time.Duration(0); ; waited += roomPause {
		free, _, needed, err := r.look(0, size)
		if err != nil {
			return err
		}
		if free >= needed+size {
			return nil
		}
		if waited >= roomWait {
			return r.low(free, needed)
		}
		r.pausing(roomPause)
	}
}

// CheckDiskSpace is nil, or says that the store has failed or the disk is nearly full.
func (s *Badger) CheckDiskSpace() error {
	if err := s.Err(); err != nil {
		return err
	}
	return s.room.checkSoft()
}

func (r *room) checkSoft() error {
	free, total, needed, err := r.look(roomFresh, 0)
	if err != nil {
		return err
	}
	soft := r.soft
	if soft == 0 {
		soft = needed + needed/2
		if r.floor != nil {
			soft = max(soft, r.floor(total))
		}
	}
	if free < soft {
		return r.low(free, soft)
	}
	return nil
}

func (r *room) low(free, needed int64) error {
	return fmt.Errorf("disk is nearly full: %s has %d MiB free, %d MiB are needed", r.dir, free>>20, (needed+1<<20-1)>>20)
}

// checkOpen sees that what the commit log keeps can be applied: it goes into log files of
// Badger's first, and then into tables.
func (r *room) checkOpen() error {
	return r.checkFree(2*r.logBytes()*5/4 + r.memTable*5/4 + segmentSize(r.memTable))
}

// checkClose sees that what is in memory can become tables.
func (r *room) checkClose() error {
	return r.checkFree(r.logBytes() * 5 / 4)
}

// checkFree sees that there is room for so many bytes, and a little more.
func (r *room) checkFree(needed int64) error {
	free, _, err := r.statfs(r.dir)
	if err != nil {
		return err
	}
	if needed += 1 << 20; free < needed {
		return r.low(free, needed)
	}
	return nil
}
