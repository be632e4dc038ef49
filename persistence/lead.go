package persistence

import (
	"context"
	"errors"
	"fmt"

	"github.com/caravan-dag/caravan/persistence/badgerguard"
	"github.com/caravan-dag/caravan/persistence/commitlog"
)

// ErrLost ends a store whose node no longer leads: the leadership is lost, the fence has dropped a
// group, rows of another term have come, or it is unknown whether the log has a group. Or the replica
// is not fit to lead (DB.Lead). The DB goes on: what the log has of the last batches, Apply writes.
// Errors of a store that has ended so wrap ErrFailed, too.
var ErrLost = errors.New("the leadership is lost")

// Lead is one term of leadership over the log of a replica.
type Lead struct {
	// Epoch is the term. Groups carry it, and write numbers begin with it.
	Epoch uint64
	// At is the moment of the entry that began the term. All entries before it are applied. The second
	// store of a term needs another such entry, after the last one of the first store.
	At uint64
	// Propose appends a group to the log, and returns its moment when the entry is committed and
	// Apply has written it here (written is true). Any error ends the store. One that wraps ErrLost
	// leaves the DB as it is, and the group may still come by Apply, also after the store was closed.
	// Any other error fails the DB, too. Propose may keep the group. The store calls it from one
	// goroutine.
	Propose func(group []byte) (at uint64, err error)
}

// Lead opens a store over a replica for one term. Opening writes rows only when the replica is new
// (its format), or when a crash has left something half done. It uses Shards, Numbering and Registerer
// of c. Closing the store leaves the DB open. A replica whose tables are damaged where the store needs
// them does not lead: the error wraps ErrLost and the damage, and the DB goes on.
func (db *DB) Lead(l Lead, c Config) (*RunStore, error) {
	s, err := db.newStore(replicaLimits())
	if err != nil {
		return nil, err
	}
	s.epoch, s.replicated = l.Epoch, true
	s.commits = &proposedLog{lead: l}
	if err := s.start(c); err != nil {
		return nil, fmt.Errorf("lead from moment %d: %w", l.At, err)
	}
	db.verifier.suspect.Store(true) // a pass over all tables begins within a minute
	return s, nil
}

// verifyIndexTables verifies the tables that may have rows of types from typeKey on: which runs there
// are, and what a crash has left half done. The store that is being opened decides by them, and the rows
// of a damaged block would be missing without an error. Above all, the next run could get the ID of one
// that exists, and replace its rows on all replicas.
//
// A single node verifies all tables at that point. Here clients wait for the new leader, so two kinds of
// tables are left to the verifier's next runs. The rows of single runs are most of the bytes, and have
// witnesses when they are read (runReader.Load). Tables that the inventory lacks are about a minute old
// at most, and would cost six times as much (badgerguard.Verify).
func (db *DB) verifyIndexTables() error {
	if db.unverified {
		return nil
	}
	report, err := badgerguard.Verify(context.Background(), db.dir, badgerguard.VerifyOptions{Live: true, Known: db.skippedByLead()})
	if err == nil {
		for i := range report.Damage {
			db.reportDamage(&report.Damage[i])
		}
		err = report.Err()
	}
	if err != nil {
		return fmt.Errorf("%w: this replica is not fit to lead: %w", ErrLost, err)
	}
	return nil
}

// skippedByLead returns the tables that verifyIndexTables need not read.
func (db *DB) skippedByLead() map[uint64]badgerguard.Fingerprint {
	k := &db.verifier
	skip := map[uint64]badgerguard.Fingerprint{}
	k.writing.Lock()
	defer k.writing.Unlock()
	for _, t := range db.badger.Tables() {
		isKnown := false
		if k.known != nil {
			_, isKnown = k.known.Tables[t.ID]
		}
		if !isKnown || t.Right[0] < typeKey {
			skip[t.ID] = badgerguard.Fingerprint{}
		}
	}
	return skip
}

// proposedLog is the commit log of a store over a replica: a commit is an entry of the replicated
// log. The rows reach Badger by Apply, on the goroutine of the log, before Propose returns.
type proposedLog struct {
	lead   Lead
	record commitlog.RecordBuilder
}

// commit proposes the rows. The group is a new slice each time: the log may still send it to a slow
// replica when the next commit is under way.
func (l *proposedLog) commit(mutations []mutation, size int64) (number uint64, err error) {
	l.record.Reset()
	l.record.Grow(int(size))
	appendRows(&l.record, mutations)
	rows := l.record.Bytes()
	return l.lead.Propose(appendGroup(make([]byte, 0, groupHead+len(rows)+groupTail), l.lead.Epoch, rows))
}

func (l *proposedLog) applyToBadger() {} // Badger has the rows

func (l *proposedLog) waitApplied() {}
