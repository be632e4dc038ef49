package persistence

import (
	"encoding/binary"

	"github.com/caravan-dag/caravan/messages"
	"github.com/dgraph-io/badger/v4"
)

// cuts are the journal records that a snapshot has made superfluous and that are
// still there. They are deleted a few with each group, after the snapshot's header
// became durable. Those that a crash leaves are found at the run's next cut;
// readers never look below the cut. It belongs to the committer's goroutine.
type cuts struct {
	due []cut
	low map[messages.RunID]uint64 // records below this Seq are deleted
}

type cut struct {
	run messages.RunID
	seq uint64 // records below it go
}

// cutRows is the number of records that are deleted with one group.
const cutRows = 1000

func (c *cuts) empty() bool { return len(c.due) == 0 }

// note takes down what a durable batch has made superfluous.
func (c *cuts) note(b *Batch) {
	if b.Snapshot != nil && b.Snapshot.Header != nil && b.Snapshot.Cut > c.low[b.Run] {
		c.due = append(c.due, cut{b.Run, b.Snapshot.Cut})
	}
	if b.Summary != nil && final(b.Summary.State) {
		delete(c.low, b.Run) // a hint only: it bounds the search
	}
}

// addCuts adds deletions to a group that has room for them.
func (s *Badger) addCuts(g *group) {
	c := &s.cuts
	if s.Err() != nil {
		c.due = nil
		return
	}
	room := min(cutRows, s.maxRows-len(g.ops))
	for len(c.due) > 0 && room > 0 {
		at := c.due[0]
		from := runKey(typeJournal, at.run)
		from = binary.BigEndian.AppendUint64(from, c.low[at.run])
		end := binary.BigEndian.AppendUint64(runKey(typeJournal, at.run), at.seq)
		finished := true
		err := s.scan(runKey(typeJournal, at.run), from, false, func(key []byte, _ *badger.Item) (bool, error) {
			if string(key) >= string(end) {
				return false, nil
			}
			if room == 0 {
				finished = false
				return false, nil
			}
			room--
			start := len(g.arena)
			g.arena = append(g.arena, key...)
			g.del(g.hold(start))
			c.low[at.run] = binary.BigEndian.Uint64(key[9:])
			return true, nil
		})
		if err != nil {
			s.fail(err)
			return
		}
		if !finished {
			return
		}
		c.low[at.run] = at.seq
		c.due = c.due[1:]
	}
}
