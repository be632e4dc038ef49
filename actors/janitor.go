package actors

import (
	"slices"
	"time"

	"github.com/caravan-dag/caravan/messages"
)

const (
	// sweepEvery is how often finished runs are looked through.
	sweepEvery = 10 * time.Second
	// sweepStep is how many runs are deleted together. Who asks for one of them waits for
	// that, some tens of milliseconds.
	sweepStep = 512
	// keysStep is how many idempotency keys are removed together.
	keysStep = 1000
	// mostKeys is how many idempotency keys of deleted runs are kept; the oldest go first.
	mostKeys = 10_000_000
)

// janitor deletes finished runs beyond what is retained, and idempotency keys that have
// outlived their runs for long enough. The runs' shards hold them meanwhile, so that a
// deletion cannot cross a restart of the run. Ages are by the server's own clock.
type janitor struct {
	n            *Node
	keep         int           // the newest so many finished runs stay; 0 = all
	age          time.Duration // and those that ended no longer ago; 0 = all
	keysFor      time.Duration // how long a key outlives its run
	mostKeys     int
	stop, exited chan struct{}
}

func startJanitor(n *Node, c Config) *janitor {
	j := &janitor{n: n, keep: c.RetainRuns, age: c.RetainAge, keysFor: c.RetainKeys, mostKeys: mostKeys,
		stop: make(chan struct{}), exited: make(chan struct{})}
	go func() {
		defer close(j.exited)
		tick := time.NewTicker(sweepEvery)
		defer tick.Stop()
		for {
			if err := j.sweep(); err != nil && !j.stopped() {
				n.env.log.Error("retention", "error", err)
			}
			select {
			case <-tick.C:
			case <-j.stop:
				return
			}
		}
	}()
	return j
}

func (j *janitor) close() {
	close(j.stop)
	<-j.exited
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
		surplus := max(j.n.env.store.KeptKeys()-j.mostKeys, 0)
		n, err := j.n.env.store.ExpireKeys(j.n.env.steady(), j.mostKeys, keysStep)
		j.n.env.metrics.keysDropped.Add(float64(min(n, surplus)))
		if err != nil || n < keysStep {
			return err
		}
	}
	return nil
}

func (j *janitor) sweepRuns() error {
	due, err := j.due()
	if err != nil {
		return err
	}
	deleted := 0
	for step := range slices.Chunk(due, sweepStep) {
		if j.stopped() {
			break
		}
		n, err := j.purge(step)
		if deleted += n; err != nil {
			return err
		}
	}
	if deleted > 0 {
		j.n.env.log.Info("deleted finished runs", "runs", deleted)
	}
	return nil
}

// share is how many of so many finished runs one sweep deletes for their age: what
// ends evenly never comes to as much. Should an age be wrong, most runs are still there
// when somebody notices.
func (j *janitor) share(finished int) int {
	evenly := float64(sweepEvery) / float64(j.age)
	return max(sweepStep, int(float64(finished)*min(max(0.01, 4*evenly), 1)))
}

// due are the runs to be deleted, by ascending id.
func (j *janitor) due() ([]messages.RunID, error) {
	type ended struct {
		id messages.RunID
		at int64 // by the server's own clock
	}
	var finished []ended
	err := j.n.Summaries(messages.ListQuery{All: true}, func(s *messages.Summary) bool {
		if s.State.Final() && s.Damage == "" {
			finished = append(finished, ended{s.ID, s.Changed})
		}
		return !j.stopped()
	})
	if err != nil {
		return nil, err
	}
	surplus := 0
	if j.keep > 0 {
		surplus = max(len(finished)-j.keep, 0)
	}
	var due []messages.RunID
	for _, r := range finished[:surplus] {
		due = append(due, r.id)
	}
	if j.age <= 0 {
		return due, nil
	}
	oldest, left := j.n.env.steady()-int64(j.age), j.share(len(finished))
	for _, r := range finished[surplus:] {
		if r.at <= oldest && left > 0 {
			due = append(due, r.id)
			left--
		}
	}
	return due, nil
}

// purge deletes runs, but for those that have come to life again, and returns how many.
func (j *janitor) purge(runs []messages.RunID) (deleted int, err error) {
	n := j.n
	var of [Shards][]messages.RunID
	for _, id := range runs {
		of[uint64(id)%Shards] = append(of[uint64(id)%Shards], id)
	}
	var all []messages.RunID
	for i, list := range of {
		if len(list) == 0 {
			continue
		}
		m := &messages.Purge{Runs: list, Reply: messages.NewReply[[]messages.RunID]()}
		held, err := call(n, m.Reply, func() { n.env.root.Send(n.shards[i], m) })
		defer n.env.root.Send(n.shards[i], &messages.Purged{Runs: list}) // also when it answers too late
		if err != nil {
			return 0, err
		}
		all = append(all, held...)
	}
	slices.Sort(all)
	keysUntil := int64(0)
	if j.keysFor > 0 {
		keysUntil = n.env.steady() + int64(j.keysFor)
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
