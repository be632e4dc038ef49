package actors

import (
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/asynkron/protoactor-go/actor"
)

// pool runs mailboxes on a few goroutines that stay, where
// the library starts one each time that a mailbox gets its first message: their
// stacks have grown already, and a hop between actors costs no goroutine.
//
// A scheduled function must not block for long: runs are loaded elsewhere (load.go).
// When all are busy and the queue is full, a goroutine of its own is started.
type pool struct {
	work   chan func()
	closed atomic.Bool
	size   int
}

const (
	// poolQueue is more than the live tasks of one run, so that a burst of grants
	// finds room.
	poolQueue = 4096
	// poolThroughput is how many messages of one mailbox are handled before other
	// goroutines get a turn.
	poolThroughput = 300
)

func newPool() *pool {
	p := &pool{work: make(chan func(), poolQueue), size: 2 * runtime.GOMAXPROCS(0)}
	for range p.size {
		go p.run()
	}
	return p
}

func (p *pool) run() {
	for f := range p.work {
		if f == nil {
			return
		}
		f()
	}
}

// Schedule is part of actor.Dispatcher.
func (p *pool) Schedule(f func()) {
	if !p.closed.Load() {
		select {
		case p.work <- f:
			return
		default:
		}
	}
	go f()
}

// Throughput is part of actor.Dispatcher.
func (p *pool) Throughput() int { return poolThroughput }

// close ends the goroutines once they have run what is queued.
func (p *pool) close() {
	p.closed.Store(true)
	for range p.size {
		p.work <- nil
	}
}

// maxGathered bounds the mailboxes that a crew gathers at a time, and so how long a run is kept from
// its own messages: a task takes some microseconds to begin or to end.
const maxGathered = 256

// crew schedules the task actors of one run, except those of no-op tasks (numerous and
// cheap) and of generators (they may read megabytes).
//
// Usually their mailboxes go to the pool, as others do. While the run has messages for many of
// them, the crew gathers their mailboxes; when all are sent, the run's own goroutine runs one
// after the other. So a batch of messages wakes one goroutine, that of the run, however many
// tasks it is for. Mailboxes that other goroutines schedule in that time are gathered
// too.
//
// The zero value is ready.
type crew struct {
	pool  *pool
	props *actor.Props // of the tasks

	mu        sync.Mutex
	gathering bool
	gathered  []func()
	spare     []func()
}

// Schedule is part of actor.Dispatcher.
func (c *crew) Schedule(f func()) {
	c.mu.Lock()
	gathering := c.gathering && len(c.gathered) < maxGathered
	if gathering {
		c.gathered = append(c.gathered, f)
	}
	c.mu.Unlock()
	if !gathering {
		c.pool.Schedule(f)
	}
}

// Throughput is part of actor.Dispatcher.
func (c *crew) Throughput() int { return poolThroughput }

// taskProps makes the props of a run's tasks.
func (c *crew) taskProps(env *nodeContext) *actor.Props {
	if c.props == nil {
		c.pool = env.pool
		c.props = actor.PropsFromProducer(func() actor.Actor { return &task{env: env} },
			actor.WithMailbox(actor.UnboundedLockfree()), actor.WithDispatcher(c))
	}
	return c.props
}

// gather begins to gather, until perform.
func (c *crew) gather() {
	c.mu.Lock()
	c.gathering = true
	c.mu.Unlock()
}

// runGathered runs the gathered mailboxes, and those that are scheduled while it runs, until
// all are done. A single mailbox goes to the pool: waiting for it would not help the run.
// The run always calls runGathered after gather.
func (c *crew) runGathered() {
	for c.takeGathered() {
		if len(c.spare) == 1 {
			f := c.spare[0]
			c.spare[0] = nil
			c.pool.Schedule(f)
			continue
		}
		for i, f := range c.spare {
			c.spare[i] = nil
			f() // a panic of an actor is caught by its mailbox
		}
	}
}

// takeGathered moves the gathered mailboxes to spare. Without any it ends the gathering and
// returns false.
func (c *crew) takeGathered() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.gathered) == 0 {
		c.gathering = false
		return false
	}
	c.gathered, c.spare = c.spare[:0], c.gathered
	return true
}
