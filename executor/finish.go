package executor

import (
	"time"

	"github.com/caravan-dag/caravan/messages"
)

// finishAttempt handles the end of an attempt whose processes are gone and whose slots are free.
// That may take long, so a helper calls it.
func (p *Process) finishAttempt(a *attempt) {
	p.freezeOutput(a)
	p.reportFinal(p.finalReport(a))
	p.releaseAttempt(a)
}

// freezeOutput ends the attempt's output. It may be called again.
func (p *Process) freezeOutput(a *attempt) {
	if a.outputFinal.Load() {
		return
	}
	p.monitor.remove(a)
	a.pumps.stop()
	a.stdout.freeze()
	a.stderr.freeze()
	a.outputFinal.Store(true)
}

// endTakesLong tells whether the final report needs more than some short system calls. Where a
// survivor may be writing, the seals wait for its write.
func (p *Process) endTakesLong(a *attempt) bool {
	short := int64(p.cfg.InlineMax)
	if a.order.Capture || a.pumps != nil || a.stdout.Size() > short || a.stderr.Size() > short {
		return true
	}
	if a.cgroup == nil {
		return groupExists(a.pid)
	}
	return a.cgroup.populated()
}

// finalReport says what became of an attempt, and keeps its output.
func (p *Process) finalReport(a *attempt) Report {
	report := Report{Key: a.order.Key, Kind: Finished, At: a.endedAt, GrantedAt: a.order.GrantedAt}
	rec := &report.Record
	*rec = messages.AttemptRecord{
		Task: a.order.Key.Task, Attempt: a.order.Key.Attempt, Start: a.startedAt, Stop: a.endedAt, Node: p.cfg.Node,
		MaxRSSKB:  p.peakMemoryKB(a),
		UserCPU:   time.Duration(a.usage.Utime.Nano()),
		SystemCPU: time.Duration(a.usage.Stime.Nano()),
	}
	rec.Result, rec.RC, rec.ExecutorLog = a.result()
	rec.ExecutorLog = JoinTexts(rec.ExecutorLog, a.cgroup.oomMessage())
	p.output.Keep(&report, a.stdout, a.stderr)
	if a.order.Capture {
		p.output.Capture(&report, a.stdout)
	}
	return report
}

// releaseAttempt frees what a reported attempt still holds. It may take long.
func (p *Process) releaseAttempt(a *attempt) {
	survivors := true
	if a.stdout != nil {
		survivors = p.cgroups.release(a.cgroup)
	}
	p.dropOutput(a, survivors)
}

// dropOutput frees the attempt's output, which survivors may still hold.
func (p *Process) dropOutput(a *attempt, survivors bool) {
	if a.stdout != nil {
		a.stdout.freeOnRelease.Store(survivors)
		a.stderr.freeOnRelease.Store(survivors)
		a.stdout.release()
		a.stderr.release()
	}
	p.unfinished.Done()
}

// removeReported takes attempts out of the table. These are their final reports.
func (p *Process) removeReported(reports ...Report) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range reports {
		delete(p.attempts, reports[i].Key)
		if reports[i].Record.RC == -1 {
			p.stats.NotStarted++
		}
	}
	p.admitQueued(0) // only now may other attempts take their place among those that run at once
}

// reportFinal makes the final report of an attempt.
func (p *Process) reportFinal(r Report) {
	p.removeReported(r)
	p.cfg.Sink(r)
}
