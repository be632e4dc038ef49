package actors

import (
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/persistence"
)

// env is what the actors of one node share. It is complete before the first
// actor is spawned and does not change afterwards.
type env struct {
	store         persistence.Store
	outputs       *outputs.Store
	executors     map[string]executor.Executor
	durables      []executor.Durable // those of executors that are, by their names' order
	board         *board
	arrivals      arrivals
	timers        *timers
	pool          *pool // runs and tasks
	loader        *loadLimiter
	standing      *pool // node, shards and dispatcher
	metrics       *metrics
	root          *actor.RootContext
	dispatcher    *actor.PID
	node          *actor.PID
	attempts      *attempts
	taskProps     *actor.Props
	killGrace     time.Duration
	limits        dag.Limits
	plans         *longPlans
	looked        looked
	clock         Clock
	steadyClock   steadyClock
	snapshotEvery int
	epochs        atomic.Uint64   // of run actors
	spawned       atomic.Uint64   // task actors so far
	stopped       <-chan struct{} // closed when callers are no longer answered by actors
	paused        func() string   // why no task starts
	closing       *atomic.Bool    // the node is being closed: what runs is not ours to end
	log           *slog.Logger

	timekeeping sync.WaitGroup // Node.keepTime

	// remaining are those who see to what a former server has left waiting.
	remaining sync.WaitGroup
}

// guard logs a panic of an actor with its stack and lets it go on to the supervisor.
func (e *env) guard(ctx actor.Context) {
	if p := recover(); p != nil {
		e.metrics.panics.Inc()
		e.log.Error("actor panicked", "actor", ctx.Self().Id, "panic", p, "stack", string(debug.Stack()))
		panic(p)
	}
}
