package actors

import (
	"time"

	"github.com/caravan-dag/caravan/messages"
)

const (
	// sweepEvery is how often finished runs are looked through.
	sweepEvery = time.Minute
	// sweepMost bounds what one look deletes, so that it never competes long with
	// the journal; the rest follows at the next one.
	sweepMost = 10_000
)

// janitor deletes finished runs beyond what is retained. Each deletion goes
// through the run's shard, so that it cannot cross a restart of the run.
type janitor struct {
	stop, exited chan struct{}
}

func startJanitor(n *Node, runs int, age time.Duration) *janitor {
	j := &janitor{make(chan struct{}), make(chan struct{})}
	if runs <= 0 && age <= 0 {
		close(j.exited)
		return j
	}
	go func() {
		defer close(j.exited)
		tick := time.NewTicker(sweepEvery)
		defer tick.Stop()
		for {
			if err := n.sweep(runs, age); err != nil {
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

// sweep deletes the finished runs that are older than age, and the oldest beyond
// the newest so many.
func (n *Node) sweep(keep int, age time.Duration) error {
	type ended struct {
		id messages.RunID
		at int64
	}
	var finished []ended
	err := n.Summaries(messages.ListQuery{All: true}, func(s *messages.Summary) bool {
		if s.State.Final() {
			finished = append(finished, ended{s.ID, s.LastUpdate})
		}
		return true
	})
	if err != nil {
		return err
	}
	surplus := 0
	if keep > 0 {
		surplus = max(len(finished)-keep, 0)
	}
	oldest := n.env.now() - int64(age)
	deleted := 0
	for i, r := range finished {
		if i >= surplus && (age <= 0 || r.at > oldest) {
			continue
		}
		m := &messages.Purge{Run: r.id, Reply: messages.NewReply[bool]()}
		if _, err := call(n, m.Reply, func() { n.env.root.Send(n.shard(r.id), m) }); err != nil {
			return err
		}
		if deleted++; deleted >= sweepMost {
			break
		}
	}
	if deleted > 0 {
		n.env.log.Info("deleted finished runs", "runs", deleted)
	}
	return nil
}
