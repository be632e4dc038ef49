package persistence

import (
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence/badgerguard"
	"github.com/dgraph-io/badger/v4"
)

// TestRowsOfTheNextTermEndTheStore: a store that is still open when its replica applies rows of the
// next leader fails before a read sees them. Else a run that the next leader has deleted would look
// like damage, which stays for as long as the DB is open.
func TestRowsOfTheNextTermEndTheStore(t *testing.T) {
	log, former, s := leadReplica(t, Config{})
	next := openReplica(t, Config{Dir: t.TempDir()})
	log.join(next, 0)
	if err := appendAll(t, s, finishedRunBatch(0), finishedRunBatch(1)); err != nil {
		t.Fatal(err)
	}
	nextStore, err := next.Lead(log.takeOver(next), Config{})
	if err != nil {
		t.Fatal(err)
	}
	log.catchUp(former)
	if err := s.Err(); err != nil {
		t.Errorf("the term has begun, and has no rows yet: %v", err)
	}
	if err := nextStore.Delete([]messages.RunID{0}, 0); err != nil {
		t.Fatal(err)
	}
	log.catchUp(former)
	if _, err := s.Summary(0); !errors.Is(err, ErrLost) {
		t.Errorf("a read of the former leader: %v", err)
	}
	if err := s.Err(); !errors.Is(err, ErrLost) {
		t.Errorf("the store of the former leader: %v", err)
	}
	if err := errors.Join(former.Damaged(), former.Err()); err != nil {
		t.Errorf("the replica of the former leader: %v", err)
	}
	if err := errors.Join(nextStore.Close(), s.Close()); err != nil {
		t.Error(err)
	}
}

// TestFailedLeadFreesTheVerifier: the verifier asks the store over the DB which runs are durable. It
// must not wait for a store whose opening has failed.
func TestFailedLeadFreesTheVerifier(t *testing.T) {
	log := newReplicatedLog(t)
	db := openReplica(t, Config{Dir: t.TempDir()})
	log.join(db, 0)
	lead := log.takeOver(db)
	var opening *RunStore
	lead.Propose = func([]byte) (uint64, error) {
		opening = db.store.Load()
		return 0, fmt.Errorf("%w: injected", ErrLost)
	}
	if _, err := db.Lead(lead, Config{}); !errors.Is(err, ErrLost) {
		t.Fatal(err)
	}
	durable := make(chan error, 1)
	go func() {
		<-opening.loaded
		durable <- opening.waitDurable()
	}()
	select {
	case err := <-durable:
		if !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	case <-time.After(testenv.Patience):
		t.Error("the verifier waits for ever")
	}
}

// TestFailedLeadKeepsWriteNumbers: an opening that fails early does not give write numbers of its
// term free. The next store would overwrite attempt rows.
func TestFailedLeadKeepsWriteNumbers(t *testing.T) {
	log := newReplicatedLog(t)
	db := openReplica(t, Config{Dir: t.TempDir()})
	log.join(db, 0)
	log.takeOver(db)
	for attempt := range uint32(2) {
		if attempt == 1 {
			if s, err := db.Lead(log.lead(), Config{Shards: 3}); err == nil {
				s.Close()
				t.Fatal("a wrong number of shards is accepted")
			}
		}
		s, err := db.Lead(log.lead(), Config{})
		if err != nil {
			t.Fatal(err)
		}
		b := &Batch{Run: 1, Seq: uint64(attempt + 1), Records: []byte("x"), Attempts: []messages.AttemptRecord{{Task: 5, Attempt: attempt + 1}},
			Summary: &messages.Summary{ID: 1, State: dag.RunRunning}}
		if attempt == 0 {
			b.Create = &Creation{Definition: []byte("spec")}
		}
		if err := appendAll(t, s, b); err != nil {
			t.Fatal(err)
		}
		n := uint32(0)
		if err := s.Attempts(1, 0, 10, func(*messages.AttemptRecord) bool { n++; return true }); err != nil || n != attempt+1 {
			t.Errorf("%d attempts, want %d: %v", n, attempt+1, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestBlockedLogDoesNotHoldUpEntries: a replica whose store ends because another node leads applies the
// entry all the same, however long the reader of the log takes.
func TestBlockedLogDoesNotHoldUpEntries(t *testing.T) {
	blocked := blockedLog{slog.DiscardHandler, make(chan struct{}, 10), make(chan struct{})}
	log, former, s := leadReplica(t, Config{Logger: slog.New(blocked)})
	next := openReplica(t, Config{Dir: t.TempDir()})
	log.join(next, 0)
	nextStore, err := next.Lead(log.takeOver(next), Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := appendAll(t, nextStore, finishedRunBatch(0)); err != nil {
		t.Fatal(err)
	}
	applied := make(chan struct{})
	go func() {
		log.catchUp(former)
		close(applied)
	}()
	select {
	case <-applied:
	case <-blocked.reached:
		t.Error("the entry waits for a line of the log")
	}
	close(blocked.released)
	<-applied
	if err := s.Err(); !errors.Is(err, ErrLost) {
		t.Errorf("the store of the former leader: %v", err)
	}
	if err := errors.Join(nextStore.Close(), s.Close()); err != nil {
		t.Error(err)
	}
}

// TestLeadWaitsForTheEntryBeingApplied: no store begins in the middle of an entry, whose rows it would
// neither read nor be told. A Lead of a former term is refused, also when the entry that ends the term
// comes in the same moment.
func TestLeadWaitsForTheEntryBeingApplied(t *testing.T) {
	log, db, s := leadReplica(t, Config{})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	lead := log.takeOver(db)
	var later proposedLog
	later.record.Reset()
	appendRows(&later.record, []mutation{sealRow([]byte("?row"), []byte("of the next leader"))})
	held, released := make(chan struct{}), make(chan struct{})
	write := db.writer.writeRows
	db.writer.writeRows = func(mutations []mutation, number uint64, done func(error)) {
		write(mutations, number, func(err error) {
			close(held)
			<-released
			done(err)
		})
	}
	applied, led := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := db.Apply(lead.At+1, lead.Epoch+1, appendGroup(nil, lead.Epoch+1, later.record.Bytes()))
		applied <- err
	}()
	<-held
	go func() {
		s, err := db.Lead(lead, Config{})
		if err == nil {
			s.Close()
		}
		led <- err
	}()
	select {
	case err := <-led:
		t.Errorf("Lead returns %v before the entry is whole", err)
		led <- err
	case <-time.After(100 * time.Millisecond): // it takes a few of them
	}
	close(released)
	if err := <-applied; err != nil {
		t.Error(err)
	}
	if err := <-led; err == nil {
		t.Error("a former term is led, after rows of a later one")
	}
}

// TestLeadHasTablesVerified: a store trusts tables that were verified when the replica was opened, which
// may be long ago. So all are verified again soon after.
func TestLeadHasTablesVerified(t *testing.T) {
	ticks, passes := make(chan time.Time), make(chan bool, 10)
	clock := verifyClock{ticks: ticks, looked: func(whole bool, _ *badgerguard.Report, _ error) { passes <- whole }}
	log := newReplicatedLog(t)
	db := openReplica(t, Config{Dir: t.TempDir(), clock: clock})
	log.join(db, 0)
	ticks <- time.Now()
	if <-passes {
		t.Error("the first run after the open reads all tables again")
	}
	s, err := db.Lead(log.takeOver(db), Config{clock: clock})
	if err != nil {
		t.Fatal(err)
	}
	ticks <- time.Now()
	if !<-passes {
		t.Error("the first run after Lead does not read all tables")
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestDamagedReplicaDoesNotLead: the rows of a block that has rotted since the open are missing without an
// error. A store that decides by them could give a new run the ID of one that exists. Tables that have
// rows of single runs only are not waited for.
func TestDamagedReplicaDoesNotLead(t *testing.T) {
	t.Parallel()
	log, db, s := leadReplica(t, Config{})
	tableOf := func(singleRuns bool) *badger.TableInfo {
		for _, table := range db.badger.Tables() {
			if (table.Right[0] < typeKey) == singleRuns {
				return &table
			}
		}
		return nil
	}
	fillTables(t, db, s) // the first one has the format
	fillTables(t, db, s)
	if tableOf(true) == nil || tableOf(false) == nil {
		t.Fatal("the tables are not those that this test needs")
	}
	if _, _, err := db.verifyOpenTables(t.Context()); err != nil { // as the verifier does once a minute
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	damageTable(t, db, *tableOf(true))
	s, err := db.Lead(log.takeOver(db), Config{})
	if err != nil {
		t.Fatalf("rows of single runs are damaged: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	damageTable(t, db, *tableOf(false))
	var damage *badgerguard.Damage
	if s, err := db.Lead(log.takeOver(db), Config{}); err == nil {
		s.Close()
		t.Error("a damaged replica leads")
	} else if !errors.Is(err, ErrLost) || !errors.As(err, &damage) {
		t.Errorf("the error does not say why another replica should lead: %v", err)
	}
	if err := db.Err(); err != nil {
		t.Errorf("the replica does not go on: %v", err)
	}
	if err := db.Damaged(); err == nil {
		t.Error("the damage is not reported")
	}
}

// TestLateFailureLeavesTheNextStoreAlone: the alarm of a commit that did not end may come when its store
// is closed, and the next one is open. Reads of that one wait for announced commits all the same.
func TestLateFailureLeavesTheNextStoreAlone(t *testing.T) {
	log, db, former := leadReplica(t, Config{})
	if err := former.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := db.Lead(log.takeOver(db), Config{})
	if err != nil {
		t.Fatal(err)
	}
	former.stall.alarm(stallLimit)
	if err := former.Err(); !errors.Is(err, ErrLost) {
		t.Errorf("the former store: %v", err)
	}
	if err := appendAll(t, s, finishedRunBatch(0)); err != nil {
		t.Error(err)
	}
	s.timestamps.mu.Lock()
	if s.timestamps.closed {
		t.Error("reads of the next store do not wait")
	}
	s.timestamps.mu.Unlock()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
