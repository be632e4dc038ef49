package raftlog

import (
	"encoding/json"
	"fmt"

	"github.com/hashicorp/raft"
)

// A new group may begin with rows: those of a single server that becomes a cluster. Each voter's machine has
// the same rows before its replica is opened for the first time, and calls them those of entry 1. The first
// open writes a snapshot of entry 1, with the list of voters, in place of the first entry of the log. So no
// log ever has that entry, and a replica that begins without the rows (that of a node which replaces another
// one) gets them in a snapshot, never a log that lacks them.

// Seed describes the rows with which a new group begins. All voters have the same one.
type Seed struct {
	// Term is that of entry 1, at least 1. Epochs that the rows have are not above it, so that those of later
	// engines are.
	Term uint64
}

// SeedIndex is the entry whose rows a seed has.
const SeedIndex = 1

// seed writes the vote and the snapshot of a seeded group, if they are not there. A crash between the two
// leaves the term alone, and the next open goes on.
func (g *Group) seed(synced uint64) error {
	if len(g.config.Bootstrap) == 0 || g.config.Seed == nil {
		return nil
	}
	term := g.config.Seed.Term
	last, err := g.logs.LastIndex()
	if err != nil {
		return err
	}
	vote := g.votes.durableVote()
	if _, ok := g.snapshots.ownRecord(); ok || last > 0 || vote.Term > term || vote.VoteTerm > 0 {
		return nil
	}
	if term == 0 || synced != SeedIndex {
		return fmt.Errorf("term %d, and the machine has rows up to entry %d: want a term and the rows of entry %d", term, synced, SeedIndex)
	}
	if err := g.votes.SetUint64([]byte(keyCurrentTerm), term); err != nil {
		return err
	}
	return g.snapshots.writeSeed(&snapshotRecord{Index: SeedIndex, Term: term, Rows: SeedIndex,
		Configuration: raft.EncodeConfiguration(firstConfiguration(g.config.Bootstrap)), ConfigIndex: SeedIndex})
}

// writeSeed makes the first snapshot of a replica durable.
func (s *snapshotStore) writeSeed(record *snapshotRecord) error {
	text, err := json.Marshal(record)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := writeRecord(s.fsys, s.dir, snapshotFile, text); err != nil {
		return err
	}
	s.own = record
	return nil
}
