package actors

import (
	"sync"

	"github.com/asynkron/protoactor-go/actor"
)

// gatherMost bounds the mailboxes that a crew gathers at a time, and so how long a run is kept from
// its own messages: a task takes some microseconds to begin or to end.
const gatherMost = 256

// crew schedules the task actors of one run, but for those of no-op tasks and generators: the
// former are many and do nothing else, the latter read what may be megabytes.
//
// Usually their mailboxes go to the pool, as others do. While the run has messages for many of
// them, the crew gathers their mailboxes; when all are sent, the run's own goroutine runs one
// after the other. So a batch of messages wakes one goroutine, that of the run, however many
// tasks it is for. What other goroutines schedule in that time is gathered too.
//
// The zero crew has no props, and gathers nothing.
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
	gathering := c.gathering && len(c.gathered) < gatherMost
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

// enlist makes the props of a run's tasks.
func (c *crew) enlist(env *env) *actor.Props {
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

// perform runs what was gathered, and what is scheduled meanwhile, until nothing is left. One
// mailbox alone is the pool's: the run gains nothing by waiting for it. The run calls perform
// after gather, in any case.
func (c *crew) perform() {
	for c.next() {
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

// next moves what was gathered to spare. It is false, and gathering ends, when that is nothing.
func (c *crew) next() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.gathered) == 0 {
		c.gathering = false
		return false
	}
	c.gathered, c.spare = c.spare[:0], c.gathered
	return true
}
