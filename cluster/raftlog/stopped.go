package raftlog

import (
	"fmt"
	"log/slog"

	"github.com/hashicorp/raft"
)

// Stopped is a replica that has left its group: that of a cluster which has lost most of its nodes for good. Its files are read, and its log is applied to its machine to the end, also where it is
// unknown whether an entry was committed.
//
// It opens the files as Open does, which may finish what a crash has left, so the caller gives it a copy of
// them. It refuses the same replicas as Open.
type Stopped struct {
	group *Group
	// Index and Term are those of the last entry, or of the snapshot when the log is empty.
	Index, Term uint64
	// Vote is the newest term that the replica knows.
	Vote uint64
	// Synced is the entry up to which the machine has its rows: the entries up to there were committed.
	Synced uint64
	// Voters are those of the newest configuration that the replica has.
	Voters []NodeID
}

// OpenStopped opens the copy of a replica's files in dir, over the machine with its rows. The caller closes it.
func OpenStopped(dir string, machine Machine) (*Stopped, error) {
	g := &Group{config: Config{Dir: dir, Machine: machine}, settings: DefaultSettings(), logger: slog.New(slog.DiscardHandler), failing: make(chan struct{})}
	g.watch = newWatch(&g.settings)
	s := &Stopped{group: g}
	err := g.openFiles()
	if err == nil {
		err = s.readEnd()
	}
	if err != nil {
		err = fmt.Errorf("replica in %s: %w", dir, err)
		if g.logs != nil {
			g.logs.close()
		}
		return nil, err
	}
	return s, nil
}

// readEnd finds out how far the replica is.
func (s *Stopped) readEnd() error {
	g := s.group
	own, hasSnapshot := g.snapshots.ownRecord()
	s.Index, s.Term, s.Vote = own.Index, own.Term, g.votes.durableVote().Term
	var err error
	if s.Synced, err = g.config.Machine.Sync(); err != nil {
		return err
	}
	var members raft.Configuration
	if hasSnapshot {
		members = own.members().configuration
	}
	err = s.eachEntry(func(log *raft.Log) error {
		s.Index, s.Term = log.Index, log.Term
		if log.Type == raft.LogConfiguration {
			members = raft.DecodeConfiguration(log.Data)
		}
		return nil
	})
	for _, server := range members.Servers {
		if server.Suffrage == raft.Voter {
			s.Voters = append(s.Voters, NodeID(server.ID))
		}
	}
	return err
}

// eachEntry calls yield for the entries of the log after the snapshot.
func (s *Stopped) eachEntry(yield func(*raft.Log) error) error {
	own, _ := s.group.snapshots.ownRecord()
	last, err := s.group.logs.LastIndex()
	if err != nil {
		return err
	}
	for index := own.Index + 1; index <= last; index++ {
		var log raft.Log
		if err := s.group.logs.GetLog(index, &log); err != nil {
			return fmt.Errorf("entry %d: %w", index, err)
		}
		if err := yield(&log); err != nil {
			return fmt.Errorf("entry %d: %w", index, err)
		}
	}
	return nil
}

// ApplyAll applies the log to its end. The fence holds: an entry of an engine that had lost its term changes no
// row.
func (s *Stopped) ApplyAll() error {
	return s.eachEntry(func(log *raft.Log) error {
		if log.Type != raft.LogCommand {
			return nil
		}
		e, err := decodeEntry(log.Data)
		if err != nil || e.kind != rowsEntry || e.isFenced(log.Term) {
			return err
		}
		return s.group.config.Machine.Apply(log.Index, log.Term, e.body)
	})
}

// Close closes the files.
func (s *Stopped) Close() error { return s.group.logs.close() }
