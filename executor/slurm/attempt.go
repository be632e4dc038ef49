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
// acknowledged.
type attempt struct {
	key           messages.AttemptKey
	sequence      uint64          // in which orders came
	order         *executor.Order // nil: an orphan, which is being ended
	folder        folder
	stage         stage
	jobName       string // name of its job
	arrayIndex    int    // index in the job's array
	jobID         string // as squeue and scancel print it; "" = unknown
	submitting    bool   // its sbatch is running
	submissions   int
	visibleFrom   time.Time // polls that began earlier cannot show the job
	endedJob      *job      // its final state
	node          string
	startedAt     int64 // ns since the epoch
	startReported bool  // Started was reported
	abandoned     bool  // its run orders it again, so this entry no longer counts
	killed        bool
	revoked       bool
	endedByClose  bool // Close killed it
	killGrace     time.Duration
	terminateSent bool      // its script was told to end it
	cancelAt      time.Time // when Slurm is told to end the job
	endDeadline   time.Time // how long to wait for its end after the end of its job
	output        *attemptOutput
}

// stage is how far an attempt is.
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
	// idleSleep is how long the reconciler sleeps when it has no duties.
	idleSleep = time.Hour
)

// setStage moves an attempt to a stage and keeps inFlight.
func (r *reconciler) setStage(a *attempt, to stage) {
	if a.stage == stageSubmitted || a.stage == stageRunning {
		r.inFlight--
	}
	if to == stageSubmitted || to == stageRunning {
		r.inFlight++
	}
	a.stage = to
}

// startOrder accepts an order, or finds out what became of it before a restart.
func (r *reconciler) startOrder(o *executor.Order) {
	a := r.attempts[o.Key]
	switch {
	case r.closing:
		r.slurm.cfg.Sink(o.ReportAfterClose(time.Now().UnixNano()))
		return
	case a != nil && a.order != nil, a == nil && r.recent.Has(o.Key):
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
		r.slurm.cfg.Sink(o.NotStartedReport(time.Now().UnixNano(), messages.AttemptNotStarted, err.Error()))
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

func (r *reconciler) track(a *attempt) {
	r.lastSequence++
	a.sequence = r.lastSequence
	r.attempts[a.key] = a
	r.unfinished++
}

func (r *reconciler) enqueue(a *attempt) {
	if len(r.waiting) == 0 {
		r.gatherUntil = time.Now().Add(r.slurm.cfg.Gather)
	}
	r.setStage(a, stageWaiting)
	r.waiting = append(r.waiting, a)
}

// recoverAttempt takes over an attempt whose folder exists. It returns false when the attempt was
// never submitted.
func (r *reconciler) recoverAttempt(a *attempt) bool {
	if v, ok := a.folder.readReport(r.slurm.maxReportBytes()); ok {
		a.startedAt = v.Record.Start
		r.setStage(a, stageCollecting)
		r.slurm.runAsync(func() { r.slurm.repeatReport(a, v) })
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

// withdraw withdraws an attempt that has not begun. It returns false when the attempt has begun, or
// when that cannot be decided now: then the next poll decides.
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

// requestTermination has an attempt's own script end it, once its job is known.
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

// acknowledge forgets ends that are durable in the server.
func (r *reconciler) acknowledge(keys []messages.AttemptKey) {
	for _, key := range keys {
		if a := r.attempts[key]; a != nil && a.stage == stageEnded {
			r.forget(a)
		}
	}
}

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

// expectResume serves Slurm.ExpectResume.
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

// abandon forgets an attempt that its run orders again. Its folder holds all that counts.
func (r *reconciler) abandon(a *attempt) {
	if a.stage != stageEnded {
		r.unfinished--
	}
	r.setStage(a, stageEnded)
	a.abandoned = true
	r.slurm.hideOutput(a)
	delete(r.attempts, a.key)
}

// discardOrphans ends and forgets the attempts of these runs that have a folder but no order.
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

// noteStart reads from the folder whether the attempt has begun.
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

func (r *reconciler) reportStart(a *attempt) {
	if !a.startReported && a.order != nil && a.startedAt != 0 {
		a.startReported = true
		r.slurm.cfg.Sink(executor.Report{Key: a.key, Kind: executor.Started, At: a.startedAt})
	}
}

// endNotStarted ends an attempt that will never begin.
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

func (r *reconciler) endRevoked(a *attempt) {
	r.reportEnd(a, &executor.Report{Key: a.key, Kind: executor.Revoked, At: time.Now().UnixNano()})
}

// reportEnd makes the final report. Revoked attempts and orphans leave no trace, so that their keys
// are free.
func (r *reconciler) reportEnd(a *attempt, report *executor.Report) {
	if a.abandoned {
		return
	}
	r.setStage(a, stageEnded)
	r.unfinished--
	r.slurm.hideOutput(a)
	if report == nil || a.order == nil || report.Kind == executor.Revoked {
		delete(r.attempts, a.key)
		if err := a.folder.remove(); err != nil { // now, not async: its key may come again
			r.log.Warn("cannot remove an attempt's folder", "folder", a.folder, "err", err)
		}
	}
	if report != nil && a.order != nil {
		r.slurm.cfg.Sink(*report)
	}
}
