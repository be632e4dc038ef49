package raftlog

import (
	"errors"
	"fmt"

	"github.com/hashicorp/raft"
)

// The rows of a replica can be exchanged for a copy of another one's while the replica stays a member: it keeps
// its vote and its log, so it has all that it has confirmed, and goes on confirming. The caller does this:
//
//	HoldLog    the log is not trimmed from here on. The copy must have the rows of the entry that it returns
//	…          the copy arrives, and this machine goes on. It must have the entry of the copy at last
//	Exchange   no entry is applied meanwhile, and after some batches the library answers no request. The caller applies the later ones, which it gets from the log,
//	           to the copy, and puts it in place of the machine's rows

// ErrNotReplayable is the error of an Exchange with a copy that is too old: the log, or a snapshot that came in the
// meantime, begins later.
var ErrNotReplayable = errors.New("the log does not follow the copy")

// HoldLog puts off periodic snapshots until release, so that the entries after applied stay in the log: applied is
// the last one that this replica has applied. It waits for a snapshot that is under way, which may remove entries at
// its end.
func (g *Group) HoldLog() (applied uint64, release func()) {
	g.held.Add(1)
	g.snapshotting.Lock()
	defer g.snapshotting.Unlock()
	at, _, _ := g.applier.currentPosition()
	return at.index, func() { g.held.Add(-1) }
}

// Replay passes the rows of entries in their order, as Machine.Apply gets them, and ends with the first error.
type Replay func(apply func(index, term uint64, rows []byte) error) error

// Exchange calls swap while the machine gets no call. replay passes the entries after from that this replica has
// applied; from is not later than the last one. Afterwards the rows are durable up to from at least. An error of swap
// is the caller's: the group goes on with the machine as it is.
func (g *Group) Exchange(from uint64, swap func(replay Replay) error) error {
	return g.applier.whileIdle(func(at position) error {
		if g.incarnation() == nil {
			return g.closedError()
		}
		own, _ := g.snapshots.ownRecord()
		first, err := g.logs.FirstIndex()
		switch {
		case err != nil:
			return err
		case from > at.index:
			return fmt.Errorf("the copy is of entry %d, and this replica has applied %d entries", from, at.index)
		case own.Index > from || from < at.index && (first == 0 || first > from+1):
			return fmt.Errorf("%w: the copy is of entry %d, the snapshot of entry %d, and the log begins at entry %d", ErrNotReplayable, from, own.Index, first)
		}
		return swap(func(apply func(index, term uint64, rows []byte) error) error {
			for index := from + 1; index <= at.index; index++ {
				if err := g.replayEntry(index, apply); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// replayEntry passes the rows of an entry of the log, if it has rows.
func (g *Group) replayEntry(index uint64, apply func(index, term uint64, rows []byte) error) error {
	var log raft.Log
	if err := g.logs.GetLog(index, &log); err != nil {
		return err
	}
	if log.Type != raft.LogCommand {
		return nil
	}
	e, err := decodeEntry(log.Data)
	if err != nil || e.kind != rowsEntry || e.isFenced(log.Term) {
		return err
	}
	return apply(log.Index, log.Term, e.body)
}

// whileIdle calls f while the machine gets no call of the library, and no other replica reads its rows.
func (a *applier) whileIdle(f func(at position) error) error {
	a.applying.Lock()
	defer a.applying.Unlock()
	if err := a.firstError(); err != nil {
		return err
	}
	a.snapshots.abortStreams() // they hold restoring, and their receiver asks again
	a.restoring.Lock()
	defer a.restoring.Unlock()
	at, _, _ := a.currentPosition()
	return f(at)
}
