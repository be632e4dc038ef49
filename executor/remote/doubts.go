package remote

import (
	"maps"
	"slices"
	"time"

	"github.com/caravan-dag/caravan/executor/lifecycle"
	"github.com/caravan-dag/caravan/messages"
)

// runDoubts is the set of runs that may have attempts which began although workers do not know them: a
// journal was damaged, a worker's folder was removed, or the machine was restarted. A resumed order
// that workers do not know is lost if its run is in doubt. Otherwise the attempt never began, and the
// order is given to a worker.
//
// Times do not decide this. A grant carries the time of its run's own clock, which stays
// ahead of the machine's clock when that is set back, so it cannot be compared with the
// time at which a worker's memory was lost.
//
// A run enters the set when something of a worker is lost. It leaves the set when it has
// given all its live attempts again (ResumeDone) and every loss that this caused is durable
// (Acknowledge). The registry stores the set. New doubts are stored before the folder of
// the worker is removed. A run may leave the stored set later than this one: then an
// attempt that never began may count as lost, but no attempt runs twice.
//
// Remote.mu guards it.
type runDoubts struct {
	all       bool                   // before ExpectResume: every run that exists then
	runs      map[messages.RunID]int // attempts of each that are lost, or will be, and not acknowledged
	changed   bool                   // and not saved
	saveTimer *time.Timer
}

// saveDoubtsDelay is how long the registry may still name a run that has left the set.
const saveDoubtsDelay = time.Second

// restore sets the doubts to those of the registry. Losses of a former server that are not acknowledged
// are counted again when their orders come.
func (d *runDoubts) restore(all bool, runs []messages.RunID) {
	d.all, d.runs = all, make(map[messages.RunID]int, len(runs))
	for _, run := range runs {
		d.runs[run] = 0
	}
}

// addRun puts a run in doubt.
func (d *runDoubts) addRun(run messages.RunID) {
	if _, in := d.runs[run]; !in {
		d.runs[run] = 0
		d.changed = true
	}
}

// includes reports whether a run is in doubt.
func (d *runDoubts) includes(run messages.RunID) bool {
	_, in := d.runs[run]
	return d.all || in
}

// markDoubtful marks an attempt that workers do not know as one that may have begun. mu is held.
func (r *Remote) markDoubtful(key messages.AttemptKey, a *trackedAttempt) {
	if !a.doubtful {
		a.doubtful = true
		r.doubts.addRun(key.Run)
		r.doubts.runs[key.Run]++
	}
}

// clearDoubtful removes the mark: a worker knows the attempt, or its loss is durable. mu is held.
func (r *Remote) clearDoubtful(key messages.AttemptKey, a *trackedAttempt) {
	if a.doubtful {
		a.doubtful = false
		r.doubts.runs[key.Run]--
		r.removeDoubt(key.Run)
	}
}

// loseAttempt reports an attempt as lost and keeps it until the loss is acknowledged. mu is held.
func (r *Remote) loseAttempt(a *trackedAttempt, why string) {
	end := lostReport(a.order, why)
	a.MoveTo(lifecycle.Ended)
	a.peer, a.end = nil, &end
	r.queueReport(end)
}

// doubtUnheard is called when a worker's journal is incomplete. Every attempt that a former server
// granted and that is not found yet may be one of that worker's. So all runs that resume come into doubt;
// before ExpectResume these are not known yet, and all runs do. Attempts of new grants are not concerned:
// this server knows which worker it gave them to. mu is held.
func (r *Remote) doubtUnheard() {
	r.doubts.changed = true
	if r.expectedRuns == nil {
		r.doubts.all = true
	}
	for run := range r.expectedRuns {
		r.doubts.addRun(run)
	}
	for key, a := range r.attempts {
		if a.order != nil && a.order.Resume && a.peer == nil && a.State() == lifecycle.Queued {
			r.markDoubtful(key, a)
		}
	}
}

// doubtExpected replaces runDoubts.all by the runs that exist, which can be removed one by one. Runs that
// are submitted later are not in doubt. mu is held.
func (r *Remote) doubtExpected(runs []messages.RunID) {
	if !r.doubts.all {
		return
	}
	r.doubts.all, r.doubts.changed = false, true
	for _, run := range runs {
		r.doubts.addRun(run)
	}
	r.requestReconcile()
}

// removeDoubt removes a run from the set when its reasons are over: it has given all its live attempts
// again, and each loss is acknowledged. The registry is written with some delay, since runs resume in
// bursts after a start. While the Remote closes, the set stays for the next server. mu is held.
func (r *Remote) removeDoubt(run messages.RunID) {
	undecided, in := r.doubts.runs[run]
	if !in || undecided > 0 || r.expectedRuns == nil && !r.cfg.ForLeaders || r.expectedRuns[run] || r.phase != phaseOpen {
		return
	}
	delete(r.doubts.runs, run)
	if r.doubts.saveTimer == nil {
		r.doubts.saveTimer = time.AfterFunc(saveDoubtsDelay, func() {
			r.mu.Lock()
			defer r.unlockAndDeliver()
			r.doubts.saveTimer, r.doubts.changed = nil, true
			r.requestReconcile()
		})
	}
}

// saveDoubts stores the set in the registry if it has changed. The supervisor calls it between the
// recovery of a dead worker and the removal of its folder, so that a doubt is on disk before its cause is
// gone; mu is not held over the write.
func (r *Remote) saveDoubts() {
	r.mu.Lock()
	if !r.doubts.changed {
		r.unlockAndDeliver()
		return
	}
	r.doubts.changed = false
	all := r.doubts.all
	runs := slices.AppendSeq(make([]messages.RunID, 0, len(r.doubts.runs)), maps.Keys(r.doubts.runs))
	r.unlockAndDeliver()
	slices.Sort(runs)
	if err := r.registry.setDoubts(all, runs); err != nil {
		// The registry holds the new set in memory and writes it with its next change, at the
		// latest before it lets a worker's folder go.
		r.log.Warn("registry of workers not written", "err", err)
	}
}
