package remote

import (
	"slices"
	"time"

	"github.com/caravan-dag/caravan/messages"
)

// doubts is the set of runs that may have attempts which began although no worker knows
// them: a journal was damaged, a worker's folder was removed, or the machine was restarted.
// A resumed order that no worker knows is lost if its run is in doubt. Otherwise the
// attempt never began, and the order is given to a worker.
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
type doubts struct {
	all     bool                   // before ExpectResume: every run that there is then
	runs    map[messages.RunID]int // attempts of each that are lost, or will be, and not acknowledged
	changed bool                   // and not saved
	saving  *time.Timer
}

// saveDoubtsWithin is how long the registry may still name a run that has left the set.
const saveDoubtsWithin = time.Second

// begin sets the doubts to those of the registry.
func (d *doubts) begin(all bool, runs []messages.RunID) {
	d.all, d.runs = all, make(map[messages.RunID]int, len(runs))
	for _, run := range runs {
		d.runs[run] = 0
	}
}

// add puts a run in doubt.
func (d *doubts) add(run messages.RunID) {
	if _, in := d.runs[run]; !in {
		d.runs[run] = 0
		d.changed = true
	}
}

// has tells whether a run is in doubt.
func (d *doubts) has(run messages.RunID) bool {
	_, in := d.runs[run]
	return d.all || in
}

// doubt marks an attempt that no worker knows as one that may have begun. mu is held.
func (r *Remote) doubt(key messages.AttemptKey, e *entry) {
	if !e.doubtful {
		e.doubtful = true
		r.doubts.add(key.Run)
		r.doubts.runs[key.Run]++
	}
}

// undoubt removes the mark: a worker knows the attempt, or its loss is durable. mu is held.
func (r *Remote) undoubt(key messages.AttemptKey, e *entry) {
	if e.doubtful {
		e.doubtful = false
		r.doubts.runs[key.Run]--
		r.trust(key.Run)
	}
}

// loseDoubtful reports an attempt as lost and keeps it until the loss is acknowledged.
// mu is held.
func (r *Remote) loseDoubtful(e *entry, why string) {
	end := lost(e.order, why)
	e.stage, e.peer, e.end = ended, nil, &end
	r.report(end)
}

// lostMemory is called when a worker's journal is not whole. Every attempt that was granted
// by a former server and is not found yet may be one of that worker's. mu is held.
func (r *Remote) lostMemory() {
	r.doubts.changed = true
	if r.expects == nil {
		r.doubts.all = true
	}
	for run := range r.expects {
		r.doubts.add(run)
	}
	for key, e := range r.entries {
		if e.order != nil && e.order.Resume && e.peer == nil && e.stage == unknown {
			r.doubt(key, e)
		}
	}
}

// expectInDoubt replaces doubts.all by the runs that exist. mu is held.
func (r *Remote) expectInDoubt(runs []messages.RunID) {
	if !r.doubts.all {
		return
	}
	r.doubts.all, r.doubts.changed = false, true
	for _, run := range runs {
		r.doubts.add(run)
	}
	r.wake()
}

// trust removes a run from the set if nothing keeps it there. mu is held.
func (r *Remote) trust(run messages.RunID) {
	undecided, in := r.doubts.runs[run]
	if _, expected := r.expects[run]; !in || undecided > 0 || expected || r.expects == nil || r.state != open {
		return
	}
	delete(r.doubts.runs, run)
	if r.doubts.saving == nil {
		r.doubts.saving = time.AfterFunc(saveDoubtsWithin, func() {
			r.mu.Lock()
			defer r.unlock()
			r.doubts.saving, r.doubts.changed = nil, true
			r.wake()
		})
	}
}

// saveDoubts stores the set in the registry if it has changed.
func (r *Remote) saveDoubts() {
	r.mu.Lock()
	if !r.doubts.changed {
		r.unlock()
		return
	}
	r.doubts.changed = false
	all, runs := r.doubts.all, make([]messages.RunID, 0, len(r.doubts.runs))
	for run := range r.doubts.runs {
		runs = append(runs, run)
	}
	r.unlock()
	slices.Sort(runs)
	if err := r.registry.setDoubts(all, runs); err != nil {
		// The registry holds the new set in memory and writes it with its next change, at the
		// latest before it lets a worker's folder go.
		r.log.Warn("registry of workers not written", "err", err)
	}
}
