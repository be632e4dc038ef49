package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caravan-dag/caravan/actors"
	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/persistence"
)

// leadership is one engine of a partition, for one term: from the Takeover until its store is closed.
// The host's goroutine makes it, starts it and ends it.
type leadership struct {
	host       *host
	registerer *ownedRegisterer
	epoch      uint64 // 0 before the Takeover
	store      *persistence.RunStore
	engine     *actors.Node
	served     *leadingEngine // the engine for the callers of Directory
	row        clusterRow     // of partition 0
	began      time.Time

	proposed, committed atomic.Uint64 // see Engine.Proposals

	retireOnce, abandonOnce sync.Once
	retired                 chan struct{} // closed by retire
	abandoned               chan struct{} // closed by abandon
	ended                   chan struct{} // closed when the store is closed
}

// leadingEngine is the engine of a leadership for the callers of Directory.
type leadingEngine struct {
	*actors.Node
	leadership *leadership
}

var _ Engine = (*leadingEngine)(nil)

// Proposals counts those of the leadership.
func (e *leadingEngine) Proposals() (proposed, committed uint64) {
	return e.leadership.proposed.Load(), e.leadership.committed.Load()
}

// detachLimit bounds the wait for the last batches of an engine. It is longer than
// raftlog.Settings.CommitStall: proposals that wait for a disk end with their group.
const detachLimit = 10 * time.Second

// endLimits is after how many times detachLimit an engine that has not ended fails the replica. Executors and
// actors end without a limit of their own, and while one of them hangs the partition has no other engine, and
// the log waits for the rows (host.evictEngine).
const endLimits = 2

func newLeadership(h *host) *leadership {
	return &leadership{host: h, registerer: newOwnedRegisterer(h.registerer), began: time.Now(),
		retired: make(chan struct{}), abandoned: make(chan struct{}), ended: make(chan struct{})}
}

// errAbandoned is the outcome of proposals of a term that was abandoned.
var errAbandoned = errors.New("the rows are being replaced by those of another replica")

// retire tells the host to end the engine.
func (l *leadership) retire() {
	l.retireOnce.Do(func() { close(l.retired) })
	l.host.wakeUp()
}

// abandon is retire, and ends the wait of this term's proposals for the log, now and later. A caller that
// the log waits for calls it: such a proposal could not end before.
func (l *leadership) abandon() {
	l.abandonOnce.Do(func() { close(l.abandoned) })
	l.retire()
}

// logPosition is a place in the log.
type logPosition struct{ epoch, index uint64 }

// awaitLog returns the outcome of a proposal. A proposal that is abandoned goes on by itself: until the log
// has answered it, the host begins no other engine (host.unresolved).
func (l *leadership) awaitLog(propose func() (logPosition, error)) (logPosition, error) {
	type outcome struct {
		at  logPosition
		err error
	}
	h := l.host
	h.unresolved.Add(1)
	done := make(chan outcome, 1)
	go func() {
		at, err := propose()
		if lost := new(raftlog.LostError); errors.As(err, &lost) && lost.Unknown {
			h.doubtfulTerm.Store(l.epoch)
		}
		h.unresolved.Add(-1)
		done <- outcome{at, err}
		select {
		case <-l.abandoned:
			h.wakeUp()
		default:
		}
	}()
	select {
	case o := <-done:
		return o.at, lostOutcome(o.err)
	case <-l.abandoned:
		return logPosition{}, lostOutcome(&raftlog.LostError{Unknown: true, Cause: errAbandoned})
	}
}

// lostOutcome makes an error of the log one that ends the engine alone, where that is so.
func lostOutcome(err error) error {
	var lost *raftlog.LostError
	if errors.As(err, &lost) {
		return fmt.Errorf("%w: %w", persistence.ErrLost, err)
	}
	return err
}

// startEngine takes the partition over and starts the engine. After an error, endEngine gives back what was
// made.
func (l *leadership) startEngine() error {
	h := l.host
	at, err := l.awaitLog(func() (at logPosition, err error) {
		at.epoch, at.index, err = h.group.Takeover()
		return at, err
	})
	if err != nil {
		return fmt.Errorf("takeover: %w", err)
	}
	l.epoch = at.epoch
	h.machine.watchTerm(l.epoch)
	lead := persistence.Lead{Epoch: l.epoch, At: h.machine.base + at.index, Propose: l.proposeGroup}
	l.store, err = h.machine.db.Load().Lead(lead, persistence.Config{Numbering: h.numbering, Registerer: l.registerer})
	if err != nil {
		l.store = nil
		if !h.leads(l.epoch) { // rows of the next leader may have come between the two calls
			err = fmt.Errorf("%w: %w", persistence.ErrLost, err)
		}
		return err
	}
	if h.tables != nil {
		if err := l.openTable(h.tables); err != nil {
			return err
		}
	}
	workers, err := l.store.Workers()
	if err != nil {
		return fmt.Errorf("workers of the partition: %w", err)
	}
	config := h.config.Engine(EngineTerm{Partition: h.partition, Epoch: l.epoch, Node: h.self, Workers: workers, Rows: l.store})
	config.Store, config.Numbering, config.Epoch, config.Registerer = l.store, h.numbering, l.epoch, l.registerer
	if l.engine, err = actors.Start(config); err != nil {
		return fmt.Errorf("start the engine: %w", err)
	}
	l.served = &leadingEngine{l.engine, l}
	return nil
}

// proposeGroup is the commit of the store. Rows that the log has and the DB has not written are lost: the fence
// has dropped them, and the store must not take them for stored.
func (l *leadership) proposeGroup(group []byte) (moment uint64, err error) {
	h := l.host
	number := l.proposed.Add(1)
	at, err := l.awaitLog(func() (at logPosition, err error) {
		at.index, err = h.group.Propose(l.epoch, group)
		return at, err
	})
	if err != nil {
		return 0, err
	}
	if !h.machine.isWritten(at.index) {
		return 0, fmt.Errorf("%w: the rows of entry %d were not written", persistence.ErrLost, at.index)
	}
	l.committed.Store(number) // before the callers of the group have their answers
	return h.machine.base + at.index, nil
}

// isOver reports whether the engine has failed, or was told to end.
func (l *leadership) isOver() bool {
	select {
	case <-l.retired:
		return true
	case <-l.engineFailed():
		return true
	default:
		return false
	}
}

// engineFailed returns a channel that is closed when the engine has failed; nil without an engine.
func (l *leadership) engineFailed() <-chan struct{} {
	if l.engine == nil {
		return nil
	}
	return l.engine.Failed()
}

// fatalError returns why the engine has failed, if that concerns more than this term. It may be called on
// nil.
func (l *leadership) fatalError() error {
	if l == nil || l.engine == nil {
		return nil
	}
	return withoutLost(l.engine.Err())
}

// endEngine detaches the engine and closes the store. The engine answers what it was asked before. The error is
// one that concerns more than this term: of the disk, or of a part of the engine that broke. If the engine does
// not end, endEngine reports that and waits on: the process has to end.
func (l *leadership) endEngine() error {
	defer close(l.ended)
	limit := l.host.config.detachLimit
	defer callAfter(endLimits*limit, func() {
		l.host.reportFailure(fmt.Errorf("the engine of epoch %d does not end within %v", l.epoch, endLimits*limit))
	})()
	var errs []error
	if l.engine != nil {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		if err := l.engine.Detach(ctx); err != nil {
			l.host.logger.Warn("the engine of a former term ends", "epoch", l.epoch, "err", err)
		}
		cancel()
		errs = append(errs, withoutLost(l.engine.Err()))
	}
	if l.store != nil {
		errs = append(errs, withoutLost(l.store.Close()))
	}
	l.host.machine.watchTerm(0)
	l.registerer.unregisterAll()
	return errors.Join(errs...)
}

// callAfter calls f after a time in which the process has run, unless it is stopped before: a process that was
// frozen (SIGSTOP) misses one of the steps.
func callAfter(d time.Duration, f func()) (stop func()) {
	const steps = 20
	stopped := make(chan struct{})
	go func() {
		ticker := time.NewTicker(d / steps)
		defer ticker.Stop()
		for range steps {
			select {
			case <-ticker.C:
			case <-stopped:
				return
			}
		}
		f()
	}()
	return func() { close(stopped) }
}

// withoutLost drops an error that ends the engine alone.
func withoutLost(err error) error {
	if errors.Is(err, persistence.ErrLost) {
		return nil
	}
	return err
}
