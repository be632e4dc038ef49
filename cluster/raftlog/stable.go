package raftlog

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/caravan-dag/caravan/internal/vfs"
)

const voteFile = "vote"

// Keys of the library's StableStore, see Raft.persistVote and Raft.setCurrentTerm there. An unknown key is
// an error: a new release that keeps something else here must be read before it is used.
const (
	keyCurrentTerm   = "CurrentTerm"
	keyVoteTerm      = "LastVoteTerm"
	keyVoteCandidate = "LastVoteCand"
)

// vote is the content of the vote file, as JSON.
type vote struct {
	Term      uint64 `json:"term"`                // the highest term that this replica has seen
	VoteTerm  uint64 `json:"voteTerm,omitempty"`  // the term of its last vote; 0: it never voted
	Candidate []byte `json:"candidate,omitempty"` // the address that got it
}

// voteStore keeps the term and the vote of a replica. The library writes a vote by two calls, first its
// term and then its candidate, each durable on its own. A crash between the two would leave the new
// term with the former candidate, and after the restart the former candidate would get the vote of the
// new term without a look at its log (hashicorp/raft issue 661; Raft.requestVote takes it for a
// repeated request). voteStore keeps the term of a vote in memory until its candidate arrives, and
// writes both at once.
//
// The methods are called by the goroutine of the library's main loop, by the goroutines of heartbeats
// (which may raise the term), and by Open.
type voteStore struct {
	fsys vfs.FS
	dir  string
	// fail ends the group. It is called with the lock held, so it must neither block nor call back.
	fail func(error)
	// started is set when the library's goroutines run. See SetUint64.
	started atomic.Bool

	mu      sync.Mutex
	durable vote
	pending uint64 // the term of a vote whose candidate has not arrived
	latched error  // the first error of a write; all later writes return it
	exists  bool   // whether the file was ever written
}

var _ raft.StableStore = (*voteStore)(nil)

// openVotes reads the vote file. A missing file is a replica that never voted.
func openVotes(fsys vfs.FS, dir string, fail func(error)) (*voteStore, error) {
	s := &voteStore{fsys: fsys, dir: dir, fail: fail}
	record, err := readRecord(fsys, dir, voteFile)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(record, &s.durable)
	}
	if err != nil {
		return nil, fmt.Errorf("vote of the replica: %w", err)
	}
	s.exists = true
	return s, nil
}

// Set stores the candidate of the vote whose term came before.
func (s *voteStore) Set(key, value []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if string(key) != keyVoteCandidate || s.pending == 0 {
		return fmt.Errorf("unexpected write of %q to the stable store", key)
	}
	next := s.durable
	next.VoteTerm, next.Candidate, s.pending = s.pending, append([]byte(nil), value...), 0
	return s.writeLocked(next)
}

// SetUint64 stores the term of the replica, or keeps the term of a vote until Set.
//
// If the term cannot be stored, SetUint64 ends the group and the calling goroutine. The library would
// panic in its own goroutine (Raft.setCurrentTerm), where the panic cannot be recovered, and so end
// the process with all its other groups before they have handed over. runtime.Goexit runs the
// library's deferred functions: they answer the request with a refusal and count the goroutine as
// ended, so that Shutdown returns. TestFailedTermEndsTheReplica fails if a new release does not.
func (s *voteStore) SetUint64(key []byte, value uint64) error {
	s.mu.Lock()
	switch string(key) {
	case keyVoteTerm:
		s.pending = value
		s.mu.Unlock()
		return nil
	case keyCurrentTerm:
		if s.exists && value == s.durable.Term && s.latched == nil { // NewRaft writes back what it has read
			s.mu.Unlock()
			return nil
		}
		next := s.durable
		next.Term = value
		err := s.writeLocked(next)
		s.mu.Unlock()
		if err != nil && s.started.Load() {
			runtime.Goexit()
		}
		return err
	}
	s.mu.Unlock()
	return fmt.Errorf("unexpected write of %q to the stable store", key)
}

// writeLocked makes a vote durable. It latches the first error: after a failed sync the kernel may
// report success for the next one, and the vote would still be lost.
func (s *voteStore) writeLocked(next vote) error {
	if s.latched != nil {
		return s.latched
	}
	record, err := json.Marshal(next)
	if err == nil {
		err = writeRecord(s.fsys, s.dir, voteFile, record)
	}
	if err != nil {
		s.latched = fmt.Errorf("vote of the replica: %w", err)
		s.fail(s.latched)
		return s.latched
	}
	s.durable, s.exists = next, true
	return nil
}

// Get returns the candidate of the last durable vote, or nil.
func (s *voteStore) Get(key []byte) ([]byte, error) {
	if string(key) != keyVoteCandidate {
		return nil, fmt.Errorf("unexpected read of %q from the stable store", key)
	}
	return s.durableVote().Candidate, nil
}

// GetUint64 returns the term of the replica or of its last durable vote. A pending vote does not
// count: its write may fail.
func (s *voteStore) GetUint64(key []byte) (uint64, error) {
	switch string(key) {
	case keyCurrentTerm:
		return s.durableVote().Term, nil
	case keyVoteTerm:
		return s.durableVote().VoteTerm, nil
	}
	return 0, fmt.Errorf("unexpected read of %q from the stable store", key)
}

func (s *voteStore) durableVote() vote {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.durable
}

// isOld reports whether the replica has run before, and so may have confirmed a leader.
func (s *voteStore) isOld() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.durable.VoteTerm > 0 || s.durable.Term > 1
}
