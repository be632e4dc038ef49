package slurm

import (
	"cmp"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/messages"
)

// reconciler owns all that is known of attempts. Only its own goroutine, which runs run, uses it, so it
// needs no lock. Work that takes long, an sbatch and the collection of an ended attempt, is done by
// goroutines that get what they need by value and answer by Slurm.request. A poll and a scancel are run
// in place: most decisions wait for the answer of the cluster anyway.
type reconciler struct {
	slurm        *Slurm
	log          *slog.Logger
	attempts     map[messages.AttemptKey]*attempt
	unfinished   int // attempts that have not ended
	inFlight     int // attempts whose job is being watched
	lastSequence uint64
	recent       executor.RecentKeys // attempts that were acknowledged, or could never run

	waiting     []*attempt    // to be submitted, in the order in which they came; may hold attempts that were withdrawn
	gatherUntil time.Time     // until then orders may join the array of the first one that waits
	holdUntil   time.Time     // submissions pause until then
	retryPause  time.Duration // the last pause after an sbatch without an answer; 0 once Slurm has answered
	atLimit     bool          // the cluster refused jobs beyond a limit, and has accepted none since
	submitting  bool          // an sbatch is running
	maxArray    int           // jobs of one array; halved when the cluster refuses the size (MaxArraySize)

	nextPoll       time.Time // when the jobs are polled next
	useScontrol    bool      // squeue lacks JSON
	toTerminate    []string  // jobs whose script is told to end its attempt
	toCancel       []string  // jobs that Slurm is told to end
	orphans        []orphanJob
	resumeExpected bool // ExpectResume was called
	closing        bool
}

// orphanJob is a job that is not needed any more, and whose number is unknown: its attempt was withdrawn
// after a server had submitted it, and before a poll showed it. The next poll finds the number by name
// and index, or shows that the job has ended or never came to be.
type orphanJob struct {
	name  string
	index int
}

func newReconciler(s *Slurm) reconciler {
	return reconciler{slurm: s, log: s.cfg.Logger, attempts: map[messages.AttemptKey]*attempt{}, maxArray: 1000}
}

// run performs the reconciler's duties. See the package doc.
//
// All requests are served before anything else is done: kills and withdrawals that came together with
// orders save their submissions. Each duty looks at the time itself, so a wake-up that was not needed costs
// little. cancelJobs comes last, as the duties before it fill its lists.
func (r *reconciler) run() {
	defer close(r.slurm.reconcilerDone)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-r.slurm.wakeup:
		case <-timer.C:
		}
		for {
			inbox, more := r.slurm.nextRequests(r.unfinished == 0 && !r.submitting)
			if !more || r.slurm.ctx.Err() != nil {
				return
			}
			if len(inbox) == 0 {
				break
			}
			for _, do := range inbox {
				do()
			}
		}
		r.submitNext()
		r.pollJobs()
		r.cancelJobs()
		if r.closing && r.unfinished == 0 {
			r.slurm.wakeReconciler()
		}
		timer.Reset(r.untilNextDuty())
	}
}

// untilNextDuty is how long the reconciler may sleep; at least 1 ms, so that a duty which is due but
// cannot be done yet does not occupy a processor.
func (r *reconciler) untilNextDuty() time.Duration {
	sleep := idleSleep
	if r.needsPolls() {
		sleep = min(sleep, time.Until(r.nextPoll))
	}
	if len(r.waiting) > 0 && !r.submitting {
		sleep = min(sleep, max(time.Until(r.gatherUntil), time.Until(r.holdUntil)))
	}
	return max(sleep, time.Millisecond)
}

// needsPolls tells whether there are jobs to poll. A cluster that does not answer is polled without
// jobs too, since only an answer makes the Slurm healthy again.
func (r *reconciler) needsPolls() bool {
	return r.inFlight > 0 || len(r.orphans) > 0 || r.slurm.unreachableErr != nil
}

// maxPollInterval bounds the time between two polls, however long a poll takes. Up to that bound the
// pause is four times as long as the poll, so squeue runs for at most a fifth of the time.
const maxPollInterval = 10 * time.Second

// pollJobs is duty 3. It costs the cluster one squeue for all jobs of this user, and this process O(jobs
// + attempts in flight). Attempts are compared in the order in which they came: those that have to be
// submitted again then wait in that order.
func (r *reconciler) pollJobs() {
	began := time.Now()
	if !r.needsPolls() || began.Before(r.nextPoll) {
		return
	}
	jobs, err := r.slurm.commands.queryJobs(r.slurm.ctx, r.slurm.folderID, &r.useScontrol)
	// Polls must not keep a cluster with many jobs busy.
	r.nextPoll = time.Now().Add(max(r.slurm.cfg.Poll, min(4*time.Since(began), maxPollInterval)))
	if r.setReachable(err); err != nil {
		return
	}
	var flying []*attempt
	for _, a := range r.attempts {
		if a.stage == stageSubmitted || a.stage == stageRunning {
			flying = append(flying, a)
		}
	}
	slices.SortFunc(flying, func(a, b *attempt) int { return cmp.Compare(a.sequence, b.sequence) })
	for _, a := range flying {
		r.reconcileAttempt(a, jobs, began)
	}
	for _, s := range r.orphans {
		if j := jobs.find(s.name, s.index); j != nil && !j.hasEnded() {
			r.toCancel = append(r.toCancel, j.id(s.index))
		}
	}
	r.orphans = nil
}

// reconcileAttempt compares one attempt with a poll that began at that time:
//
//	the job                               what is done
//	is being submitted                    wait for the answer of sbatch
//	is missing, and was seen as ended     collectAttempt
//	is missing, and must be visible       jobDisappeared
//	is missing, and may be too new        wait for the next poll
//	has ended                             jobEnded
//	waits                                 withdraw the attempt if it is not wanted
//	runs                                  noteStart: has the attempt begun? Then withdraw, likewise
//
// The folder decides whether an attempt has begun, and the poll only whether its job may still act. A
// job that the poll lacks proves something only if the job was there before the poll began
// (visibleFrom): an sbatch that is running may have created it since. The final state of a job is seen
// once at most, since Slurm forgets jobs, and is kept in endedJob.
func (r *reconciler) reconcileAttempt(a *attempt, jobs snapshot, began time.Time) {
	j := jobs.find(a.jobName, a.arrayIndex)
	switch {
	case a.submitting:
	case j == nil && a.endedJob != nil:
		r.collectAttempt(a)
	case j == nil && a.visibleFrom.Before(began):
		r.jobDisappeared(a)
	case j == nil:
	case j.hasEnded():
		r.jobEnded(a, j)
	default:
		if a.jobID == "" {
			a.jobID = j.id(a.arrayIndex)
		}
		if !j.pending() {
			r.noteStart(a)
		}
		if a.killed || a.revoked {
			r.withdraw(a)
		}
	}
	if a.stage != stageRunning {
		return
	}
	a.output.stdout.punchMiddle(r.log)
	a.output.stderr.punchMiddle(r.log)
	if a.killed {
		r.requestTermination(a)
		if now := time.Now(); a.terminateSent && now.After(a.cancelAt) {
			a.cancelAt = now.Add(cancelDelay)
			r.toCancel = append(r.toCancel, a.jobID)
		}
	}
}

// jobDisappeared handles an attempt whose job Slurm does not know. The job ended long ago, or was
// never created. To submit it again is safe in either case, even if the first job comes after all: each
// job compares its name with that in the folder, and only one process can create begun.
func (r *reconciler) jobDisappeared(a *attempt) {
	r.noteStart(a)
	switch {
	case a.stage == stageRunning:
		r.collectAttempt(a)
	case a.killed || a.revoked:
		r.withdraw(a)
	case a.submissions < maxSubmissions:
		r.enqueue(a)
	default:
		if taken, _ := a.folder.claimUnstarted(); taken {
			r.endNotStarted(a, messages.AttemptLost, fmt.Sprintf("lost: Slurm forgot its job before it began, %d times", a.submissions))
		}
	}
}

// jobEnded handles an attempt whose job is over. The attempt has ended, or will never begin.
// claimUnstarted makes that certain before it is reported: it creates begun in the name of the server, or
// finds that the job has done so. After an error of the shared file system the next poll comes
// here again.
func (r *reconciler) jobEnded(a *attempt, j *job) {
	a.endedJob = j
	if a.jobID == "" {
		a.jobID = j.id(a.arrayIndex)
	}
	r.noteStart(a)
	if a.stage == stageRunning {
		r.collectAttempt(a)
		return
	}
	taken, err := a.folder.claimUnstarted()
	switch {
	case err != nil:
		r.log.Warn("the fate of an attempt is unknown; retrying", executor.LogKey(a.key), "err", err)
	case taken && (a.killed || a.revoked):
		r.endRevoked(a)
	case taken:
		result, why := notStartedReason(a, j, r.slurm.cfg.Dir)
		r.endNotStarted(a, result, why)
	default:
		r.noteStart(a)
	}
}

// notStartedReason says what it means that a job ended before its attempt began. An end that the cluster
// caused is a loss: the task runs again. An operator's scancel, a deadline and a folder that the node does
// not see would meet the next attempt as well.
func notStartedReason(a *attempt, j *job, dir string) (messages.AttemptResult, string) {
	switch {
	case j.exit.Exited() && j.exit.ExitStatus() == exitFolderMissing:
		return messages.AttemptNotStarted, fmt.Sprintf(
			"the folder %s is not visible on node %s: it must be on a file system that the server and the nodes share", dir, j.node)
	case j.state == "CANCELLED", j.state == "DEADLINE":
		return messages.AttemptNotStarted, fmt.Sprintf("job %s ended as %s before it began (%s)", a.jobID, j.state, j.reason)
	}
	return messages.AttemptLost, fmt.Sprintf("lost: job %s ended as %s before it began (%s)", a.jobID, j.state, j.reason)
}

// collectAttempt collects an attempt that has begun and whose job is over. Its end may take a while
// to show in the folder: it waits for up to endPolls polls, by returning without a change of stage. The
// wait is not needed when the job's own exit status shows that the script was killed.
//
// The collection runs on a copy of the attempt. While it runs the stage keeps all other duties away, so
// the original changes only by an order that attaches to it, or by abandon.
func (r *reconciler) collectAttempt(a *attempt) {
	if a.order == nil {
		r.reportEnd(a, nil)
		return
	}
	end, written := a.folder.readEnd()
	if now := time.Now(); !written && !(a.endedJob != nil && a.endedJob.exit.Signaled()) {
		if a.endDeadline.IsZero() {
			a.endDeadline = now.Add(endPolls * r.slurm.cfg.Poll)
		}
		if now.Before(a.endDeadline) {
			return
		}
	}
	r.setStage(a, stageCollecting)
	x := *a
	r.slurm.runAsync(func() {
		report := r.slurm.collectReport(&x, end, written)
		r.slurm.request(func() { r.reportEnd(a, report) })
	})
}

// cancelJobs is duty 4: one scancel for all jobs of each list, since each command costs a process and a
// connection to the controller.
func (r *reconciler) cancelJobs() {
	r.toCancel = r.runScancel(r.toCancel) // waiting jobs first: they would begin in the place of jobs that end
	r.toTerminate = r.runScancel(r.toTerminate, "--batch", "--signal=USR1")
}

// maxCancelArgs is how many jobs one scancel gets, which bounds its command line and its work.
const maxCancelArgs = 200

// runScancel calls scancel for all of the jobs, and returns the list, empty, for reuse. An error for a
// job that is over already is expected and does not affect the others. A cancellation that is lost does
// no harm: the job of a withdrawn attempt exits when it begins, and that of a killed one is cancelled
// again when cancelAt is due.
func (r *reconciler) runScancel(jobs []string, options ...string) []string {
	for part := range slices.Chunk(jobs, maxCancelArgs) {
		if _, err := r.slurm.commands.run(r.slurm.ctx, "", "scancel", append(slices.Clone(options), part...)...); err != nil {
			r.log.Debug("scancel", "err", err)
		}
	}
	return jobs[:0]
}
