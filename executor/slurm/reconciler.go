package slurm

import (
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/messages"
)

// reconciler owns all that is known of attempts. Only its own goroutine, which runs run, uses it.
type reconciler struct {
	slurm        *Slurm
	log          *slog.Logger
	attempts     map[messages.AttemptKey]*attempt
	unfinished   int // attempts that have not ended
	inFlight     int // attempts whose job is being watched
	lastSequence uint64
	recent       executor.RecentKeys

	waiting     []*attempt // to be submitted, in the order in which they came; may hold attempts that were withdrawn
	gatherUntil time.Time
	holdUntil   time.Time // submissions pause until then
	retryPause  time.Duration
	submitting  bool // an sbatch is running
	maxArray    int

	nextPoll       time.Time // when the jobs are polled next
	useScontrol    bool      // squeue lacks JSON
	unreachable    bool      // the cluster does not answer, and that was logged
	toTerminate    []string  // jobs whose script is told to end its attempt
	toCancel       []string  // jobs that Slurm is told to end
	orphans        []orphanJob
	resumeExpected bool // ExpectResume was called
	closing        bool
}

// orphanJob is a job that is no longer needed, and whose number is unknown.
type orphanJob struct {
	name  string
	index int
}

func newReconciler(s *Slurm) reconciler {
	return reconciler{slurm: s, log: s.cfg.Logger, attempts: map[messages.AttemptKey]*attempt{}, maxArray: 1000}
}

// run performs the reconciler's duties. See the package doc.
func (c *reconciler) run() {
	defer close(c.slurm.reconcilerDone)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-c.slurm.wakeup:
		case <-timer.C:
		}
		for {
			inbox, more := c.slurm.nextRequests(c.unfinished == 0 && !c.submitting)
			if !more || c.slurm.ctx.Err() != nil {
				return
			}
			if len(inbox) == 0 {
				break
			}
			for _, do := range inbox {
				do()
			}
		}
		c.submitNext()
		c.pollJobs()
		c.cancelJobs()
		if c.closing && c.unfinished == 0 {
			c.slurm.wakeReconciler()
		}
		timer.Reset(c.untilNextDuty())
	}
}

// untilNextDuty is how long the reconciler may sleep.
func (c *reconciler) untilNextDuty() time.Duration {
	now := time.Now()
	due := now.Add(idleSleep)
	if c.hasJobs() && c.nextPoll.Before(due) {
		due = c.nextPoll
	}
	if len(c.waiting) > 0 && !c.submitting {
		if at := latest(c.gatherUntil, c.holdUntil); at.Before(due) {
			due = at
		}
	}
	return max(due.Sub(now), time.Millisecond)
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// hasJobs tells whether there are jobs to poll.
func (c *reconciler) hasJobs() bool { return c.inFlight > 0 || len(c.orphans) > 0 }

// maxPollInterval bounds the time between two polls, however long a poll takes.
const maxPollInterval = 10 * time.Second

// pollJobs is duty 3.
func (c *reconciler) pollJobs() {
	began := time.Now()
	if !c.hasJobs() || began.Before(c.nextPoll) {
		return
	}
	jobs, err := c.slurm.commands.queryJobs(c.slurm.ctx, c.slurm.folderID, &c.useScontrol)
	// Polls must not keep a cluster with many jobs busy.
	c.nextPoll = time.Now().Add(max(c.slurm.cfg.Poll, min(4*time.Since(began), maxPollInterval)))
	if c.setReachable(err); err != nil {
		return
	}
	var flying []*attempt
	for _, e := range c.attempts {
		if e.stage == stageSubmitted || e.stage == stageRunning {
			flying = append(flying, e)
		}
	}
	slices.SortFunc(flying, func(a, b *attempt) int {
		if a.sequence < b.sequence {
			return -1
		}
		return 1
	})
	for _, e := range flying {
		c.reconcileAttempt(e, jobs, began)
	}
	for _, s := range c.orphans {
		if j := jobs.find(s.name, s.index); j != nil && !j.hasEnded() {
			c.toCancel = append(c.toCancel, j.id(s.index))
		}
	}
	c.orphans = nil
}

// reconcileAttempt compares one attempt with a poll that began at that time.
func (c *reconciler) reconcileAttempt(e *attempt, jobs snapshot, began time.Time) {
	j := jobs.find(e.jobName, e.arrayIndex)
	switch {
	case e.submitting:
	case j == nil && e.endedJob != nil:
		c.collectAttempt(e)
	case j == nil && e.visibleFrom.Before(began):
		c.jobDisappeared(e)
	case j == nil:
	case j.hasEnded():
		c.jobEnded(e, j)
	default:
		if e.jobID == "" {
			e.jobID = j.id(e.arrayIndex)
		}
		if !j.pending() {
			c.noteStart(e)
		}
		if e.killed || e.revoked {
			c.withdraw(e)
		}
	}
	if e.stage != stageRunning {
		return
	}
	e.output.stdout.punchMiddle(c.log)
	e.output.stderr.punchMiddle(c.log)
	if e.killed {
		c.requestTermination(e)
		if now := time.Now(); e.terminateSent && now.After(e.cancelAt) {
			e.cancelAt = now.Add(cancelDelay)
			c.toCancel = append(c.toCancel, e.jobID)
		}
	}
}

// jobDisappeared handles an attempt whose job Slurm does not know. The job ended long ago, or was
// never created.
func (c *reconciler) jobDisappeared(e *attempt) {
	c.noteStart(e)
	switch {
	case e.stage == stageRunning:
		c.collectAttempt(e)
	case e.killed || e.revoked:
		c.withdraw(e)
	case e.submissions < maxSubmissions:
		c.enqueue(e)
	default:
		if taken, _ := e.folder.claimUnstarted(); taken {
			c.endNotStarted(e, messages.AttemptLost, fmt.Sprintf("lost: Slurm forgot its job before it began, %d times", e.submissions))
		}
	}
}

// jobEnded handles an attempt whose job is over. The attempt has ended, or will never begin.
func (c *reconciler) jobEnded(e *attempt, j *job) {
	e.endedJob = j
	if e.jobID == "" {
		e.jobID = j.id(e.arrayIndex)
	}
	c.noteStart(e)
	if e.stage == stageRunning {
		c.collectAttempt(e)
		return
	}
	taken, err := e.folder.claimUnstarted()
	switch {
	case err != nil:
		c.log.Warn("the fate of an attempt is unknown; retrying", executor.LogKey(e.key), "err", err)
	case taken && (e.killed || e.revoked):
		c.endRevoked(e)
	case taken:
		result, why := notStartedReason(e, j, c.slurm.cfg.Dir)
		c.endNotStarted(e, result, why)
	default:
		c.noteStart(e)
	}
}

// notStartedReason says what it means that a job ended before its attempt began.
func notStartedReason(e *attempt, j *job, dir string) (messages.AttemptResult, string) {
	switch {
	case j.exit.Exited() && j.exit.ExitStatus() == exitFolderMissing:
		return messages.AttemptNotStarted, fmt.Sprintf(
			"the folder %s is not visible on node %s: it must be on a file system that the server and the nodes share", dir, j.node)
	case j.state == "CANCELLED", j.state == "DEADLINE":
		return messages.AttemptNotStarted, fmt.Sprintf("job %s ended as %s before it began (%s)", e.jobID, j.state, j.reason)
	}
	return messages.AttemptLost, fmt.Sprintf("lost: job %s ended as %s before it began (%s)", e.jobID, j.state, j.reason)
}

// collectAttempt collects an attempt that has begun and whose job is over. Its end may take a while
// to show in the folder. A script that was killed writes none.
func (c *reconciler) collectAttempt(e *attempt) {
	if e.order == nil {
		c.reportEnd(e, nil)
		return
	}
	end, written := e.folder.readEnd()
	if now := time.Now(); !written && !(e.endedJob != nil && e.endedJob.exit.Signaled()) {
		if e.endDeadline.IsZero() {
			e.endDeadline = now.Add(endPolls * c.slurm.cfg.Poll)
		}
		if now.Before(e.endDeadline) {
			return
		}
	}
	c.setStage(e, stageCollecting)
	x := *e
	c.slurm.runAsync(func() {
		r := c.slurm.collectReport(&x, end, written)
		c.slurm.request(func() { c.reportEnd(e, r) })
	})
}

// cancelJobs is duty 4.
func (c *reconciler) cancelJobs() {
	c.toCancel = c.runScancel(c.toCancel) // waiting jobs first: they would begin in the place of jobs that end
	c.toTerminate = c.runScancel(c.toTerminate, "--batch", "--signal=USR1")
}

// maxCancelArgs is how many jobs one scancel gets.
const maxCancelArgs = 200

// runScancel calls scancel for all of the jobs. An error for a job that is over already is expected
// and does not affect the others. The next poll shows the jobs that still run.
func (c *reconciler) runScancel(jobs []string, options ...string) []string {
	for part := range slices.Chunk(jobs, maxCancelArgs) {
		if _, err := c.slurm.commands.run(c.slurm.ctx, "", "scancel", append(slices.Clone(options), part...)...); err != nil {
			c.log.Debug("scancel", "err", err)
		}
	}
	return jobs[:0]
}
