package actors

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/caravan-dag/caravan/actors/query"
	"github.com/caravan-dag/caravan/actors/scheduler"
	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
	"github.com/prometheus/client_golang/prometheus"
)

// Config configures a node. Store, Outputs and Executors are required.
type Config struct {
	Store   persistence.Store
	Outputs *outputs.Store
	// Numbering says which partition the node's runs are of: that of the store. The zero value is a
	// server without partitions.
	Numbering messages.Numbering
	// Epoch tells this node's messages from those of every other node of the partition, before and
	// after it: the term in which it leads. It is below MaxEpoch. 0 is for a server without terms.
	Epoch uint64
	// Executors makes each executor with the sink it reports to, by the name that
	// jobs choose it by. The node closes or detaches what it is given here. An executor that several
	// nodes use is given as a front of each (executor.Shared).
	Executors   map[string]func(executor.Sink) (executor.Executor, error)
	CPUMillis   int64 // thousandths of a core that tasks may take in all
	MemoryBytes int64 // memory that tasks may take in all
	// ExternalExecutors are the executors whose tasks run on other machines, each with the
	// number of its tasks that may be granted at one time. No-op tasks have their own limit.
	ExternalExecutors map[string]int
	KillGrace         time.Duration // between SIGTERM and SIGKILL
	Limits            dag.Limits    // for what recovered runs generate
	RetainRuns        int           // finished runs that are kept; 0 = all
	RetainAge         time.Duration // how long a finished run is kept; 0 = for ever
	RetainKeys        time.Duration // how long an idempotency key outlives its run
	// KeepUnknownOutputs keeps output files of runs that the store does not know. It must be set for
	// a store that was opened unverified, since such a store may have lost rows unnoticed.
	KeepUnknownOutputs bool
	Logger             *slog.Logger // nil = discard
	// LowerGCPressure is called before a long document is planned again, when garbage costs
	// most. The function that it returns is called afterwards. nil is allowed.
	LowerGCPressure func() (back func())
	// Registerer gets the metrics of the node until it is closed. nil = no metrics. Nodes that are open
	// at one time have one each, such as prometheus.WrapRegistererWith a label of the partition.
	Registerer prometheus.Registerer
	// Paused is why no task starts to begin with; "" = tasks do. SavePaused makes a
	// change of it durable; nil = it is not.
	Paused     string
	SavePaused func(reason string) error
	Clock      Clock // nil = the machine's
	// ClusterOutputs is where the output of a cluster is. nil = Outputs has that of all attempts.
	ClusterOutputs query.ClusterOutputs

	// Seams of tests.
	snapshotEvery  int           // 0 = snapshotEvery
	changePatience time.Duration // 0 = changePatience
}

// Node is the engine of one server: the actor tree and its services. It
// implements what package http needs.
type Node struct {
	env     *nodeContext
	system  *actor.ActorSystem
	root    *actor.PID
	shards  [Shards]*actor.PID
	janitor *janitor
	closing atomic.Bool
	waits   callDeadlines
	pauses  pauses
	next    atomic.Uint64 // the number of the next run
	low     atomic.Bool   // new runs are refused for want of room
	stopped chan struct{} // closed by stop: callers are no longer answered by actors
	failed  chan struct{} // closed by fail
	failure atomic.Pointer[error]

	changes    changeGate
	stopOnce   sync.Once
	registered registrations
}

// Start brings a node up: executors, the tree, and every run that was unfinished. When it returns
// requests are served; large runs may still be loading, requests on them wait.
//
// The order matters. The index has every unfinished run before a reader can ask. Executors learn which
// runs will resume attempts (ExpectResume) before they may end the others as orphans, and the dispatcher
// knows whose slots it must await before the first grant. The caller owns the store, and closes it after
// the node.
//
// Any number of nodes may be started one after the other over stores of one DB, each when the one before
// and its store are closed: the package doc has the duties of their owner.
func Start(c Config) (*Node, error) {
	if err := c.Numbering.Check(); err != nil {
		return nil, err
	}
	if c.Epoch >= MaxEpoch {
		return nil, fmt.Errorf("epoch %d: must be below %d", c.Epoch, MaxEpoch)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	if c.Clock == nil {
		c.Clock = SystemClock()
	}
	next, err := c.Store.NextRun()
	if err != nil {
		return nil, fmt.Errorf("reading the next run id: %w", err)
	}
	unfinished, err := c.Store.UnfinishedSummaries()
	if err != nil {
		return nil, fmt.Errorf("listing unfinished runs: %w", err)
	}
	mark, marked, err := c.Store.ClockMark()
	if err != nil {
		return nil, fmt.Errorf("reading the mark of the clock: %w", err)
	}
	system := actor.NewActorSystem(actor.WithLoggerFactory(func(*actor.ActorSystem) *slog.Logger {
		return slog.New(warnHandler{c.Logger.Handler()})
	}), actor.WithDeadLetterThrottleInterval(time.Millisecond)) // the library keeps a goroutine for so long
	n := &Node{system: system, stopped: make(chan struct{}), failed: make(chan struct{})}
	n.next.Store(c.Numbering.NumberFrom(next))
	n.pauses.save = c.SavePaused
	n.pauses.reason.Store(&c.Paused)
	n.waits.rotate()
	e := newNodeContext(c, n, system.Root)
	e.steadyClock.moves = e.replicated
	e.steadyClock.begin(c.Clock, c.Logger, mark, marked, newestChange(unfinished))
	n.env = e
	err = n.makeExecutors(c.Executors)
	if err == nil {
		n.registered.registerer = c.Registerer
		err = n.registered.add(append(e.metrics.collectors(e), executorCollector(e.executors))...)
	}
	if err == nil {
		machine := scheduler.Resources{CPUMillis: c.CPUMillis, MemoryBytes: c.MemoryBytes}
		e.metrics.setCapacity(machine)
		err = n.recoverRuns(unfinished, scheduler.New[grantTarget](machine, c.ExternalExecutors, c.Numbering))
	}
	if err == nil {
		n.watchCapacity()
	}
	if err != nil {
		n.endExecutors(true) // what runs is not to suffer from that
		n.release()
		return nil, err
	}
	e.watching.Go(n.watchFailures)
	n.syncClocks(false) // in a new folder, or when the machine was off: nothing may be told by a clock without a mark
	e.timekeeping.Go(n.keepTime)
	n.janitor = startJanitor(n, c, next)
	return n, nil
}

// makeExecutors makes the executors, in the order of their names.
func (n *Node) makeExecutors(factories map[string]func(executor.Sink) (executor.Executor, error)) error {
	e := n.env
	for _, name := range slices.Sorted(maps.Keys(factories)) {
		x, err := factories[name](e.attempts.sink(e.root, name))
		if err != nil {
			return fmt.Errorf("executor %s: %w", name, err)
		}
		e.executors[name] = x
		if d, ok := x.(executor.Durable); ok {
			e.durables = append(e.durables, d)
		}
	}
	return nil
}

// watchCapacity has the dispatcher follow the slots of an executor whose slots change, which is one at most. Until
// then it knows those of this machine.
func (n *Node) watchCapacity() {
	e := n.env
	for _, d := range e.durables {
		if x, ok := d.(executor.Elastic); ok {
			newest := new(atomic.Pointer[scheduler.Resources])
			x.WatchCapacity(func(cpuMillis, memoryBytes int64) {
				if newest.Swap(&scheduler.Resources{CPUMillis: cpuMillis, MemoryBytes: memoryBytes}) == nil {
					e.root.Send(e.dispatcher, capacityChanged{newest})
				}
			})
		}
	}
}

// recoverRuns spawns the tree and has every unfinished run go on. A run that had a slot before is loaded
// now; one that never had any stays dormant.
func (n *Node) recoverRuns(unfinished []*messages.Summary, sched *slotScheduler) error {
	e := n.env
	var going, waiting []messages.RunID
	awaited := make(map[messages.RunID]struct{})
	for _, s := range unfinished {
		e.index.Insert(s)
		if neverGranted(s) {
			waiting = append(waiting, s.ID)
			continue
		}
		going = append(going, s.ID)
		if len(e.durables) > 0 {
			awaited[s.ID] = struct{}{}
		}
	}
	for _, d := range e.durables {
		d.ExpectResume(going...)
	}
	if err := n.spawnTree(sched, awaited); err != nil {
		return err
	}
	tell := func(name string, key messages.AttemptKey) {
		if d, ok := e.executors[name].(executor.Durable); ok {
			e.root.Send(n.shard(key.Run), &orphanedEnd{key, d})
		}
	}
	e.attempts.onOrphanedEnd.Store(&tell)
	for _, id := range going {
		e.root.Send(n.shard(id), &messages.RecoverRun{Run: id})
	}
	n.adoptDormant(waiting)
	return nil
}

// spawnTree spawns the tree.
func (n *Node) spawnTree(sched *slotScheduler, awaited map[messages.RunID]struct{}) error {
	e := n.env
	ready := make(chan struct{})
	props := actor.PropsFromProducer(func() actor.Actor {
		return &nodeActor{env: e, node: n, sched: sched, awaited: awaited, ready: ready, keys: make(map[string]*pendingKey)}
	}, actor.WithDispatcher(e.standingPool))
	pid, err := e.root.SpawnNamed(props, "node")
	if err != nil {
		return fmt.Errorf("spawning the node: %w", err)
	}
	n.root, e.node = pid, pid
	<-ready
	return nil
}

// shardIndex is the place of the shard that owns a run.
func (n *Node) shardIndex(id messages.RunID) int { return int(n.env.numbering.Number(id) % Shards) }

// shard is the shard that owns a run. For a run of another partition it is one that does not know it.
func (n *Node) shard(id messages.RunID) *actor.PID { return n.shards[n.shardIndex(id)] }

// byShard sorts runs by the shard that owns them. The runs of a shard keep their order.
func (n *Node) byShard(runs []messages.RunID) (of [Shards][]messages.RunID) {
	for _, id := range runs {
		i := n.shardIndex(id)
		of[i] = append(of[i], id)
	}
	return of
}

// Failed is closed when the storage has failed, or a part of the tree that cannot be
// replaced; Err then says why. The node answers no more, and its owner closes it.
//
// An Err that wraps persistence.ErrLost concerns this node alone: it leads no longer. Another node may
// be started over the same DB when this one and its store are closed. After any other error the server
// must stop.
func (n *Node) Failed() <-chan struct{} { return n.failed }

// Err is what Failed is about, or nil.
func (n *Node) Err() error {
	if err := n.failure.Load(); err != nil {
		return *err
	}
	return nil
}

// fail makes the node one that has failed. The first reason counts.
func (n *Node) fail(err error) {
	if n.failure.CompareAndSwap(nil, &err) {
		if isLost(err) {
			n.env.log.Warn("the engine ends", "err", err)
		} else {
			n.env.log.Error("the engine has failed", "err", err)
		}
		close(n.failed)
	}
}

// stop ends what waits for the actors. It may be called several times.
func (n *Node) stop() { n.stopOnce.Do(func() { close(n.stopped) }) }

// watchFailures passes a failure of the storage on and ends the waits of callers, until the
// node is closed or has failed.
func (n *Node) watchFailures() {
	clock := time.NewTicker(rotateEvery)
	defer clock.Stop()
	defer n.waits.expireAll()
	for {
		select {
		case <-clock.C:
			n.waits.rotate()
		case <-n.env.store.Failed():
			err := n.env.store.Err()
			if !isLost(err) {
				n.fail(fmt.Errorf("storage failed: %w", err))
				return
			}
			n.fail(err)
			n.awaitChanges(context.Background())
			n.stop()
			return
		case <-n.failed:
			return
		case <-n.stopped:
			return
		}
	}
}

// Close stops the node: no new requests, no new tasks; what runs is ended and
// kept as lost (it does not use up a retry); what is pending becomes durable. The
// store stays open: it is the caller's. A node that leads no longer is detached: its attempts are the
// next leader's.
func (n *Node) Close(ctx context.Context) error { return n.shutDown(ctx, false) }

// Detach stops the node as Close does, but leaves running what can outlive it: the
// next node finds it. A durable executor sends unacknowledged ends again to the
// next node, so Detach does not wait for them. The error of a node that leads no longer wraps
// persistence.ErrLost. A second call returns at once, and does not wait for the first one.
func (n *Node) Detach(ctx context.Context) error { return n.shutDown(ctx, true) }

// shutDown is Close and Detach, in an order that loses no end: first no new tasks, then the
// executors end or detach, then their last reports become durable, and only then do the actors
// stop. The pools go last: actors that stop still run on them. Before all that, where another node goes
// on, those who wait for a change hear of it (awaitChanges).
func (n *Node) shutDown(ctx context.Context, detach bool) error {
	if n.closing.Swap(true) {
		return nil
	}
	detach = detach || isLost(n.env.store.Err())
	if n.env.replicated {
		n.awaitChanges(ctx)
	}
	n.janitor.close()
	held := messages.NewReply[struct{}]()
	n.env.root.Send(n.env.dispatcher, &halt{held})
	n.endExecutors(detach)
	if detach && len(n.env.durables) > 0 {
		held.Send(struct{}{}, nil) // slots that stay taken are not waited for
	}
	var err error
	select {
	case <-held: // every attempt's end is durable
	case <-n.Failed():
		err = n.Err()
	case <-ctx.Done():
		err = fmt.Errorf("closing: attempts did not end: %w", ctx.Err())
	}
	n.stop()
	n.env.watching.Wait()
	n.env.dormantAdoption.Wait()
	n.env.timekeeping.Wait()
	future := n.env.root.StopFuture(n.root)
	if ferr := future.Wait(); ferr != nil && err == nil {
		err = fmt.Errorf("closing: the actors did not stop: %w", ferr)
	}
	n.env.loader.all.Wait()
	n.release()
	return err
}

// release ends the goroutines of a node without actors, and takes its metrics back.
func (n *Node) release() {
	n.registered.removeAll()
	n.env.timers.close()
	n.env.pool.close()
	n.env.standingPool.close()
}

// endExecutors closes the executors, or detaches those that can be.
func (n *Node) endExecutors(detach bool) {
	var all sync.WaitGroup
	for _, x := range n.env.executors {
		end := x.Close
		if d, ok := x.(executor.Durable); ok && detach {
			end = d.Detach
		}
		all.Go(func() {
			if err := end(); err != nil {
				n.env.log.Error("closing an executor", "err", err)
			}
		})
	}
	all.Wait()
}

// nextID gives out run ids: each once.
func (n *Node) nextID() messages.RunID { return n.nextIDs(1) }

// nextIDs gives out the ids of several runs with neighbouring numbers, and returns the first one.
func (n *Node) nextIDs(count int) messages.RunID {
	return n.env.numbering.ID(n.next.Add(uint64(count)) - uint64(count))
}

// NextNumber returns the number, in its partition, of the next run that will be submitted.
func (n *Node) NextNumber() uint64 { return n.next.Load() }

// RaiseNextNumber makes the numbers of later runs at least number. Partitions tell each other their
// highest numbers, so that the ids of all partitions ascend with the time of submission, roughly. A
// lower number changes nothing. So does one that no partition can have reached: numbers are never lowered
// again, and must not run out. The raised number becomes durable with the next run.
func (n *Node) RaiseNextNumber(number uint64) {
	if number > messages.MaxNumber/2 {
		n.env.log.Error("the number of another partition's next run is too high and is ignored", "number", number)
		return
	}
	for old := n.next.Load(); number > old && !n.next.CompareAndSwap(old, number); old = n.next.Load() {
	}
}

// nodeActor is the root of the tree: it spawns the shards and the dispatcher, and has the node fail when
// one of them panics. It sees to it that an idempotency key makes one run however often it comes at
// once. All submissions with a key pass it, and it waits for a row of the store for each (LookUpKey).
type nodeActor struct {
	env   *nodeContext
	node  *Node
	sched *slotScheduler
	// awaited is the dispatcher's: see there.
	awaited map[messages.RunID]struct{}
	ready   chan struct{}
	keys    map[string]*pendingKey
}

// pendingKey is an idempotency key whose submission is not yet durable.
type pendingKey struct {
	run     messages.RunID
	hash    [32]byte
	waiting []messages.Reply[messages.RunID]
}

func (a *nodeActor) Receive(ctx actor.Context) {
	defer a.failOnPanic(ctx)
	switch m := ctx.Message().(type) {
	case *actor.Started:
		a.spawnChildren(ctx)
	case *messages.SubmitRun:
		a.submitWithKey(ctx, m)
	case *messages.KeyResolved:
		k := a.keys[m.Key]
		delete(a.keys, m.Key)
		if k != nil {
			for _, w := range k.waiting {
				w.Send(m.Run, m.Err)
			}
		}
	}
}

// spawnChildren spawns dispatcher and shards. The dispatcher is first: shards send to it.
func (a *nodeActor) spawnChildren(ctx actor.Context) {
	pid, err := ctx.SpawnNamed(actor.PropsFromProducer(func() actor.Actor {
		return &dispatcher{
			env: a.env, sched: a.sched, awaited: a.awaited, paused: a.node.pauses.current() != "",
		}
	}, a.env.metrics.countedMailbox("dispatcher"), actor.WithDispatcher(a.env.standingPool)), "dispatcher")
	if err != nil {
		panic(err)
	}
	a.env.dispatcher = pid
	for i := range a.node.shards {
		name := "shard-" + strconv.Itoa(i)
		pid, err := ctx.SpawnNamed(actor.PropsFromProducer(func() actor.Actor {
			return &shard{env: a.env, runs: shardRuns(a.env.numbering, i)}
		}, a.env.metrics.countedMailbox(name), actor.WithDispatcher(a.env.standingPool)), name)
		if err != nil {
			panic(err)
		}
		a.node.shards[i] = pid
	}
	close(a.ready)
}

// submitWithKey lets one of several submissions with the same idempotency key through. The others
// wait for its result: until it is durable, the store cannot tell that the key is taken.
func (a *nodeActor) submitWithKey(ctx actor.Context, m *messages.SubmitRun) {
	sub, key := m.Submission, m.Submission.IdempotencyKey
	if k := a.keys[key]; k != nil {
		if k.hash != sub.BodyHash {
			m.Reply.Send(0, messages.KeyReusedError(key, k.run))
			return
		}
		k.waiting = append(k.waiting, m.Reply)
		return
	}
	run, hash, seen, err := a.env.store.LookUpKey(key)
	isForeign := errors.Is(err, persistence.ErrForeignKey)
	switch {
	case isForeign && sub.DeletedRun != nil && *sub.DeletedRun == run:
	case isForeign:
		m.Reply.Send(0, &messages.ForeignKeyError{Key: key, Run: run, IsSameBody: hash == sub.BodyHash})
		return
	case err != nil:
		m.Reply.Send(0, query.StorageFailed(err))
		return
	case seen && hash != sub.BodyHash:
		m.Reply.Send(0, messages.KeyReusedError(key, run))
		return
	case seen:
		m.Reply.Send(run, nil)
		return
	}
	id := a.node.nextID()
	a.keys[key] = &pendingKey{run: id, hash: sub.BodyHash}
	ctx.Send(a.node.shard(id), &messages.CreateRun{Run: id, Submission: sub, Reply: m.Reply})
}
