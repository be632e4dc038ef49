package actors

import (
	"cmp"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/caravan-dag/caravan/actors/query"
	"github.com/caravan-dag/caravan/actors/replay"
	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// nodeContext is shared by the actors of one node. Its fields are complete before the first
// run has an actor and do not change afterwards; what they refer to is safe for concurrent use.
type nodeContext struct {
	services
	settings
	lifecycle
}

// services are what the actors call.
type services struct {
	store     persistence.Store
	outputs   *outputs.Store
	executors map[string]executor.Executor
	durables  []executor.Durable // the durable ones of executors, in the order of their names
	attempts  *attempts          // the way of reports into the tree

	index *query.Index
	reads *query.Reader
	plans *replay.LongPlans

	timers      *timers
	clock       Clock
	steadyClock steadyClock
	metrics     *metrics
	log         *slog.Logger

	root         *actor.RootContext
	node         *actor.PID
	dispatcher   *actor.PID
	newRuns      newRunQueue // new runs on their way to the dispatcher
	pool         *pool       // runs the mailboxes of runs and tasks
	standingPool *pool       // runs the mailboxes of node, shards and dispatcher
	loader       *loadLimiter
	taskProps    *actor.Props // of the tasks that are in no crew
}

// settings are the parts of Config that actors look at. newNodeContext fills them.
type settings struct {
	killGrace      time.Duration
	numbering      messages.Numbering
	replicated     bool          // another node goes on with the runs when this one leads no longer: Config.Epoch is set
	limits         dag.Limits    // for what runs generate
	snapshotEvery  int           // see snapshots
	changePatience time.Duration // see Node.awaitChanges
}

// lifecycle is what the actors know of the node's stages, and the numbers that make the names
// of actors unique in all of them.
type lifecycle struct {
	closing *atomic.Bool    // the node is being closed: running attempts are left alone
	stopped <-chan struct{} // closed when callers are no longer answered by actors
	paused  func() string   // why no task starts; "" = tasks do

	epochs  atomic.Uint64 // of the newest run actor: Config.Epoch, then the run actors so far; see epochShift
	spawned atomic.Uint64 // task actors so far

	watching        sync.WaitGroup // waits for Node.watchFailures
	timekeeping     sync.WaitGroup // waits for Node.keepTime
	dormantAdoption sync.WaitGroup // waits for the goroutine that adopts the dormant runs of a former server
}

// stopping answers a request of which nothing was done, because the node is being closed. Where another
// node goes on, the server may stay.
func (e *nodeContext) stopping() error {
	if e.replicated {
		return messages.ErrNotLeader
	}
	return messages.ErrStopping
}

// epochShift makes the epochs of run actors from that of the node: a node has fewer than 2^40 run
// actors, so two nodes of a partition never give one epoch to two actors. A grant, a commit or a load
// that was meant for the actor of another node is then dropped, as one of a former actor is.
const epochShift = 40

// MaxEpoch is the first number that is too large for Config.Epoch.
const MaxEpoch = 1 << (64 - epochShift)

// newNodeContext makes the context of a node. Executors and PIDs are still missing.
func newNodeContext(c Config, n *Node, root *actor.RootContext) *nodeContext {
	e := &nodeContext{
		services: services{
			store: c.Store, outputs: c.Outputs, executors: make(map[string]executor.Executor), attempts: newAttempts(),
			index: query.NewIndex(c.Numbering), plans: &replay.LongPlans{LowerGCPressure: c.LowerGCPressure},
			clock: c.Clock, log: c.Logger, root: root,
			pool: newPool(), standingPool: newPool(), loader: newLoadLimiter(),
		},
		settings: settings{
			killGrace: c.KillGrace, numbering: c.Numbering, replicated: c.Epoch > 0,
			limits: c.Limits, snapshotEvery: cmp.Or(c.snapshotEvery, snapshotEvery),
			changePatience: cmp.Or(c.changePatience, changePatience),
		},
		lifecycle: lifecycle{closing: &n.closing, stopped: n.stopped, paused: n.pauses.current},
	}
	e.reads = &query.Reader{
		Index: e.index, Store: c.Store, Outputs: c.Outputs, Limits: c.Limits, Plans: e.plans, Stopped: n.stopped, Cluster: c.ClusterOutputs,
		Numbering: c.Numbering, NextID: func() messages.RunID { return c.Numbering.ID(n.next.Load()) },
	}
	e.epochs.Store(c.Epoch << epochShift)
	e.metrics = newMetrics()
	e.timers = newTimers(e.monotonicTime, func(pid *actor.PID, m any) { root.Send(pid, m) })
	e.taskProps = actor.PropsFromProducer(func() actor.Actor { return &task{env: e} },
		actor.WithMailbox(actor.UnboundedLockfree()), actor.WithDispatcher(e.pool))
	return e
}
