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
)

// janitor deletes finished runs beyond what is retained. Their shards hold them
// meanwhile, so that a deletion cannot cross a restart of the run.
type janitor struct {
	n            *Node
	keep         int           // the newest so many finished runs stay; 0 = all
	age          time.Duration // and those that ended no longer ago; 0 = all
	stop, exited chan struct{}
}

func startJanitor(n *Node, keep int, age time.Duration) *janitor {
	j := &janitor{n: n, keep: keep, age: age, stop: make(chan struct{}), exited: make(chan struct{})}
	if keep <= 0 && age <= 0 {
		close(j.exited)
		return j
	}
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
// newest so many.
func (j *janitor) sweep() error {
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

// due are the runs to be deleted, by ascending id.
func (j *janitor) due() ([]messages.RunID, error) {
	type ended struct {
		id messages.RunID
		at int64
	}
	var finished []ended
	err := j.n.Summaries(messages.ListQuery{All: true}, func(s *messages.Summary) bool {
		if s.State.Final() {
			finished = append(finished, ended{s.ID, s.LastUpdate})
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
	oldest := j.n.env.wall() - int64(j.age)
	var due []messages.RunID
	for i, r := range finished {
		if i < surplus || j.age > 0 && r.at <= oldest {
			due = append(due, r.id)
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
	if err := n.env.store.Delete(all...); err != nil {
		return 0, err
	}
	for _, id := range all {
		if err := n.env.outputs.Remove(id); err != nil {
			return 0, err
		}
	}
	return len(all), nil
}
