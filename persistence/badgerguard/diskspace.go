package badgerguard

import (
	"fmt"
	"sync"
	"time"

	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/dgraph-io/badger/v4"
)

// DiskSpace watches the free space of the data folder. Badger writes its tables and log files
// through mappings of sparse files. On a full disk such a write is not an error but SIGBUS, in a
// goroutine of Badger's that the program cannot recover. So the store must stop while Badger still
// has the space that it may need at once: memtables become tables, and compactions write their
// output before they delete their input.
//
// The segments of the commit log are filled before they are used, so a full disk is an ordinary
// error there. The next segment counts as space that is needed.
//
// What follows from Badger is in spaceNeeded, CheckOpen, CheckClose and WatchTables, and in the share
// of a memtable after which refresh asks spaceNeeded again. The rest is independent of Badger.
type DiskSpace struct {
	DiskSpaceConfig
	now    func() time.Time
	tables func() []badger.TableInfo // nil while Badger is not open

	mu       sync.Mutex
	checked  time.Time // when free, total and needed were true
	free     int64
	total    int64
	needed   int64
	neededAt time.Time
	written  int64 // bytes since neededAt
}

// DiskSpaceConfig describes the disk and its users. All sizes are in bytes.
type DiskSpaceConfig struct {
	Dir string
	// Soft is what must be free for new work, Hard what must be free for a commit. Zero derives
	// them from what Badger may need at once.
	Soft, Hard int64
	// SoftFloor, if set, returns the least Soft for a disk of this size.
	SoftFloor func(total int64) int64
	MemTable  int64 // Badger's MemTableSize
	Segment   int64 // of the commit log
	// LogBytes returns the size of the records that the commit log keeps.
	LogBytes func() int64
	// Statfs returns what is free in a folder's file system. Nil asks the kernel.
	Statfs func(dir string) (free, total int64, err error)
	// Pause waits between two checks, while a compaction may give space back. Nil sleeps.
	Pause func(time.Duration)
}

const (
	maxAgeForNewWork  = 100 * time.Millisecond // of free, when new work asks
	maxAgeForCommit   = 5 * time.Millisecond   // of free, when a commit asks and twice of what is needed is free
	maxAgeOfNeeded    = time.Second            // of needed
	maxAgeOfNeededLow = 10 * time.Millisecond  // of needed, when it is close to free
	recheckInterval   = 20 * time.Millisecond  // while a commit waits for space
	maxWaitForSpace   = 3 * time.Second        // of a commit, for compactions to give space back
)

// NewDiskSpace starts to watch a folder.
func NewDiskSpace(c DiskSpaceConfig) *DiskSpace {
	if c.Statfs == nil {
		c.Statfs = vfs.Statfs
	}
	if c.Pause == nil {
		c.Pause = time.Sleep
	}
	return &DiskSpace{DiskSpaceConfig: c, now: time.Now}
}

// spaceNeeded returns what may be written at once, in bytes: all memtables as tables, a new log
// file of Badger's, a segment of the commit log, and the output of one compaction of level 0 and
// one of a deeper level.
func (d *DiskSpace) spaceNeeded() int64 {
	if d.Hard > 0 {
		return d.Hard
	}
	// Memtables become tables, and these may be compacted before the next check.
	n := 6*d.MemTable + d.MemTable*5/4 + d.Segment
	if d.tables == nil {
		return n
	}
	var levels [16]int64
	var largest int64
	for _, t := range d.tables() {
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

// refresh brings free, total and needed up to date and returns them. free may have this age;
// written is what the caller is about to write, in bytes.
//
// The tree has changed little as long as less than half a memtable was written. Listing Badger's
// tables takes 1 us each, and a commit waits for that. So even on a disk that is nearly full,
// needed is not recomputed for each commit. It includes the tables that memtables become.
func (d *DiskSpace) refresh(age time.Duration, written int64) (free, total, needed int64, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.now()
	d.written += written
	if d.free >= 2*d.needed { // other programs do not write that much in the meantime
		age = max(age, maxAgeForCommit)
	}
	if !d.checked.IsZero() && now.Sub(d.checked) <= age {
		return d.free, d.total, d.needed, nil
	}
	if d.free, d.total, err = d.Statfs(d.Dir); err != nil {
		return 0, 0, 0, err
	}
	d.checked = now
	old := now.Sub(d.neededAt)
	if d.neededAt.IsZero() || old > maxAgeOfNeeded || d.written > d.MemTable/2 || d.free < 2*d.needed && old > maxAgeOfNeededLow {
		d.needed, d.neededAt, d.written = d.spaceNeeded(), now, 0
	}
	return d.free, d.total, d.needed, nil
}

// CheckCommit returns nil when a commit of this size, in bytes, may be written. It waits a little
// for a compaction to give space back.
func (d *DiskSpace) CheckCommit(size int64) error {
	for waited := time.Duration(0); ; waited += recheckInterval {
		free, _, needed, err := d.refresh(0, size)
		if err != nil {
			return err
		}
		if free >= needed+size {
			return nil
		}
		if waited >= maxWaitForSpace {
			return d.lowSpace(free, needed)
		}
		d.Pause(recheckInterval)
	}
}

// CheckNewWork returns nil when there is room for new work.
func (d *DiskSpace) CheckNewWork() error {
	free, total, needed, err := d.refresh(maxAgeForNewWork, 0)
	if err != nil {
		return err
	}
	soft := d.Soft
	if soft == 0 {
		soft = needed + needed/2
		if d.SoftFloor != nil {
			soft = max(soft, d.SoftFloor(total))
		}
	}
	if free < soft {
		return d.lowSpace(free, soft)
	}
	return nil
}

func (d *DiskSpace) lowSpace(free, needed int64) error {
	return fmt.Errorf("disk is nearly full: %s has %d MiB free, %d MiB are needed", d.Dir, free>>20, (needed+1<<20-1)>>20)
}

// CheckOpen returns nil when Badger can take what the commit log keeps: into its log files first,
// and then into tables.
func (d *DiskSpace) CheckOpen() error {
	return d.checkFree(2*d.LogBytes()*5/4 + d.MemTable*5/4 + d.Segment)
}

// CheckClose returns nil when Badger can write what it has in memory into tables.
func (d *DiskSpace) CheckClose() error { return d.checkFree(d.LogBytes() * 5 / 4) }

// checkFree returns nil when this much space, and 1 MiB more, is free.
func (d *DiskSpace) checkFree(needed int64) error {
	free, _, err := d.Statfs(d.Dir)
	if err != nil {
		return err
	}
	if needed += 1 << 20; free < needed {
		return d.lowSpace(free, needed)
	}
	return nil
}

// WatchTables says where to list Badger's tables, once it is open and before the first commit.
func (d *DiskSpace) WatchTables(tables func() []badger.TableInfo) { d.tables = tables }

// SetStatfs replaces Statfs and forgets what was measured, so that tests can fill the disk.
func (d *DiskSpace) SetStatfs(statfs func(dir string) (free, total int64, err error)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.Statfs = statfs
	d.checked, d.neededAt = time.Time{}, time.Time{}
}
