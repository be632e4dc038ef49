package slurm

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/messages"
)

// attempt is one attempt, from its order, or from the recovery of its folder, until its end is
// acknowledged. Only the reconciler's goroutine uses it. A goroutine that collects it has a copy
// (collectAttempt, recoverAttempt).
//
// The folder holds all that must survive the server. The next poll and the folder give every field but
// order, killed, revoked and endedByClose, and these come again with the order and its kill.
type attempt struct {
	key           messages.AttemptKey
	sequence      uint64          // in which orders came
	order         *executor.Order // nil: an orphan, which is being ended
	folder        folder
	stage         stage
	jobName       string         // name of its job
	arrayIndex    int            // index in the job's array
	jobID         string         // as squeue and scancel print it; "" = unknown
	submitting    bool           // its sbatch is running
	submissions   int            // that sbatch accepted; see maxSubmissions
	visibleFrom   time.Time      // polls that began earlier cannot show the job
	endedJob      *job           // its final state; nil while it has not been seen
	node          string         // by which the job has named it in begun
	startedAt     int64          // ns since the epoch
	startReported bool           // Started was reported
	abandoned     bool           // its run orders it again, so this entry no longer counts
	killed        bool           // its end is wanted: by the user, by Close, or because it is an orphan
	revoked       bool           // it is wanted back unless it has begun
	endedByClose  bool           // Close killed it, so its end is a loss, not a kill
	killGrace     time.Duration  // the shortest of all kills
	terminateSent bool           // its script was told to end it
	cancelAt      time.Time      // when Slurm is told to end the job
	endDeadline   time.Time      // how long to wait for its end after the end of its job
	output        *attemptOutput // nil until it has begun
}

// stage is how far an attempt is. It moves so:
//
//	stageWaiting → stageSubmitted      its sbatch is about to run (submitNext)
//	stageSubmitted → stageWaiting      refused for now, or its job has disappeared (enqueue)
//	stageSubmitted → stageRunning      begun names its job (noteStart)
//	stageRunning → stageCollecting     its job is over (collectAttempt)
//	stageCollecting → stageEnded       its final report is made (reportEnd)
//	the first three → stageEnded       withdrawn, refused, lost, or replaced (abandon)
//
// An attempt that is recovered begins with any of the second to the fourth. The stages are in order, so
// that a comparison says what has happened: below stageRunning an attempt has not begun as far as is
// known, below stageCollecting it may still be killed.
type stage uint8

const (
	stageWaiting    stage = iota // to be submitted
	stageSubmitted               // submitted, or about to be
	stageRunning                 // has begun
	stageCollecting              // over; its report is being made
	stageEnded
)

const (
	// maxSubmissions is how often an attempt is submitted whose job disappears.
	maxSubmissions = 5
	// endPolls is how many poll intervals the end of an attempt may take to show in its folder after
	// its job is over, because network file systems lag.
	endPolls = 10
	// cancelDelay is how long a job may take beyond the grace before Slurm ends it.
	cancelDelay = 10 * time.Second
	// idleSleep is how long the reconciler sleeps when all its duties are done.
	idleSleep = time.Hour
)

// setStage moves an attempt to a stage and keeps inFlight, the number of attempts that a poll may say
// something about.
func (r *reconciler) setStage(a *attempt, to stage) {
	if a.stage == stageSubmitted || a.stage == stageRunning {
		r.inFlight--
	}
	if to == stageSubmitted || to == stageRunning {
		r.inFlight++
	}
	a.stage = to
}

// startOrder accepts an order, or finds out what became of it before a restart. It serves Slurm.Start.
//
// An order is a repetition if its attempt has an order, or was acknowledged not long ago (recent). An order
// that is resumed is not: its end is not durable, and is reported again, also that of one that can never
// run. An
// attempt without an order is an orphan that is being ended: it gets the order, and so its end is
// reported. A folder that exists shows that a former server accepted the order (recoverAttempt).
//
// The script is written before the attempt may be submitted, and never changed after that, since a job
// may read it at any time. An error of the file system before that is a loss, as the order never ran
// and another attempt may succeed.
func (r *reconciler) startOrder(o *executor.Order) {
	a := r.attempts[o.Key]
	switch {
	case r.closing:
		r.slurm.report(o.ReportAfterClose(time.Now().UnixNano()))
		return
	case a != nil && a.order != nil, a == nil && r.recent.Has(o.Key) && !o.Resume:
		return
	case a != nil:
		a.order = o
		r.reportStart(a)
		return
	}
	a = &attempt{key: o.Key, order: o, folder: r.slurm.folder(o.Key)}
	script, err := attemptScript(o, r.slurm.baseEnv, r.slurm.defaultDir, string(a.folder))
	if mask := r.slurm.cfg.Umask; mask != "" {
		script = "umask " + mask + "\n" + script
	}
	if err == nil {
		_, err = r.sbatchOptions(o)
	}
	if err != nil {
		r.recent.Add(o.Key)
		r.slurm.report(o.NotStartedReport(time.Now().UnixNano(), messages.AttemptNotStarted, err.Error()))
		return
	}
	r.track(a)
	err = a.folder.create()
	if errors.Is(err, fs.ErrExist) {
		if r.recoverAttempt(a) {
			return
		}
		err = nil
	}
	if err == nil {
		err = writeFile(a.folder.path("run"), []byte(script))
		if o.UseShell && executor.ExceedsArgumentLimit(o.Shell) {
			err = errors.Join(err, writeFile(a.folder.path(textFile), []byte(o.Shell)))
		}
	}
	if err != nil {
		r.endNotStarted(a, messages.AttemptLost, "lost: its folder cannot be created: "+err.Error())
		return
	}
	r.enqueue(a)
}

// track enters an attempt that has not ended.
func (r *reconciler) track(a *attempt) {
	r.lastSequence++
	a.sequence = r.lastSequence
	r.attempts[a.key] = a
	r.unfinished++
}

// enqueue has an attempt submitted. The first one that waits begins the time in which others may join
// its array (Config.Gather).
func (r *reconciler) enqueue(a *attempt) {
	if len(r.waiting) == 0 {
		r.gatherUntil = time.Now().Add(r.slurm.cfg.Gather)
	}
	r.setStage(a, stageWaiting)
	r.waiting = append(r.waiting, a)
}

// recoverAttempt takes over an attempt whose folder exists. It returns false when the attempt was
// never submitted. The files decide, in this order:
//
//	verdict              it has ended: the same report is made again
//	begun by the server  a former server withdrew it and died before it said so. The claim is removed:
//	                     if the order has come again, the attempt may begin after all
//	job                  it was submitted, or was about to be: a poll looks for the job by its name
//	none of them         it was not submitted: the caller writes the folder again
func (r *reconciler) recoverAttempt(a *attempt) bool {
	if v, ok := a.folder.readReport(r.slurm.maxReportBytes()); ok {
		a.startedAt = v.Record.Start
		r.setStage(a, stageCollecting)
		x := *a
		r.slurm.runAsync(func() {
			report, job := r.slurm.repeatReport(&x, v)
			r.slurm.request(func() {
				if a.abandoned {
					return // the attempt that replaced it reports its start, too
				}
				a.jobID = job
				r.reportStart(a)
				r.reportEnd(a, report)
			})
		})
		return true
	}
	if b, ok := a.folder.readStart(); ok && b.byServer {
		// A former server withdrew it, and ended before it reported that.
		_ = os.Remove(a.folder.path("begun"))
	}
	name, index, ok := a.folder.readJob()
	if !ok {
		return false
	}
	r.setStage(a, stageSubmitted)
	a.jobName, a.arrayIndex = name, index
	r.noteStart(a)
	r.nextPoll = time.Time{}
	return true
}

// kill serves Slurm.Kill.
func (r *reconciler) kill(key messages.AttemptKey, grace time.Duration) {
	a := r.attempts[key]
	if a == nil || a.stage >= stageCollecting {
		return
	}
	if !a.killed || grace < a.killGrace {
		a.killed, a.killGrace, a.terminateSent = true, max(grace, 0), false
	}
	if !r.withdraw(a) {
		r.requestTermination(a)
	}
}

// revoke serves Slurm.Revoke.
func (r *reconciler) revoke(key messages.AttemptKey) {
	if a := r.attempts[key]; a != nil && a.stage < stageRunning {
		a.revoked = true
		r.withdraw(a)
	}
}

// withdraw withdraws an attempt that has not begun, and reports it as Revoked. It returns false when the
// attempt has begun, or when that cannot be decided now: then the next poll decides.
//
// A job that was submitted for it finds begun and exits. It is cancelled all the same, as it would
// occupy a place in the cluster's queue. Where the number of the job is not known yet, the next poll
// finds it by its name (orphans), or the answer of sbatch tells it (onSubmitted).
func (r *reconciler) withdraw(a *attempt) bool {
	if a.stage >= stageRunning {
		return false
	}
	taken, err := a.folder.claimUnstarted()
	if err != nil {
		r.log.Warn("cannot withdraw an attempt; retrying", executor.LogKey(a.key), "err", err)
		return false
	}
	if !taken {
		r.noteStart(a)
		return false
	}
	switch {
	case a.jobID != "":
		r.toCancel = append(r.toCancel, a.jobID)
	case a.stage == stageSubmitted && !a.submitting:
		r.orphans = append(r.orphans, orphanJob{a.jobName, a.arrayIndex})
	}
	r.endRevoked(a)
	return true
}

// requestTermination has an attempt's own script end it, once its job is known. The script is told by
// SIGUSR1 and reads the grace from the folder, since a signal carries no number. Slurm's own scancel
// would end the job after the cluster's KillWait, which the attempt's grace may exceed or undercut; it
// is the last resort for a script that does not act (cancelAt).
func (r *reconciler) requestTermination(a *attempt) {
	if a.stage != stageRunning || a.jobID == "" || a.terminateSent {
		return
	}
	if err := writeFile(a.folder.path("grace"), []byte(formatSeconds(a.killGrace)+"\n")); err != nil {
		r.log.Warn("an attempt is killed with the default grace", executor.LogKey(a.key), "err", err)
	}
	a.terminateSent = true
	a.cancelAt = time.Now().Add(a.killGrace + cancelDelay)
	r.toTerminate = append(r.toTerminate, a.jobID)
}

// close serves Slurm.Close.
func (r *reconciler) close() {
	r.closing = true
	for key, a := range r.attempts {
		if a.stage < stageCollecting {
			a.endedByClose = !a.killed
			r.kill(key, r.slurm.cfg.CloseGrace)
		}
	}
}

// acknowledge forgets ends that are durable in the server. It serves Slurm.Acknowledge. An attempt that
// has not ended is not forgotten, whatever the caller says.
func (r *reconciler) acknowledge(keys []messages.AttemptKey) {
	for _, key := range keys {
		if a := r.attempts[key]; a != nil && a.stage == stageEnded {
			r.forget(a)
		}
	}
}

// forget lets an ended attempt go. A repetition of its order is ignored from here on (recent), as far as
// that memory reaches.
func (r *reconciler) forget(a *attempt) {
	delete(r.attempts, a.key)
	r.recent.Add(a.key)
	r.removeFolder(a)
}

// removeFolder deletes the attempt's folder and Slurm's messages on its job.
func (r *reconciler) removeFolder(a *attempt) {
	dir, job := a.folder, a.jobID
	r.slurm.runAsync(func() {
		if err := dir.remove(); err != nil {
			r.log.Warn("cannot remove an attempt's folder", "folder", dir, "err", err)
		}
		if job != "" {
			_ = os.Remove(filepath.Join(r.slurm.cfg.Dir, logFolder, job)) // missing if Slurm had no messages
		}
	})
}

// expectResume serves Slurm.ExpectResume. Only the first call, of a server that starts, makes orphans of
// the attempts that other runs have in the folder. A later call names a run whose actor was rebuilt.
func (r *reconciler) expectResume(runs []messages.RunID) {
	expected := map[messages.RunID]bool{}
	for _, run := range runs {
		expected[run] = true
	}
	for key, a := range r.attempts {
		if expected[key.Run] {
			r.abandon(a)
		}
	}
	if !r.resumeExpected {
		r.resumeExpected = true
		r.discardOrphans(func(run messages.RunID) bool { return !expected[run] })
	}
}

// abandon forgets an attempt that its run orders again. Its folder holds all that counts. A collection
// that is under way goes on and saves its report there, for the attempt that replaces this one.
func (r *reconciler) abandon(a *attempt) {
	if a.stage != stageEnded {
		r.unfinished--
	}
	r.slurm.hideOutput(a)
	r.setStage(a, stageEnded)
	a.abandoned = true
	delete(r.attempts, a.key)
}

// discardOrphans ends and forgets the attempts of these runs that have a folder but no order. It reads
// the whole folder, so it costs O(runs and attempts in the folder). An orphan that was never submitted,
// or has ended, only loses its folder; one that may run is killed, and its end is not reported.
func (r *reconciler) discardOrphans(of func(messages.RunID) bool) {
	keys, err := r.slurm.listAttempts(of)
	if err != nil {
		r.log.Error("cannot list the attempts in the folder; orphans are not ended", "err", err)
		return
	}
	for _, key := range keys {
		if r.attempts[key] != nil {
			continue
		}
		a := &attempt{key: key, folder: r.slurm.folder(key), startReported: true}
		r.track(a)
		if r.recoverAttempt(a) {
			r.kill(key, r.slurm.cfg.CloseGrace)
		} else {
			r.reportEnd(a, nil)
		}
	}
}

// noteStart reads from the folder whether the attempt has begun, and reports the start. The folder may
// show that seconds before the next poll, or long after the job's end, on a file system that lags. The
// job that it names is the right one, whatever number sbatch gave to a later submission.
func (r *reconciler) noteStart(a *attempt) {
	b, ok := a.folder.readStart()
	if !ok || b.byServer || a.stage > stageRunning {
		return
	}
	if b.job != "" {
		a.jobID, a.node = b.job, b.node
	}
	if a.stage < stageRunning {
		r.setStage(a, stageRunning)
		a.startedAt = b.at
		a.output = r.slurm.publishOutput(a)
	}
	r.reportStart(a)
	if a.killed {
		r.requestTermination(a)
	}
}

// reportStart reports the start once, if it is known and asked for.
func (r *reconciler) reportStart(a *attempt) {
	if !a.startReported && a.order != nil && a.startedAt != 0 {
		a.startReported = true
		r.slurm.report(executor.Report{Key: a.key, Kind: executor.Started, At: a.startedAt})
	}
}

// endNotStarted ends an attempt that will never begin: the caller has claimed it (claimUnstarted), or no
// job of it was ever submitted. The report is saved before it is made, so that a server which dies in
// between repeats the same end.
func (r *reconciler) endNotStarted(a *attempt, result messages.AttemptResult, why string) {
	if a.order == nil {
		r.reportEnd(a, nil)
		return
	}
	report := a.order.NotStartedReport(time.Now().UnixNano(), result, why)
	if err := a.folder.saveReport(&report); err != nil {
		r.log.Warn("cannot save the final report of an attempt", executor.LogKey(a.key), "err", err)
	}
	r.reportEnd(a, &report)
}

// endRevoked gives an order back, whose attempt the caller has claimed.
func (r *reconciler) endRevoked(a *attempt) {
	r.reportEnd(a, &executor.Report{Key: a.key, Kind: executor.Revoked, At: time.Now().UnixNano()})
}

// reportEnd makes the final report; nil for an orphan, which the server does not know. The folders of
// revoked attempts and orphans are removed at once, so that their keys are free. Any other attempt keeps its folder until the
// end is acknowledged. An attempt that was abandoned while it was collected is skipped: the attempt that
// replaced it repeats the saved report.
func (r *reconciler) reportEnd(a *attempt, report *executor.Report) {
	if a.abandoned {
		return
	}
	r.slurm.hideOutput(a)
	r.setStage(a, stageEnded)
	r.unfinished--
	if report == nil || a.order == nil || report.Kind == executor.Revoked {
		delete(r.attempts, a.key)
		if err := a.folder.remove(); err != nil { // now, not async: its key may come again
			r.log.Warn("cannot remove an attempt's folder", "folder", a.folder, "err", err)
		}
	}
	if report != nil && a.order != nil {
		r.slurm.report(*report)
	}
}
