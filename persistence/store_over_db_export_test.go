package persistence

import (
	"fmt"
	"sync"
	"testing"
)

// OpenSecondStore opens a DB of a single node, and the second store over it: the first one is
// closed.
func OpenSecondStore(c Config) (*RunStore, error) {
	s, err := OpenStore(c)
	if err != nil {
		return nil, err
	}
	return NextStore(s)
}

// NextStore closes a store, but not its DB, and opens the next one over that.
func NextStore(s *RunStore) (*RunStore, error) {
	s.ownsDB = false
	if err := s.Close(); err != nil {
		return nil, err
	}
	next, err := s.db.openStore(Config{Dir: s.db.dir, Numbering: s.numbering})
	if err == nil {
		next.ownsDB = true
	}
	return next, err
}

// ReplicatedStore is a store over one of the replicas of a log. It can be held in the middle of a
// commit.
type ReplicatedStore struct {
	*RunStore
	log      *replicatedLog
	replicas []*DB
	leader   int
}

// OpenReplicated makes two new replicas and opens a store over one of them.
func OpenReplicated(t testing.TB) *ReplicatedStore {
	t.Helper()
	return openReplicated(t, newReplicatedLog(t), 2)
}

// openReplicated opens new replicas of a log, which apply what it has.
func openReplicated(t testing.TB, log *replicatedLog, n int) *ReplicatedStore {
	t.Helper()
	r := &ReplicatedStore{log: log}
	for range n {
		db := openReplica(t, Config{Dir: t.TempDir(), memTable: replicaMemTable})
		log.join(db, 0)
		r.replicas = append(r.replicas, db)
	}
	return r.lead(t)
}

// lead opens the store of a new term over the next replica.
func (r *ReplicatedStore) lead(t testing.TB) *ReplicatedStore {
	t.Helper()
	next := &ReplicatedStore{log: r.log, replicas: r.replicas, leader: (r.leader + 1) % len(r.replicas)}
	db := next.replicas[next.leader]
	s, err := db.Lead(r.log.takeOver(db), Config{})
	if err != nil {
		t.Fatal(err)
	}
	next.RunStore = s
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return next
}

// Next closes the store. The next replica leads.
func (r *ReplicatedStore) Next(t testing.TB) *ReplicatedStore {
	t.Helper()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	return r.lead(t)
}

// Crash has the next replica lead while the store is open, which is lost then. Its replica starts
// again with what a kill leaves.
func (r *ReplicatedStore) Crash(t testing.TB) *ReplicatedStore {
	t.Helper()
	next := r.lead(t)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	next.replicas[r.leader] = crashReplica(t, r.log, r.replicas[r.leader])
	return next
}

// FailNext makes the next proposal fail.
func (r *ReplicatedStore) FailNext() {
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	r.log.fail = fmt.Errorf("%w: injected by the test", ErrLost)
}

// HoldAfterAppend sets where HoldCommit holds a commit: when the log has its group, and before the
// leader applies it. Else it is before the log has the group.
func (r *ReplicatedStore) HoldAfterAppend() *ReplicatedStore {
	r.log.gate.afterAppend = true
	return r
}

// HoldCommit makes the n-th proposal from now wait.
func (r *ReplicatedStore) HoldCommit(n int) (held <-chan struct{}) { return r.log.gate.hold(n) }

// ReleaseCommits ends HoldCommit.
func (r *ReplicatedStore) ReleaseCommits() { r.log.gate.release() }

// OpenCrashed opens what the other replicas have when this one is gone: a new one, made of the
// entries that the log has.
func (r *ReplicatedStore) OpenCrashed(t testing.TB) *ReplicatedStore {
	t.Helper()
	log := newReplicatedLog(t)
	r.log.mu.Lock()
	log.entries, log.term = append(log.entries, r.log.entries...), r.log.term
	r.log.mu.Unlock()
	return openReplicated(t, log, 1)
}

// proposalGate holds a proposal.
type proposalGate struct {
	afterAppend bool

	mu       sync.Mutex
	left     int // proposals until one is held; 0 = none is to be held
	held     chan struct{}
	released chan struct{}
}

func (g *proposalGate) hold(n int) <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.left, g.held, g.released = n, make(chan struct{}), make(chan struct{})
	return g.held
}

func (g *proposalGate) release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.left = 0
	if g.released != nil {
		close(g.released)
		g.released = nil
	}
}

// pass waits if the proposal is to be held here.
func (g *proposalGate) pass(afterAppend bool) {
	if g.afterAppend != afterAppend {
		return
	}
	g.mu.Lock()
	released := g.released
	reached := g.left == 1
	if g.left > 0 {
		g.left--
	}
	if reached {
		close(g.held)
	}
	g.mu.Unlock()
	if reached {
		<-released
	}
}
