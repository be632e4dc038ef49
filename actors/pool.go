package actors

import (
	"runtime"
	"sync/atomic"
)

// pool runs mailboxes on a few goroutines that stay, where
// the library starts one each time that a mailbox gets its first message: their
// stacks have grown already, and a hop between actors costs no goroutine.
//
// What is scheduled must not block for long: runs are loaded elsewhere (load.go).
// When all are busy and the queue is full, a goroutine of its own is started.
type pool struct {
	work   chan func()
	closed atomic.Bool
	size   int
}

const (
	// poolQueue is more than the live window of one run, so that a burst of grants
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
