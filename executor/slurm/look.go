package slurm

import (
	"fmt"
	"slices"
	"time"

	"github.com/caravan-dag/caravan/messages"
)

// longestPoll is the most time between two looks, however long one takes.
const longestPoll = 10 * time.Second

// lookAround is duty 3.
func (c *clerk) lookAround() {
	began := time.Now()
	if !c.watches() || began.Before(c.poll) {
		return
	}
	jobs, err := c.s.programs.jobs(c.s.ctx, c.s.id, &c.plainText)
	// A cluster with many jobs is not to be kept busy by being asked.
	c.poll = time.Now().Add(max(c.s.cfg.Poll, min(4*time.Since(began), longestPoll)))
	if c.heard(err); err != nil {
		return
	}
	var flying []*entry
	for _, e := range c.entries {
		if e.stage == submitted || e.stage == running {
			flying = append(flying, e)
		}
	}
	slices.SortFunc(flying, func(a, b *entry) int {
		if a.seq < b.seq {
			return -1
		}
		return 1
	})
	for _, e := range flying {
		c.consider(e, jobs, began)
	}
	for _, s := range c.strays {
		if j := jobs.find(s.name, s.index); j != nil && !j.over() {
			c.cancel = append(c.cancel, j.number(s.index))
		}
	}
	c.strays = nil
}

// consider is what a look tells of one attempt.
func (c *clerk) consider(e *entry, jobs snapshot, began time.Time) {
	j := jobs.find(e.name, e.index)
	switch {
	case e.sending:
	case j == nil && e.last != nil:
		c.finish(e)
	case j == nil && e.from.Before(began):
		c.disappeared(e)
	case j == nil:
	case j.over():
		c.jobOver(e, j)
	default:
		if e.job == "" {
			e.job = j.number(e.index)
		}
		if !j.pending() {
			c.seeBeginning(e)
		}
		if e.killed || e.revoked {
			c.withdraw(e)
		}
	}
	if e.stage != running {
		return
	}
	e.streams.out.bound(c.log)
	e.streams.err.bound(c.log)
	if e.killed {
		c.signal(e)
		if now := time.Now(); e.signaled && now.After(e.force) {
			e.force = now.Add(forceAfter)
			c.cancel = append(c.cancel, e.job)
		}
	}
}

// disappeared: Slurm does not know the attempt's job. It may have been over for so long,
// or it never came to be.
func (c *clerk) disappeared(e *entry) {
	c.seeBeginning(e)
	switch {
	case e.stage == running:
		c.finish(e)
	case e.killed || e.revoked:
		c.withdraw(e)
	case e.tries < maxTries:
		c.enqueue(e)
	default:
		if taken, _ := e.folder.claim(); taken {
			c.unbegun(e, messages.AttemptLost, fmt.Sprintf("lost: Slurm forgot its job before it began, %d times", e.tries))
		}
	}
}

// jobOver: the attempt has ended, or it never will begin.
func (c *clerk) jobOver(e *entry, j *job) {
	e.last = j
	if e.job == "" {
		e.job = j.number(e.index)
	}
	c.seeBeginning(e)
	if e.stage == running {
		c.finish(e)
		return
	}
	taken, err := e.folder.claim()
	switch {
	case err != nil:
		c.log.Warn("what became of an attempt is not known yet", "key", e.key, "err", err)
	case taken && (e.killed || e.revoked):
		c.endRevoked(e)
	case taken:
		result, why := neverBegan(e, j, c.s.cfg.Dir)
		c.unbegun(e, result, why)
	default:
		c.seeBeginning(e)
	}
}

// neverBegan says what a job's end means that has not begun its attempt.
func neverBegan(e *entry, j *job, dir string) (messages.AttemptResult, string) {
	switch {
	case j.exit.Exited() && j.exit.ExitStatus() == invisible:
		return messages.AttemptNotStarted, fmt.Sprintf(
			"the folder %s is not to be seen on node %s: it must be on a file system that the server and the nodes share", dir, j.node)
	case j.state == "CANCELLED", j.state == "DEADLINE":
		return messages.AttemptNotStarted, fmt.Sprintf("job %s ended as %s before it began (%s)", e.job, j.state, j.reason)
	}
	return messages.AttemptLost, fmt.Sprintf("lost: job %s ended as %s before it began (%s)", e.job, j.state, j.reason)
}

// finish has an attempt collected that has begun, and whose job is over. Its end may
// take a while to show; a script that was killed writes none.
func (c *clerk) finish(e *entry) {
	if e.order == nil {
		c.end(e, nil)
		return
	}
	end, written := e.folder.end()
	if now := time.Now(); !written && !(e.last != nil && e.last.exit.Signaled()) {
		if e.await.IsZero() {
			e.await = now.Add(endPatience * c.s.cfg.Poll)
		}
		if now.Before(e.await) {
			return
		}
	}
	c.move(e, ending)
	x := *e
	c.s.beside(func() {
		r := c.s.collect(&x, end, written)
		c.s.ask(func() { c.end(e, r) })
	})
}

// scancel is duty 4.
func (c *clerk) scancel() {
	c.cancel = c.tell(c.cancel) // what waits comes first: it would begin where others end
	c.terminate = c.tell(c.terminate, "--batch", "--signal=USR1")
}

// mostArgs is how many jobs one scancel is told of.
const mostArgs = 200

// tell calls scancel for all of the jobs. That one of them is over already is no
// error of ours, and makes no difference to the others; what is not ended is seen
// at the next look.
func (c *clerk) tell(jobs []string, options ...string) []string {
	for part := range slices.Chunk(jobs, mostArgs) {
		if _, err := c.s.programs.run(c.s.ctx, "", "scancel", append(slices.Clone(options), part...)...); err != nil {
			c.log.Debug("scancel", "err", err)
		}
	}
	return jobs[:0]
}
