package persistence

import (
	"fmt"
	"slices"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/dgraph-io/badger/v4"
)

// A read does not wait for the commit that is under way, and sees nothing of it.
func TestReadsDoNotWaitForCommits(t *testing.T) {
	s, err := OpenStore(WithSmallMemtables(Config{Dir: t.TempDir()}))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	put := func(val string) {
		done := make(chan error, 1)
		s.queue.push(&pendingBatch{mutations: []mutation{sealRow([]byte("?key"), []byte(val))}, done: func(err error) { done <- err }})
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	put("one")
	// A commit whose rows are in the tree already, and that is not durable yet.
	at := next(s)
	if err := write(s, []mutation{sealRow([]byte("?key"), []byte("two"))}, at); err != nil {
		t.Fatal(err)
	}
	if v, err := s.getRow([]byte("?key")); err != nil || string(v) != "one" {
		t.Errorf("before it is durable: %q, %v", v, err)
	}
	s.db.badger.SetDiscardTs(s.timestamps.publish(at, nil))
	if v, err := s.getRow([]byte("?key")); err != nil || string(v) != "two" {
		t.Errorf("after: %q, %v", v, err)
	}
}

// next is the number of the next commit, once Badger has all before it.
func next(s *RunStore) uint64 {
	_ = s.db.writer.wait()
	return s.timestamps.published + 1
}

// What a read that is under way sees stays, whatever is written and compacted
// meanwhile.
func TestReadKeepsItsTimestamp(t *testing.T) {
	s, err := OpenStore(Config{Dir: t.TempDir(), memTable: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	writeRound := func(round int) {
		ops := make([]mutation, 100)
		for i := range ops {
			ops[i] = sealRow(fmt.Appendf(nil, "?%03d", i), fmt.Appendf(nil, "%d %0900d", round, i))
		}
		if err := s.commitRows(ops); err != nil { // bare rows, as deletions are
			t.Fatal(err)
		}
	}
	writeRound(0)
	err = s.view(func(txn *badger.Txn) error {
		for round := 1; round <= 200; round++ {
			writeRound(round)
		}
		if err := s.db.badger.Flatten(2); err != nil {
			return err
		}
		for i := range 100 {
			v, err := getRowTxn(txn, fmt.Appendf(nil, "?%03d", i))
			if err != nil || string(v) != fmt.Sprintf("0 %0900d", i) {
				return fmt.Errorf("row %d is %.20q, %v", i, v, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	writeRound(201)
	if v, err := s.getRow([]byte("?007")); err != nil || string(v) != fmt.Sprintf("201 %0900d", 7) {
		t.Errorf("now: %.20q, %v", v, err)
	}
}

func TestPublishReturnsTheOldestTimestamp(t *testing.T) {
	m := newReadTimestamps()
	m.publish(7, nil)
	a := m.acquire()
	if oldest := m.publish(8, nil); oldest != 7 {
		t.Errorf("oldest %d while 7 is read", oldest)
	}
	b, c := m.acquire(), m.acquire()
	m.release(a)
	if oldest := m.publish(9, nil); oldest != 8 || b != 8 || c != 8 {
		t.Errorf("oldest %d while %d and %d are read", oldest, b, c)
	}
	m.release(b)
	m.release(c)
	if oldest := m.publish(10, nil); oldest != 10 || len(m.active) != 0 {
		t.Errorf("oldest %d with nobody reading, %v", oldest, m.active)
	}
}

// A list sees each run once while a commit that finishes one, or restarts one, is under
// way, and whatever is encoded behind it.
func TestListsDoNotWaitForCommits(t *testing.T) {
	s, err := OpenStore(WithSmallMemtables(Config{Dir: t.TempDir()}))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	encode := func(run messages.RunID, state dag.RunState, c *Creation) []mutation {
		g := new(writeGroup)
		b := &Batch{Run: run, Create: c, Summary: &messages.Summary{ID: run, Tag: "t", State: state}}
		if err := s.encoder.encodeBatch(g, &pendingBatch{batch: b}); err != nil {
			t.Fatal(err)
		}
		return g.mutations
	}
	list := func() (runs string) {
		t.Helper()
		err := s.Summaries(messages.ListQuery{All: true, HasTag: true, Tag: "t"}, func(sum *messages.Summary) bool {
			runs += fmt.Sprintf(" %d:%s", sum.ID, sum.State)
			return true
		})
		if err != nil {
			t.Error(err)
		}
		return runs
	}
	now := " "
	check := func(what string) {
		t.Helper()
		if got := list(); got != now {
			t.Errorf("%s:%s, want%s", what, got, now)
		}
	}
	commit := func(what string, ops []mutation, then string) {
		t.Helper()
		at := next(s)
		if err := write(s, ops, at); err != nil {
			t.Fatal(err)
		}
		check(what + ", not durable yet")
		s.timestamps.publish(at, ops)
		now = then
		check(what + ", durable")
	}
	now = ""
	var created []mutation
	for run := range messages.RunID(3) {
		created = append(created, encode(run, dag.RunQueued, &Creation{Definition: []byte("spec")})...)
	}
	commit("three are created", created, " 0:QUEUED 1:QUEUED 2:QUEUED")
	// A run changes back and forth in groups that are encoded while the one before is written.
	end := encode(1, dag.RunErrored, nil)
	restart := encode(1, dag.RunQueued, nil)
	endAgain := encode(1, dag.RunKilled, nil)
	restartAgain := encode(1, dag.RunRunning, nil)
	commit("one ends", end, " 0:QUEUED 1:ERRORED 2:QUEUED")
	commit("and is restarted", restart, " 0:QUEUED 1:QUEUED 2:QUEUED")
	commit("and ends again", endAgain, " 0:QUEUED 1:KILLED 2:QUEUED")
	commit("and is restarted again", restartAgain, " 0:QUEUED 1:RUNNING 2:QUEUED")
	// The same, all in one group.
	commit("all at once", slices.Concat(encode(2, dag.RunErrored, nil), encode(2, dag.RunQueued, nil), encode(2, dag.RunKilled, nil)),
		" 0:QUEUED 1:RUNNING 2:KILLED")
	if live := s.timestamps.unfinished.firstFrom(0, 10); !slices.Equal(live, []messages.RunID{0, 1}) {
		t.Errorf("unfinished are %d", live)
	}
}

// TestReadSeesAnnouncedCommits: a read that begins when somebody was told of a commit waits until
// that can be read; one that began before does not. When the store has failed nobody waits.
func TestReadSeesAnnouncedCommits(t *testing.T) {
	m := newReadTimestamps()
	m.publish(1, nil)
	m.announce(2)
	began := make(chan uint64)
	go func() { began <- m.acquire() }()
	select {
	case at := <-began:
		t.Fatalf("a read of %d, though 2 was told", at)
	default:
	}
	m.publish(2, nil)
	if at := <-began; at != 2 {
		t.Errorf("a read of %d, want 2", at)
	}
	m.announce(3)
	go func() { began <- m.acquire() }()
	m.stopWaiting(0)
	if at := <-began; at != 2 {
		t.Errorf("a read of %d in a failed store, want 2", at)
	}
}

// TestReadWaitsForBadger: an append is answered when the log has it, although it cannot be read
// yet; who was answered reads it nevertheless.
func TestReadWaitsForBadger(t *testing.T) {
	s, err := OpenStore(WithSmallMemtables(Config{Dir: t.TempDir()}))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	behind := make(chan struct{})
	applied := s.db.writer.onApplied
	s.db.writer.onApplied = func(at uint64, ops []mutation) {
		go func() {
			<-behind
			applied(at, ops)
		}()
	}
	done := make(chan error, 1)
	s.queue.push(&pendingBatch{mutations: []mutation{sealRow([]byte("?key"), []byte("one"))}, done: func(err error) { done <- err }})
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	read := make(chan string, 1)
	go func() {
		v, err := s.getRow([]byte("?key"))
		read <- fmt.Sprint(string(v), err)
	}()
	select {
	case got := <-read:
		t.Errorf("read %s before Badger has it", got)
	default:
	}
	close(behind)
	if got := <-read; got != "one<nil>" {
		t.Errorf("read %s behind an answered append", got)
	}
}
