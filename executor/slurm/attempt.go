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
func (c *reconciler) setStage(e *attempt, to stage) {
	if e.stage == stageSubmitted || e.stage == stageRunning {
		c.inFlight--
	}
	if to == stageSubmitted || to == stageRunning {
		c.inFlight++
	}
	e.stage = to
}

// startOrder accepts an order, or finds out what became of it before a restart.
func (c *reconciler) startOrder(o *executor.Order) {
	e := c.attempts[o.Key]
	switch {
	case c.closing:
		c.slurm.cfg.Sink(reportAfterClose(o))
		return
	case e != nil && e.order != nil, e == nil && c.recent.Has(o.Key):
		return
	case e != nil:
		e.order = o
		c.reportStart(e)
		return
	}
	e = &attempt{key: o.Key, order: o, folder: c.slurm.folder(o.Key)}
	script, err := attemptScript(o, c.slurm.baseEnv, c.slurm.defaultDir, string(e.folder))
	if mask := c.slurm.cfg.Umask; mask != "" {
		script = "umask " + mask + "\n" + script
	}
	if err == nil {
		_, err = c.sbatchOptions(o)
	}
	if err != nil {
		c.recent.Add(o.Key)
		c.slurm.cfg.Sink(notStartedReport(o, messages.AttemptNotStarted, err.Error()))
		return
	}
	c.track(e)
	err = e.folder.create()
	if errors.Is(err, fs.ErrExist) {
		if c.recoverAttempt(e) {
			return
		}
		err = nil
	}
	if err == nil {
		err = writeFile(e.folder.path("run"), []byte(script))
		if o.UseShell && executor.ExceedsArgumentLimit(o.Shell) {
			err = errors.Join(err, writeFile(e.folder.path(textFile), []byte(o.Shell)))
		}
	}
	if err != nil {
		c.endNotStarted(e, messages.AttemptLost, "lost: its folder cannot be created: "+err.Error())
		return
	}
	c.enqueue(e)
}

func (c *reconciler) track(e *attempt) {
	c.lastSequence++
	e.sequence = c.lastSequence
	c.attempts[e.key] = e
	c.unfinished++
}

func (c *reconciler) enqueue(e *attempt) {
	if len(c.waiting) == 0 {
		c.gatherUntil = time.Now().Add(c.slurm.cfg.Gather)
	}
	c.setStage(e, stageWaiting)
	c.waiting = append(c.waiting, e)
}

// recoverAttempt takes over an attempt whose folder exists. It returns false when the attempt was
// never submitted.
func (c *reconciler) recoverAttempt(e *attempt) bool {
	if v, ok := e.folder.readReport(c.slurm.maxReportBytes()); ok {
		e.startedAt = v.Record.Start
		c.setStage(e, stageCollecting)
		c.slurm.runAsync(func() { c.slurm.repeatReport(e, v) })
		return true
	}
	if b, ok := e.folder.readStart(); ok && b.byServer {
		// A former server withdrew it, and ended before it reported that.
		_ = os.Remove(e.folder.path("begun"))
	}
	name, index, ok := e.folder.readJob()
	if !ok {
		return false
	}
	c.setStage(e, stageSubmitted)
	e.jobName, e.arrayIndex = name, index
	c.noteStart(e)
	c.nextPoll = time.Time{}
	return true
}

// kill serves Slurm.Kill.
func (c *reconciler) kill(key messages.AttemptKey, grace time.Duration) {
	e := c.attempts[key]
	if e == nil || e.stage >= stageCollecting {
		return
	}
	if !e.killed || grace < e.killGrace {
		e.killed, e.killGrace, e.terminateSent = true, max(grace, 0), false
	}
	if !c.withdraw(e) {
		c.requestTermination(e)
	}
}

// revoke serves Slurm.Revoke.
func (c *reconciler) revoke(key messages.AttemptKey) {
	if e := c.attempts[key]; e != nil && e.stage < stageRunning {
		e.revoked = true
		c.withdraw(e)
	}
}

// withdraw withdraws an attempt that has not begun. It returns false when the attempt has begun, or
// when that cannot be decided now: then the next poll decides.
func (c *reconciler) withdraw(e *attempt) bool {
	if e.stage >= stageRunning {
		return false
	}
	taken, err := e.folder.claimUnstarted()
	if err != nil {
		c.log.Warn("cannot withdraw an attempt; retrying", executor.LogKey(e.key), "err", err)
		return false
	}
	if !taken {
		c.noteStart(e)
		return false
	}
	switch {
	case e.jobID != "":
		c.toCancel = append(c.toCancel, e.jobID)
	case e.stage == stageSubmitted && !e.submitting:
		c.orphans = append(c.orphans, orphanJob{e.jobName, e.arrayIndex})
	}
	c.endRevoked(e)
	return true
}

// requestTermination has an attempt's own script end it, once its job is known.
func (c *reconciler) requestTermination(e *attempt) {
	if e.stage != stageRunning || e.jobID == "" || e.terminateSent {
		return
	}
	if err := writeFile(e.folder.path("grace"), []byte(formatSeconds(e.killGrace)+"\n")); err != nil {
		c.log.Warn("an attempt is killed with the default grace", executor.LogKey(e.key), "err", err)
	}
	e.terminateSent = true
	e.cancelAt = time.Now().Add(e.killGrace + cancelDelay)
	c.toTerminate = append(c.toTerminate, e.jobID)
}

// close serves Slurm.Close.
func (c *reconciler) close() {
	c.closing = true
	for key, e := range c.attempts {
		if e.stage < stageCollecting {
			e.endedByClose = !e.killed
			c.kill(key, c.slurm.cfg.CloseGrace)
		}
	}
}

// acknowledge forgets ends that are durable in the server.
func (c *reconciler) acknowledge(keys []messages.AttemptKey) {
	for _, key := range keys {
		if e := c.attempts[key]; e != nil && e.stage == stageEnded {
			c.forget(e)
		}
	}
}

func (c *reconciler) forget(e *attempt) {
	delete(c.attempts, e.key)
	c.recent.Add(e.key)
	c.removeFolder(e)
}

// removeFolder deletes the attempt's folder and Slurm's messages on its job.
func (c *reconciler) removeFolder(e *attempt) {
	dir, job := e.folder, e.jobID
	c.slurm.runAsync(func() {
		if err := dir.remove(); err != nil {
			c.log.Warn("cannot remove an attempt's folder", "folder", dir, "err", err)
		}
		if job != "" {
			_ = os.Remove(filepath.Join(c.slurm.cfg.Dir, logFolder, job)) // missing if Slurm had no messages
		}
	})
}

// expectResume serves Slurm.ExpectResume.
func (c *reconciler) expectResume(runs []messages.RunID) {
	expected := map[messages.RunID]bool{}
	for _, run := range runs {
		expected[run] = true
	}
	for key, e := range c.attempts {
		if expected[key.Run] {
			c.abandon(e)
		}
	}
	if !c.resumeExpected {
		c.resumeExpected = true
		c.discardOrphans(func(run messages.RunID) bool { return !expected[run] })
	}
}

// abandon forgets an attempt that its run orders again. Its folder holds all that counts.
func (c *reconciler) abandon(e *attempt) {
	if e.stage != stageEnded {
		c.unfinished--
	}
	c.setStage(e, stageEnded)
	e.abandoned = true
	c.slurm.hideOutput(e)
	delete(c.attempts, e.key)
}

// discardOrphans ends and forgets the attempts of these runs that have a folder but no order.
func (c *reconciler) discardOrphans(of func(messages.RunID) bool) {
	keys, err := c.slurm.listAttempts(of)
	if err != nil {
		c.log.Error("cannot list the attempts in the folder; orphans are not ended", "err", err)
		return
	}
	for _, key := range keys {
		if c.attempts[key] != nil {
			continue
		}
		e := &attempt{key: key, folder: c.slurm.folder(key), startReported: true}
		c.track(e)
		if c.recoverAttempt(e) {
			c.kill(key, c.slurm.cfg.CloseGrace)
		} else {
			c.reportEnd(e, nil)
		}
	}
}

// noteStart reads from the folder whether the attempt has begun.
func (c *reconciler) noteStart(e *attempt) {
	b, ok := e.folder.readStart()
	if !ok || b.byServer || e.stage > stageRunning {
		return
	}
	if b.job != "" {
		e.jobID, e.node = b.job, b.node
	}
	if e.stage < stageRunning {
		c.setStage(e, stageRunning)
		e.startedAt = b.at
		e.output = c.slurm.publishOutput(e)
	}
	c.reportStart(e)
	if e.killed {
		c.requestTermination(e)
	}
}

func (c *reconciler) reportStart(e *attempt) {
	if !e.startReported && e.order != nil && e.startedAt != 0 {
		e.startReported = true
		c.slurm.cfg.Sink(executor.Report{Key: e.key, Kind: executor.Started, At: e.startedAt})
	}
}

// endNotStarted ends an attempt that will never begin.
func (c *reconciler) endNotStarted(e *attempt, result messages.AttemptResult, why string) {
	if e.order == nil {
		c.reportEnd(e, nil)
		return
	}
	r := notStartedReport(e.order, result, why)
	if err := e.folder.saveReport(&r); err != nil {
		c.log.Warn("cannot save the final report of an attempt", executor.LogKey(e.key), "err", err)
	}
	c.reportEnd(e, &r)
}

func (c *reconciler) endRevoked(e *attempt) {
	c.reportEnd(e, &executor.Report{Key: e.key, Kind: executor.Revoked, At: time.Now().UnixNano()})
}

// reportEnd makes the final report. Revoked attempts and orphans leave no trace, so that their keys
// are free.
func (c *reconciler) reportEnd(e *attempt, r *executor.Report) {
	if e.abandoned {
		return
	}
	c.setStage(e, stageEnded)
	c.unfinished--
	c.slurm.hideOutput(e)
	if r == nil || e.order == nil || r.Kind == executor.Revoked {
		delete(c.attempts, e.key)
		if err := e.folder.remove(); err != nil { // now, not async: its key may come again
			c.log.Warn("cannot remove an attempt's folder", "folder", e.folder, "err", err)
		}
	}
	if r != nil && e.order != nil {
		c.slurm.cfg.Sink(*r)
	}
}
