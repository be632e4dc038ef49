package executor

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/messages"
)

// finish sees an attempt to its end whose processes are gone and whose slots were given back.
// It may take long: a helper calls it.
func (p *Process) finishAttempt(a *attempt) {
	p.freezeOutput(a)
	p.reportFinal(p.finalReport(a))
	p.releaseAttempt(a)
}

// freeze ends the attempt's output. It may be called again.
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

// takesLong tells whether the final report needs more than some short system calls: where
// somebody may be writing, the seals wait for that.
func (p *Process) endTakesLong(a *attempt) bool {
	short := int64(p.cfg.InlineMax)
	if a.order.Capture || a.pumps != nil || a.stdout.size() > short || a.stderr.size() > short {
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
	if why := a.cgroup.oomMessage(); why != "" {
		rec.ExecutorLog = joinTexts(rec.ExecutorLog, why)
	}
	rec.Stdout = a.stdout.kept(p.cfg.MaxOutput)
	rec.Stderr = a.stderr.kept(p.cfg.MaxOutput)
	p.keep(a, rec)
	if a.order.Capture {
		p.capture(a, &report)
	}
	return report
}

// clear gives up what an attempt that was reported still has. It may take long.
func (p *Process) releaseAttempt(a *attempt) {
	survivors := true
	if a.stdout != nil {
		survivors = p.cgroups.release(a.cgroup)
	}
	p.dropOutput(a, survivors)
}

// drop gives up the attempt's output. Survivors may still have it.
func (p *Process) dropOutput(a *attempt, survivors bool) {
	if a.stdout != nil {
		a.stdout.freeOnRelease.Store(survivors)
		a.stderr.freeOnRelease.Store(survivors)
		a.stdout.release()
		a.stderr.release()
	}
	p.unfinished.Done()
}

// long tells whether the output is too long for the record itself.
func (p *Process) long(o *messages.Output) bool { return o.Head+o.Tail > int64(p.cfg.InlineMax) }

// keep puts short output into the record and long output into the run's file, with
// one durable append for both streams. When that cannot be written the attempt's
// result stands, with the beginning of its output and a word on what was lost.
func (p *Process) keep(a *attempt, rec *messages.AttemptRecord) {
	both := []struct {
		which  messages.Stream
		stream *stream
		out    *messages.Output
	}{{messages.Stdout, a.stdout, &rec.Stdout}, {messages.Stderr, a.stderr, &rec.Stderr}}
	var parts []outputs.Part
	for _, s := range both {
		if !p.long(s.out) {
			s.stream.inline(s.out)
			continue
		}
		parts = append(parts, outputs.Part{Stream: s.which, Length: s.out.Head + s.out.Tail, Body: io.MultiReader(
			s.stream.section(0, s.out.Head), s.stream.section(s.out.Size-s.out.Tail, s.out.Tail))})
	}
	if parts == nil {
		return
	}
	offsets, err := p.cfg.Outputs.Append(a.order.Key, parts...)
	if err != nil {
		if !errors.Is(err, outputs.ErrNoRoom) { // of which there may be very many
			p.cfg.Logger.Error("output not kept", "key", a.order.Key, "err", err)
		}
		rec.ExecutorLog = joinTexts(rec.ExecutorLog, fmt.Sprintf("output cut to %d bytes: %v", p.cfg.InlineMax, err))
	}
	for _, s := range both {
		switch {
		case !p.long(s.out):
		case err != nil:
			s.out.Head, s.out.Tail = min(s.out.Head, int64(p.cfg.InlineMax)), 0
			s.stream.inline(s.out)
		default:
			s.out.Offset, offsets = offsets[0], offsets[1:]
		}
	}
}

// capture gives the report all of stdout. Success with more than the limit is none.
func (p *Process) capture(a *attempt, r *Report) {
	size := r.Record.Stdout.Size
	if size <= p.cfg.MaxCapture {
		r.Stdout = a.stdout.bytes(0, size)
		return
	}
	if r.Record.Result == messages.AttemptSucceeded {
		r.Record.Result = messages.AttemptRejected
	}
	r.Record.ExecutorLog = joinTexts(r.Record.ExecutorLog,
		fmt.Sprintf("%d bytes of output are more than the %d that a generator may print", size, p.cfg.MaxCapture))
}

func joinTexts(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}
