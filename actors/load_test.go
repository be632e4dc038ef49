package actors

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// slowLoads is a store that loads some runs when the test says so.
type slowLoads struct {
	persistence.Store
	mu      sync.Mutex
	slow    map[messages.RunID]bool
	fails   map[messages.RunID]error // or a string, to panic with
	panics  map[messages.RunID]bool
	begun   chan messages.RunID
	proceed chan struct{}
}

func newSlowLoads(slow ...messages.RunID) *slowLoads {
	s := &slowLoads{slow: map[messages.RunID]bool{}, fails: map[messages.RunID]error{}, panics: map[messages.RunID]bool{},
		begun: make(chan messages.RunID, 100), proceed: make(chan struct{})}
	for _, id := range slow {
		s.slow[id] = true
	}
	return s
}

func (s *slowLoads) Load(id messages.RunID) (*persistence.Stored, error) {
	s.mu.Lock()
	slow, err, panics := s.slow[id], s.fails[id], s.panics[id]
	s.mu.Unlock()
	if slow {
		s.begun <- id
		<-s.proceed
	}
	if panics {
		panic("damaged")
	}
	if err != nil {
		return nil, err
	}
	return s.Store.Load(id)
}

// withSlowLoads makes the rig's store one that is slow to load some runs, from the next start on.
func (r *rig) withSlowLoads(slow ...messages.RunID) *slowLoads {
	s := newSlowLoads(slow...)
	r.wrap = func(inner persistence.Store) persistence.Store {
		s.Store = inner
		return s
	}
	return s
}

// However many runs are being loaded, others go on; what is asked of one that is being
// loaded waits, a kill first.
func TestLoadsDoNotDelayOtherRuns(t *testing.T) {
	r, _ := durable(t)
	many := messages.RunID(8 * runtime.GOMAXPROCS(0))
	var ids []messages.RunID
	for range many {
		id := r.submit(`{"tasks":{"a":{"job":{"command":["a"],"cores":0.01}},"b":{"job":{"command":["b"],"cores":0.01},"parents":["a"]}}}`)
		r.fake.End(r.order(2*len(ids)+1), messages.AttemptSucceeded, 0)
		ids = append(ids, id)
		r.fake.WaitOrders(t, 2*len(ids)) // its second task is under way
	}
	store := r.withSlowLoads(ids...)
	r.crash()
	for range runtime.GOMAXPROCS(0) {
		<-store.begun
	}
	// The loads have all their places, and no goroutine of the actors.
	killed := &messages.SetState{Run: ids[0], To: dag.RunKilled, Reply: messages.NewReply[struct{}]()}
	paused := &messages.SetState{Run: ids[0], To: dag.RunPaused, Reply: messages.NewReply[struct{}]()}
	r.node.env.root.Send(r.node.shard(ids[0]), killed)
	r.node.env.root.Send(r.node.shard(ids[0]), paused)
	fresh := r.submit(single)
	if v, err := r.node.View(t.Context(), fresh, 0, 1); err != nil || v.State != dag.RunQueued { // its actor answers
		t.Fatalf("%+v, %v", v, err)
	}
	if err := r.node.KillTask(t.Context(), fresh, "a"); err != nil {
		t.Fatal(err)
	}
	r.awaitState(fresh, dag.RunKilled)
	select {
	case a := <-killed.Reply:
		t.Fatalf("a run that is not loaded answers: %v", a.Err)
	default:
	}
	close(store.proceed)
	if a := <-killed.Reply; a.Err != nil {
		t.Error(a.Err)
	}
	if a := <-paused.Reply; code(a.Err) != messages.Conflict {
		t.Errorf("a pause behind the kill: %v", a.Err)
	}
	r.awaitState(ids[0], dag.RunKilled)
	for _, id := range ids[1:] {
		r.fake.End(messages.AttemptKey{Run: id, Task: 1, Attempt: 1}, messages.AttemptSucceeded, 0)
		r.awaitState(id, dag.RunCompleted)
	}
}

// A run that cannot be loaded says so, and why; others go on.
func TestLoadThatFails(t *testing.T) {
	for name, how := range map[string]func(*slowLoads){
		"fails":  func(s *slowLoads) { s.fails[0] = errors.New("block 7 is damaged") },
		"panics": func(s *slowLoads) { s.panics[0] = true },
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := durable(t)
			r.submit(single)
			r.order(1)
			other := r.submit(single)
			r.order(2)
			store := r.withSlowLoads(0)
			how(store)
			r.crash()
			<-store.begun
			asked := &messages.SetState{Run: 0, To: dag.RunKilled, Reply: messages.NewReply[struct{}]()}
			r.node.env.root.Send(r.node.shard(0), asked)
			r.drainShard(0)
			close(store.proceed)
			for range 2 {
				a := <-asked.Reply
				if code(a.Err) != messages.Internal || !strings.Contains(a.Err.Error(), "run 0 cannot be loaded: ") || !strings.Contains(a.Err.Error(), "damaged") {
					t.Errorf("%v", a.Err)
				}
				asked.Reply = messages.NewReply[struct{}]()
				r.node.env.root.Send(r.node.shard(0), asked)
			}
			r.fake.End(messages.AttemptKey{Run: other, Attempt: 1}, messages.AttemptSucceeded, 0)
			r.awaitState(other, dag.RunCompleted)
			if err := r.node.Err(); err != nil {
				t.Error(err)
			}
			next := r.submit(single) // nothing is waited for that is not known
			r.fake.WaitOrders(t, 4)
			if err := r.node.Kill(t.Context(), next); err != nil {
				t.Error(err)
			}
		})
	}
}

// Requests for a run that is being loaded are bounded.
func TestRequestsDuringALoadAreBounded(t *testing.T) {
	r, _ := durable(t)
	id := r.submit(single)
	r.order(1)
	store := r.withSlowLoads(id)
	r.crash()
	<-store.begun
	replies := make(messages.Reply[*messages.View], maxQueuedRequests+2)
	for range maxQueuedRequests + 2 {
		r.node.env.root.Send(r.node.shard(id), &messages.GetView{Run: id, N: 1, Reply: replies})
	}
	for range 2 {
		if a := <-replies; code(a.Err) != messages.Unavailable {
			t.Fatalf("%v", a.Err)
		}
	}
	// What a former incarnation has sent to itself finds nothing to be flushed.
	name := fmt.Sprintf("node/shard-%d/run-%d.%d", id%Shards, id, r.node.env.epochs.Load())
	r.node.env.root.Send(actor.NewPID(r.node.root.Address, name), &messages.FlushBatch{})
	r.node.env.root.Send(actor.NewPID(r.node.root.Address, name), &messages.Passivate{})
	close(store.proceed)
	for range maxQueuedRequests {
		if a := <-replies; a.Err != nil {
			t.Fatal(a.Err)
		}
	}
	if n := counted(t, r.node.env.metrics.panics); n != 0 {
		t.Errorf("%v panics", n)
	}
}

// longDocument is a definition that is read when the test says so.
type longDocument struct {
	text    string
	begun   chan struct{}
	proceed chan struct{}
}

func (d *longDocument) Size() int64 { return int64(len(d.text)) }

func (d *longDocument) Open() (io.ReadCloser, error) {
	d.begun <- struct{}{}
	<-d.proceed
	return io.NopCloser(strings.NewReader(d.text)), nil
}

// longLoads is a store in which the first runs have long documents.
type longLoads struct {
	persistence.Store
	runs int
	doc  *longDocument
}

func (s *longLoads) Load(id messages.RunID) (*persistence.Stored, error) {
	stored, err := s.Store.Load(id)
	if err == nil && int(id) < s.runs {
		doc := *s.doc
		doc.text = string(stored.Definition)
		stored.Definition, stored.Long = nil, &doc
	}
	return stored, err
}

// What a run with a long document holds is not waited for, nor do loads wait behind it.
func TestGrantsDoNotWaitForALongDocument(t *testing.T) {
	r, _ := durable(t)
	long := runtime.GOMAXPROCS(0) // as many as there are places
	for range long + 1 {
		r.submit(`{"tasks":{"a":{"job":{"command":["a"],"cores":0.01}}}}`)
	}
	small := messages.RunID(long)
	r.fake.WaitOrders(t, long+1)
	doc := &longDocument{begun: make(chan struct{}, long), proceed: make(chan struct{})}
	proceed := sync.OnceFunc(func() { close(doc.proceed) })
	defer proceed()
	r.wrap = func(inner persistence.Store) persistence.Store { return &longLoads{inner, long, doc} }
	r.crash()
	<-doc.begun
	r.fake.End(messages.AttemptKey{Run: small, Attempt: 1}, messages.AttemptSucceeded, 0)
	r.awaitState(small, dag.RunCompleted)
	next := r.submit(single)
	for end := time.Now().Add(soon); len(r.node.env.loader.permits) > 0; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("long documents hold %d places of loads", len(r.node.env.loader.permits))
		}
	}
	if k := r.order(long + 3); k.Run != next { // those of before, and small's again
		t.Errorf("order %v", k)
	}
	proceed()
	r.fake.WaitOrders(t, 2*long+3)
	for id := range small {
		r.fake.End(messages.AttemptKey{Run: id, Attempt: 1}, messages.AttemptSucceeded, 0)
		r.awaitState(id, dag.RunCompleted)
	}
}

// TestFinishedRunIsLoadedAgainAfterAnError: a finished run that cannot be loaded for its restart does
// not keep an actor, so the next restart tries again, and retention can delete the run.
func TestFinishedRunIsLoadedAgainAfterAnError(t *testing.T) {
	r := newRig(t)
	id := r.submit(single)
	r.fake.End(r.order(1), messages.AttemptFailed, 1)
	r.awaitState(id, dag.RunErrored)
	gate := make(chan error, 1)
	gate <- errors.New("disk is away")
	r.wrap = func(s persistence.Store) persistence.Store { return &loading{s, id, gate} }
	r.crash()
	if err := r.node.SetState(t.Context(), id, dag.RunQueued); code(err) != messages.Internal {
		t.Fatalf("restart of what cannot be loaded: %v", err)
	}
	r.passivated(id)
	close(gate)
	if err := r.node.SetState(t.Context(), id, dag.RunQueued); err != nil {
		t.Fatal(err)
	}
	r.fake.End(r.order(2), messages.AttemptSucceeded, 0)
	r.awaitState(id, dag.RunCompleted)
}

// TestUnloadableRunKeepsItsActorAfterAPanic: the index still has a run as finished, but its actor has given
// its restart to the journal and then panicked. The next incarnation, which cannot load it, must not be
// passivated: without an actor and an entry in the index the run would be lost until the next start.
func TestUnloadableRunKeepsItsActorAfterAPanic(t *testing.T) {
	for _, passivating := range []bool{false, true} { // whether Passivate is on its way
		t.Run(fmt.Sprintf("passivating=%v", passivating), func(t *testing.T) {
			r := newRig(t)
			store := r.withSlowLoads()
			r.crash()
			id := r.submit(single)
			send, shard, self := r.node.env.root.Send, r.node.shard(id), r.runActor(id)
			restart := &messages.SetState{Run: id, To: dag.RunQueued, Reply: messages.NewReply[struct{}]()}
			block := &blocking{make(chan struct{}), make(chan struct{})}
			k := r.order(1)
			t.Cleanup(r.store.Release)
			if passivating {
				send(shard, block) // RunFinal waits
				<-block.entered
				r.fake.End(k, messages.AttemptFailed, 1)
				r.awaitState(id, dag.RunErrored)
				r.store.Hold()
				send(self, restart)
			} else {
				r.fake.End(k, messages.AttemptFailed, 1)
				r.passivated(id)
				r.store.Hold()
				send(shard, restart)
			}
			r.store.WaitPending(1)
			if !passivating { // it is the actor that the restart has started
				self = actor.NewPID(self.Address, fmt.Sprintf("%s.%d", self.Id, r.node.env.epochs.Load()))
			}
			store.mu.Lock()
			store.slow[id], store.fails[id] = true, errors.New("too many open files")
			store.mu.Unlock()
			send(self, &loadedRun{epoch: r.node.env.epochs.Load()}) // it panics: there is no run in it
			if passivating {
				close(block.release) // the shard restarts the actor, and takes RunFinal
				r.drainShard(id)
			}
			r.store.WaitPending(2)
			r.store.Release()
			<-store.begun
			store.mu.Lock()
			clear(store.slow) // the next load would succeed
			clear(store.fails)
			store.mu.Unlock()
			close(store.proceed)
			if a := <-restart.Reply; a.Err == nil {
				t.Error("the restart is acknowledged")
			}
			for range 3 { // the third one comes after all that the load has caused
				if err := r.node.Kill(t.Context(), id); err == nil || code(err) != messages.Internal {
					t.Fatalf("kill: %v; it has lost its actor", err)
				}
			}
			r.crash()
			r.fake.End(r.order(2), messages.AttemptSucceeded, 0)
			r.awaitState(id, dag.RunCompleted)
		})
	}
}
