package actors

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/caravan-dag/caravan/actors/query"
	"github.com/caravan-dag/caravan/messages"
)

const (
	// sweepEvery is how often finished runs are looked through.
	sweepEvery = 10 * time.Second
	// sweepStep is how many runs are deleted together. A request for one of them waits
	// some tens of milliseconds.
	sweepStep = 512
	// keysStep is how many idempotency keys are removed together.
	keysStep = 1000
	// mostKeys is how many idempotency keys of deleted runs are kept; the oldest go first.
	mostKeys = 10_000_000
)

// janitor deletes finished runs beyond what is retained, and idempotency keys that have outlived their
// runs for long enough. Ages are by the server's own clock (steadyClock). It has a goroutine of its own,
// which reads the store and asks the shards.
//
// The runs' shards hold them during a deletion, so that it cannot cross a restart of the run: requests
// wait, and find afterwards that the run is unknown. Rows are deleted before output files, since a run
// without its output would be damaged. A crash in between leaves output files whose run is gone; the
// next start removes them (removeLeftoverOutputs), on a second goroutine.
type janitor struct {
	n          *Node
	keep       int           // the newest so many finished runs stay; 0 = all
	age        time.Duration // and those that ended no longer ago; 0 = all
	keysFor    time.Duration // how long a key outlives its run
	mostKeys   int
	stop       chan struct{}  // closed by close
	goroutines sync.WaitGroup // that use the store and the outputs
}

// startJanitor starts the janitor's goroutines. next is the next run ID; no run is submitted before
// it returns.
func startJanitor(n *Node, c Config, next messages.RunID) *janitor {
	j := &janitor{n: n, keep: c.RetainRuns, age: c.RetainAge, keysFor: c.RetainKeys, mostKeys: mostKeys,
		stop: make(chan struct{})}
	if !c.KeepUnknownOutputs {
		j.goroutines.Go(func() {
			if err := j.removeLeftoverOutputs(next); err != nil && !errors.Is(err, errJanitorStopped) && !j.stopped() && !isLost(n.env.store.Err()) {
				n.env.log.Warn("output files of deleted runs may stay", "err", err)
			}
		})
	}
	j.goroutines.Go(func() {
		tick := time.NewTicker(sweepEvery)
		defer tick.Stop()
		for {
			if err := j.sweep(); err != nil && !j.stopped() && !isLost(n.env.store.Err()) {
				n.env.log.Error("retention", "err", err)
			}
			select {
			case <-tick.C:
			case <-j.stop:
				return
			}
		}
	})
	return j
}

func (j *janitor) close() {
	close(j.stop)
	j.goroutines.Wait()
}

func (j *janitor) stopped() bool { return isClosed(j.stop) }

// sweep deletes the finished runs that are older than age, and the oldest beyond the
// newest so many; then keys.
func (j *janitor) sweep() error {
	if j.keep > 0 || j.age > 0 {
		if err := j.sweepRuns(); err != nil {
			return err
		}
	}
	return j.sweepKeys()
}

// sweepKeys removes the idempotency keys whose time is over, and those beyond mostKeys.
func (j *janitor) sweepKeys() error {
	for !j.stopped() {
		surplus := max(j.n.env.store.KeptKeyCount()-j.mostKeys, 0)
		n, err := j.n.env.store.ExpireKeys(j.n.env.steadyTime(), j.mostKeys, keysStep)
		j.n.env.metrics.keysDropped.Add(float64(min(n, surplus)))
		if err != nil || n < keysStep {
			return err
		}
	}
	return nil
}

func (j *janitor) sweepRuns() error {
	due, err := j.dueRuns()
	if err != nil {
		return err
	}
	deleted := 0
	for step := range slices.Chunk(due, sweepStep) {
		if j.stopped() {
			break
		}
		n, err := j.deleteRuns(step)
		if deleted += n; err != nil {
			return err
		}
	}
	if deleted > 0 {
		j.n.env.log.Info("deleted finished runs", "runs", deleted)
	}
	return nil
}

// maxExpiries is how many of so many finished runs one sweep deletes for their age: what
// ends evenly never comes to as much. Should an age be wrong, most runs are still there
// when somebody notices.
func (j *janitor) maxExpiries(finished int) int {
	evenly := float64(sweepEvery) / float64(j.age)
	return max(sweepStep, int(float64(finished)*min(max(0.01, 4*evenly), 1)))
}

// dueRuns are the runs to be deleted, by ascending id. It reads little beyond these: the store
// knows where runs that ended long ago are. A run whose summary is damaged stays.
func (j *janitor) dueRuns() ([]messages.RunID, error) {
	finished, err := j.countFinished()
	if err != nil {
		return nil, err
	}
	var due []messages.RunID
	if surplus := finished - j.keep; j.keep > 0 && surplus > 0 {
		err := j.n.env.store.Summaries(query.FinishedRuns(), func(s *messages.Summary) bool {
			if s.Damage == "" {
				due = append(due, s.ID)
			}
			surplus--
			return surplus > 0 && !j.stopped()
		})
		if err != nil {
			return nil, err
		}
	}
	oldest := j.n.env.steadyTime() - int64(j.age)
	if j.age <= 0 || oldest <= 0 {
		return due, nil
	}
	q, left := query.FinishedRuns(), j.maxExpiries(finished)
	q.ChangedTo = oldest
	if len(due) > 0 {
		q.HasAfter, q.After = true, due[len(due)-1]
	}
	err = j.n.env.store.Summaries(q, func(s *messages.Summary) bool {
		if s.Damage == "" {
			due = append(due, s.ID)
			left--
		}
		return left > 0 && !j.stopped()
	})
	return due, err
}

// countFinished is how many finished runs there are.
func (j *janitor) countFinished() (n int, err error) {
	n, known := j.n.env.store.FinishedCount()
	if known {
		return n, nil
	}
	n = 0
	err = j.n.env.store.Summaries(query.FinishedRuns(), func(*messages.Summary) bool {
		n++
		return !j.stopped()
	})
	return n, err
}

// deleteRuns deletes runs of up to sweepStep, except those that have an actor again, and returns how many.
func (j *janitor) deleteRuns(runs []messages.RunID) (deleted int, err error) {
	n := j.n
	var all []messages.RunID
	for i, list := range n.byShard(runs) {
		if len(list) == 0 {
			continue
		}
		m := &messages.PurgeRuns{Runs: list, Reply: messages.NewReply[[]messages.RunID]()}
		held, err := call(context.Background(), n, m.Reply, func() { n.env.root.Send(n.shards[i], m) })
		defer n.env.root.Send(n.shards[i], &messages.RunsPurged{Runs: list}) // also when it answers too late
		if err != nil {
			return 0, err
		}
		all = append(all, held...)
	}
	slices.Sort(all)
	keysUntil := int64(0)
	if j.keysFor > 0 {
		keysUntil = n.env.steadyTime() + int64(j.keysFor)
	}
	if err := n.env.store.Delete(all, keysUntil); err != nil {
		return 0, err
	}
	for _, id := range all {
		if err := n.env.outputs.Remove(id); err != nil {
			return 0, err
		}
	}
	return len(all), nil
}
