package actors

import (
	"errors"
	"fmt"
	"time"

	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

const (
	// leftoverStep is how many output files are looked up, or removed, between two pauses. A pause
	// takes as long as the step before it, and leftoverPause at least: the search uses at most half
	// a core.
	leftoverStep  = 256
	leftoverPause = 10 * time.Millisecond
	// leftoverPoll is how often the search asks whether the store has counted the finished runs.
	leftoverPoll = time.Second
	// maxLeftovers bounds what one start removes, to 8 MB of run IDs. A crash leaves sweepStep files.
	maxLeftovers = 1_000_000
)

var errJanitorStopped = errors.New("the janitor was stopped")

// removeLeftoverOutputs removes the output files that deletions before this start have left: a crash
// between the deletion of a run's rows and that of its file, or a file that could not be removed. It
// runs once, on a goroutine of its own, and returns at close.
//
// below is the next run ID as of the start, before the first submission. IDs are never reused, so a
// run below it that the store does not know is deleted for good. Runs that are created from now on,
// and IDs that are only reserved, are not below it.
//
// A store that is damaged or has failed may have lost the rows of a run that exists. So all files are
// looked up first, and one error other than ErrNotFound, or damage, keeps them all.
func (j *janitor) removeLeftoverOutputs(below messages.RunID) error {
	if err := j.awaitFinishedCount(); err != nil {
		return err
	}
	leftovers, err := j.leftoverOutputs(below)
	if err != nil {
		return err
	}
	paced := j.newPacer()
	for i, run := range leftovers {
		if err := paced.step(); err != nil {
			return err
		}
		if err := j.n.env.store.Damaged(); err != nil {
			return err
		}
		if err := j.n.env.outputs.Remove(run); err != nil {
			return fmt.Errorf("removed %d of %d: %w", i, len(leftovers), err)
		}
	}
	if len(leftovers) > 0 {
		j.n.env.log.Info("removed output files of deleted runs", "files", len(leftovers))
	}
	return nil
}

// leftoverOutputs returns up to maxLeftovers runs of the partition below an ID that have an output file
// and are not in the store.
func (j *janitor) leftoverOutputs(below messages.RunID) (leftovers []messages.RunID, err error) {
	paced := j.newPacer()
	err = j.n.env.outputs.ForEachRun(func(run messages.RunID) error {
		if err := paced.step(); err != nil {
			return err
		}
		if run >= below || !j.n.env.numbering.Owns(run) { // another engine may use the folder, too
			return nil
		}
		_, err := j.n.env.store.Summary(run)
		if err != nil && !errors.Is(err, persistence.ErrNotFound) {
			return fmt.Errorf("looking up run %d: %w", run, err)
		}
		if err != nil && len(leftovers) < maxLeftovers {
			leftovers = append(leftovers, run)
		}
		return nil
	})
	return leftovers, err
}

// pacer pauses work on output files that may be a million.
type pacer struct {
	j     *janitor
	steps int       // since the pause
	begin time.Time // end of the last pause
}

func (j *janitor) newPacer() *pacer { return &pacer{j: j, begin: time.Now()} }

// step is called before each file. It pauses, or returns errJanitorStopped.
func (p *pacer) step() error {
	if p.steps++; p.steps < leftoverStep {
		return nil
	}
	err := p.j.sleep(max(leftoverPause, time.Since(p.begin)))
	p.steps, p.begin = 0, time.Now()
	return err
}

// awaitFinishedCount returns when the store knows how many finished runs there are: until then it reads
// all their summaries, and the search would compete with that. A store that cannot read them never
// knows.
func (j *janitor) awaitFinishedCount() error {
	for {
		if _, known := j.n.env.store.FinishedCount(); known {
			return nil
		}
		if err := j.sleep(leftoverPoll); err != nil {
			return err
		}
	}
}

// sleep returns after d, or with errJanitorStopped.
func (j *janitor) sleep(d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-j.stop:
		return errJanitorStopped
	}
}
