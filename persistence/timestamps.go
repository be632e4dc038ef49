package persistence

import (
	"sync"

	"github.com/caravan-dag/caravan/internal/idtable"
	"github.com/caravan-dag/caravan/messages"
)

// readTimestamps gives each read the newest published commit as its read timestamp. Badger cannot
// do that: it is managed, which means that the numbers of commits come from the commit log
// (local_log.go). A commit is published when it is durable and in Badger, so a read never sees a
// row that is not durable. A read waits at most until Badger has, in memory, the commits that were
// announced before the read began; it never waits for the disk. So a caller whose batch was
// answered reads it.
//
// It also holds the index of unfinished runs, under the same lock: a list must get the timestamp
// and the runs that may be unfinished at that timestamp in one step.
type readTimestamps struct {
	mu         sync.Mutex
	changed    sync.Cond      // of published and closed
	published  uint64         // the newest commit that is durable and in Badger
	announced  uint64         // the newest commit that a caller may know to be durable
	closed     bool           // the store has failed: no further commit is published
	store      uint64         // the store that began last, by RunStore.ordinal
	active     map[uint64]int // reads under way, by their timestamps
	unfinished unfinishedIndex
}

func newReadTimestamps() *readTimestamps {
	t := &readTimestamps{active: make(map[uint64]int)}
	t.changed.L = &t.mu
	return t
}

// beginStore forgets what the store before knew: a new store reads from the published commit on,
// and learns which runs are unfinished from the rows. All of its runs are of one partition.
func (t *readTimestamps) beginStore(ordinal uint64, numbering messages.Numbering) {
	t.mu.Lock()
	defer t.mu.Unlock()
	rows := idtable.Spaced[rowState](numbering.Stride(), numbering.Partition)
	t.announced, t.closed, t.unfinished = t.published, false, unfinishedIndex{rows}
	t.store = ordinal
}

// newest returns the newest published commit.
func (t *readTimestamps) newest() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.published
}

// announce says that a caller is about to learn that this commit is durable.
func (t *readTimestamps) announce(commit uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.announced = max(t.announced, commit)
}

// stopWaiting ends all waiting: the store has failed. A former store that fails late changes nothing
// (an alarm of its stallWatch): reads of the next one must wait for what its callers know.
func (t *readTimestamps) stopWaiting(ordinal uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.store != ordinal {
		return
	}
	t.closed = true
	t.changed.Broadcast()
}

// publish says that a commit of these rows is durable and in Badger. It returns the oldest
// timestamp that a read still uses, or this one: Badger may drop what was replaced before it.
func (t *readTimestamps) publish(commit uint64, mutations []mutation) (oldest uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.published, t.announced = commit, max(t.announced, commit)
	t.changed.Broadcast()
	t.unfinished.publishDeletions(mutations)
	oldest = commit
	for at := range t.active {
		oldest = min(oldest, at)
	}
	return oldest
}

// acquire returns the timestamp of a read that begins. Give it back with release.
func (t *readTimestamps) acquire() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.acquireLocked()
}

// acquireLocked is acquire; mu is held.
func (t *readTimestamps) acquireLocked() uint64 {
	for least := t.announced; t.published < least && !t.closed; {
		t.changed.Wait()
	}
	t.active[t.published]++
	return t.published
}

func (t *readTimestamps) release(timestamp uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.active[timestamp]--; t.active[timestamp] == 0 {
		delete(t.active, timestamp)
	}
}

// acquireWithUnfinished is acquire, together with the first n runs from a run on that may be
// unfinished at that timestamp.
func (t *readTimestamps) acquireWithUnfinished(from messages.RunID, n int) (timestamp uint64, runs []messages.RunID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	timestamp = t.acquireLocked()
	return timestamp, t.unfinished.firstFrom(from, n)
}

// addUnfinished says that the batch which is being encoded makes a run unfinished, and reports
// whether it was unfinished before.
func (t *readTimestamps) addUnfinished(run messages.RunID) (was bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.unfinished.add(run)
}

// removeUnfinished says that the batch which is being encoded makes a run finished, and reports
// whether it was unfinished before. If so, the batch deletes its row.
func (t *readTimestamps) removeUnfinished(run messages.RunID) (was bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.unfinished.remove(run)
}

// isUnfinished reports whether the newest batch leaves a run unfinished.
func (t *readTimestamps) isUnfinished(run messages.RunID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.unfinished.rows.Get(uint64(run))&rowPresent != 0
}

// unfinishedIndex knows which runs may have a row among those of unfinished runs. Each run that
// finished has left a tombstone there, and a read without this index would step over all of them.
// The lock of readTimestamps guards it.
type unfinishedIndex struct {
	rows idtable.Table[rowState]
}

// rowState is what is known of a run's row: whether the newest batch leaves it there (bit 0), and
// how many deletions of it are not yet published. A read may see the row while rowState is not
// zero.
type rowState uint32

const (
	rowPresent  rowState = 1
	rowDeletion rowState = 2 // one deletion that is not yet published
)

func (u *unfinishedIndex) add(run messages.RunID) (was bool) {
	state := u.rows.Get(uint64(run))
	if state&rowPresent == 0 {
		u.rows.Set(uint64(run), state|rowPresent)
	}
	return state&rowPresent != 0
}

func (u *unfinishedIndex) remove(run messages.RunID) (was bool) {
	state := u.rows.Get(uint64(run))
	if state&rowPresent == 0 {
		return false
	}
	u.rows.Set(uint64(run), state&^rowPresent+rowDeletion)
	return true
}

// publishDeletions says that reads which begin now see these mutations.
func (u *unfinishedIndex) publishDeletions(mutations []mutation) {
	for i := range mutations {
		m := &mutations[i]
		if !m.Delete || m.Key[0] != typeUnfinished {
			continue
		}
		run := uint64(runOfKey(m.Key))
		if state := u.rows.Get(run); state >= rowDeletion {
			u.rows.Set(run, state-rowDeletion)
		}
	}
}

// firstFrom returns the first n runs from a run on that may have a row, for the newest read or for
// one that is under way.
func (u *unfinishedIndex) firstFrom(from messages.RunID, n int) (runs []messages.RunID) {
	for id := range u.rows.From(uint64(from)) {
		if len(runs) == n {
			break
		}
		runs = append(runs, messages.RunID(id))
	}
	return runs
}
