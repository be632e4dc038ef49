package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

const (
	// reconcileEvery is how often a host looks at its group without a hint. Hints may be lost.
	reconcileEvery = 300 * time.Millisecond
	// maxEngines is how many engines of one term may end by themselves, until the host gives the
	// leadership to another node, which may fare better.
	maxEngines = 3
	// giveAwayLimit bounds an attempt to give the leadership away, during which the partition has no engine.
	giveAwayLimit = 4 * time.Second
)

// host runs the engine of one partition where its group leads. One goroutine compares what is with what
// should be, and does one step at a time:
//
//	this node leads term t     engine         step
//	no                         none           –
//	no                         of any term    unpublish, detach, close its store
//	yes                        none           Takeover, DB.Lead, actors.Start, publish
//	yes                        of t           –
//	yes                        of another     unpublish, detach, close its store
//	any                        has failed     unpublish, detach, close its store
//
// A leader whose DB is damaged gives the leadership away, before its engine begins or after its engine has
// ended: see damagedLead.
//
// It does so every 300 ms and whenever the group has a hint. No event is needed for a right state: quick
// changes of leader cannot leave an engine behind, or a partition without one.
//
// An engine of a term begins only when the store of the one before is closed, and the log has answered
// all of its proposals. A proposal without an answer could otherwise enter the log between the rows that
// the next engine of the same term has read and those that it writes.
//
// The lock is a leaf.
type host struct {
	partition  int
	numbering  messages.Numbering
	config     *Config
	registerer prometheus.Registerer // with the label of the partition; nil: no metrics
	self       raftlog.NodeID
	machine    *machine
	group      *raftlog.Group
	logger     *slog.Logger
	changed    func()       // tells who waits for leaders and engines
	tables     *tableKeeper // of partition 0; nil for others

	published  atomic.Pointer[leadership]
	unresolved atomic.Int64 // proposals that the log has not answered
	takeovers  atomic.Int64 // engines started
	// doubtfulTerm is the term of the last proposal whose outcome the log does not know. No other engine of
	// it begins: the entry may come after the rows that it would read.
	doubtfulTerm atomic.Uint64

	mu      sync.Mutex
	current *leadership // nil between two
	blocked int         // evictions and a planned stop: no engine may begin
	// handedOver says that a planned stop has begun: leadership that comes back is given away again.
	handedOver bool

	wake     chan struct{} // holds one
	stopping chan struct{}
	stopOnce sync.Once
	ended    chan struct{}
	// isRunning says that run was called. Open sets it.
	isRunning bool

	// The goroutine owns these.
	lastLeader Leadership
	endedTerm  uint64 // the term of the last engine that has ended by itself
	endedCount int    // how many of that term have
	damaged    damagedLead
}

// newHost makes a host. The caller sets machine and group, and calls run.
func newHost(c *Config, partition int, self raftlog.NodeID, changed func()) *host {
	h := &host{partition: partition, config: c, self: self, changed: changed,
		numbering: messages.Numbering{Partitions: uint64(c.Partitions), Partition: uint64(partition)},
		logger:    c.Logger.With("partition", partition),
		wake:      make(chan struct{}, 1), stopping: make(chan struct{}), ended: make(chan struct{})}
	if c.Registerer != nil {
		h.registerer = prometheus.WrapRegistererWith(prometheus.Labels{"partition": strconv.Itoa(partition)}, c.Registerer)
	}
	return h
}

// wakeUp makes the host look at its group. It does not block.
func (h *host) wakeUp() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// run reconciles until stop, or until the group or the DB has failed.
func (h *host) run() {
	defer close(h.ended)
	ticker := time.NewTicker(reconcileEvery)
	defer ticker.Stop()
	for {
		dbFailed, dbErr := h.machine.dbFailed()
		var engineFailed <-chan struct{}
		if l := h.currentLeadership(); l != nil {
			engineFailed = l.engineFailed()
		}
		var err error
		select {
		case <-h.stopping:
			if err := h.endEngine(); err != nil {
				h.logger.Error("the engine did not end well", "err", err)
			}
			return
		case <-h.group.Failed():
			err = h.group.Err()
		case <-dbFailed:
			err = dbErr()
		case <-engineFailed:
		case <-ticker.C:
		case <-h.group.Hints():
		case <-h.wake:
		}
		if err == nil {
			err = h.reconcile()
		}
		if err != nil {
			h.fail(err)
			return
		}
	}
}

// fail reports an error that the process cannot go on with, and ends the engine. The report comes first:
// the end of the engine may wait for the disk that does not answer any more.
func (h *host) fail(err error) {
	h.unpublish()
	h.reportFailure(err)
	if err := h.endEngine(); err != nil {
		h.logger.Error("the engine did not end well", "err", err)
	}
}

// reportFailure says that the process has to end. It may be called from any goroutine.
func (h *host) reportFailure(err error) {
	h.logger.Error("the replica has failed", "err", err)
	h.config.Fatal(fmt.Errorf("partition %d: %w", h.partition, err))
}

// reconcile does one step after the other, until the state is right or a step has to be waited for.
func (h *host) reconcile() error {
	for {
		node, term, ok := h.group.Leader()
		h.noteLeader(node, term, ok)
		leads := ok && node == h.self
		l := h.currentLeadership()
		if err := l.fatalError(); err != nil {
			return err // fail reports it, and ends the engine after that
		}
		switch {
		case l != nil && (!leads || term != l.epoch || l.isOver()):
			if err := h.endEngine(); err != nil {
				return err
			}
		case l != nil:
			to, _ := h.betterLeader(term)
			if to == "" {
				return nil
			}
			if err := h.endEngine(); err != nil {
				return err
			}
			if h.leaveDamagedLead(term, to) {
				return nil
			}
		case leads && h.unresolved.Load() == 0:
			if term == h.doubtfulTerm.Load() || h.endedTerm == term && h.endedCount >= maxEngines || h.isHandedOver() {
				h.giveAway(term)
				return nil
			}
			to, isAwaited := h.betterLeader(term)
			if isAwaited || to != "" && h.leaveDamagedLead(term, to) {
				return nil
			}
			began, err := h.beginEngine()
			if err != nil || !began {
				return err
			}
		default:
			return nil
		}
	}
}

// leads reports whether this node leads in a term.
func (h *host) leads(term uint64) bool {
	node, now, ok := h.group.Leader()
	return ok && node == h.self && now == term
}

// noteLeader tells those who wait for a leader when it is another one.
func (h *host) noteLeader(node raftlog.NodeID, term uint64, ok bool) {
	var now Leadership
	if ok {
		now = Leadership{Node: node, Term: term}
	}
	if now != h.lastLeader {
		h.lastLeader = now
		h.changed()
	}
}

// currentLeadership returns the leadership that has begun and not ended.
func (h *host) currentLeadership() *leadership {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.current
}

// beginEngine starts an engine and publishes it. It reports whether one runs.
func (h *host) beginEngine() (began bool, err error) {
	l := newLeadership(h)
	h.mu.Lock()
	isBlocked := h.blocked > 0
	if !isBlocked {
		h.current = l
	}
	h.mu.Unlock()
	if isBlocked {
		return false, nil
	}
	begin := time.Now()
	if err := l.startEngine(); err != nil {
		if !errors.Is(err, persistence.ErrLost) {
			return false, errors.Join(err, h.endEngine())
		}
		h.logger.Info("this node does not lead the partition after all", "epoch", l.epoch, "err", err)
		isUnfit := h.leads(l.epoch) // the replica is damaged: another attempt would find the same
		err := h.endEngine()
		if isUnfit {
			h.endedCount = maxEngines
		}
		return false, err
	}
	h.takeovers.Add(1)
	h.published.Store(l)
	h.changed()
	h.logger.Info("this node leads the partition", "epoch", l.epoch, "took", time.Since(begin).String())
	return true, nil
}

// endEngine unpublishes and ends the engine, if there is one.
func (h *host) endEngine() error {
	l := h.currentLeadership()
	if l == nil {
		return nil
	}
	h.unpublish()
	err := l.endEngine()
	h.noteEnded(l)
	h.mu.Lock()
	h.current = nil
	h.mu.Unlock()
	return err
}

// unpublish hides the engine from callers.
func (h *host) unpublish() {
	if l := h.published.Swap(nil); l != nil {
		h.changed()
		h.logger.Info("this node leads the partition no longer", "epoch", l.epoch)
	}
}

// noteEnded counts the engines of one term.
func (h *host) noteEnded(l *leadership) {
	if l.epoch == 0 {
		return
	}
	if h.endedTerm != l.epoch {
		h.endedTerm, h.endedCount = l.epoch, 0
	}
	h.endedCount++
}

// giveAway makes another node lead. If that fails, this one tries again: with another engine, unless the
// term is in doubt.
func (h *host) giveAway(term uint64) {
	if h.isHandedOver() {
		h.logger.Info("the leadership has come back to a node that stops: another node shall lead", "epoch", term)
	} else {
		h.logger.Warn("engines of this term end, or its last proposal is in doubt: another node shall lead", "epoch", term, "engines", h.endedCount)
	}
	ctx, cancel := context.WithTimeout(context.Background(), giveAwayLimit)
	defer cancel()
	if err := h.group.Transfer(ctx, ""); err != nil {
		h.logger.Warn("cannot give the leadership away", "err", err)
		h.endedCount = 0
	}
}

// blockEngines lets no engine begin, and returns the one that is there. unblockEngines is its counterpart.
func (h *host) blockEngines() *leadership {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.blocked++
	return h.current
}

func (h *host) unblockEngines() {
	h.mu.Lock()
	h.blocked--
	h.handedOver = h.handedOver && h.blocked > 0
	h.mu.Unlock()
	h.wakeUp()
}

// evictEngine ends the engine, and returns when its store is closed. The log calls it before it replaces the
// rows: on its own goroutine, so that proposals of this node cannot end before it returns. They are
// abandoned. This node follows another leader by then, so no later engine of it has the same term.
func (h *host) evictEngine() (allow func()) {
	if l := h.blockEngines(); l != nil {
		l.abandon()
		<-l.ended
	}
	return h.unblockEngines
}

// handOver ends the engine in good order and gives the leadership to the replica that has the most of the
// log. No engine begins here any more, unless that fails: this node then leads on until it is closed, as
// the process may still have requests to answer.
func (h *host) handOver(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			h.unblockEngines()
			return
		}
		h.mu.Lock()
		h.handedOver = true
		h.mu.Unlock()
	}()
	l := h.blockEngines()
	if l != nil {
		l.retire()
		select {
		case <-l.ended:
		case <-h.ended:
		case <-ctx.Done():
			return fmt.Errorf("partition %d: the engine did not end: %w", h.partition, context.Cause(ctx))
		}
	}
	if node, _, ok := h.group.Leader(); !ok || node != h.self || len(h.group.Members().Voters) < 2 {
		return nil
	}
	if err := h.group.Transfer(ctx, ""); err != nil {
		return fmt.Errorf("partition %d: %w", h.partition, err)
	}
	return nil
}

func (h *host) isHandedOver() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.handedOver
}

// stop ends the engine and the goroutine.
func (h *host) stop() {
	h.stopOnce.Do(func() { close(h.stopping) })
	if h.isRunning {
		<-h.ended
	}
}
