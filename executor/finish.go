package executor

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/messages"
)

// run sees an admitted attempt to its final report, and then whatever takes its room:
//
//  1. start it, and report that;
//  2. wait for the leader's end, and for the whole group's when we ended it;
//  3. give the slots back, and admit what fits now;
//  4. read the output, as long as it is at this moment, and keep it;
//  5. report;
//  6. go on with what was admitted, and clear away what is left of this one once that runs.
//
// Output that must be written to disk does not keep 6 waiting. Short output is
// reported first, since forking takes longer.
func (p *Process) run(a *attempt) {
	var before *attempt
	for a != nil {
		failed, lacking := p.launch(a)
		p.clear(before)
		if lacking != nil {
			if failed = p.postpone(a, lacking); failed == nil {
				return
			}
		}
		var fit []*attempt
		if failed != nil {
			fit = p.release(a, failed.At)
			p.conclude(a, failed)
		} else {
			fit = p.finish(a)
		}
		before, a = a, nil
		if len(fit) > 0 {
			a = fit[0]
			p.spread(fit[1:])
		}
	}
	p.clear(before)
}

// clear gives up what an attempt that was reported still has.
func (p *Process) clear(a *attempt) {
	if a == nil {
		return
	}
	if a.out != nil {
		survivors := p.limits.give(a.group)
		a.out.empty.Store(survivors)
		a.err.empty.Store(survivors)
		a.out.drop()
		a.err.drop()
	}
	p.work.Done()
}

// finish is run's 2 to 5. It returns what is left to run.
func (p *Process) finish(a *attempt) (fit []*attempt) {
	a.awaitLeader()
	if a.isZombie() {
		p.bury(a)
	}
	stop := max(p.cfg.Now(), a.began) // the wall clock may have been set back meanwhile
	p.watch.remove(a)
	a.pumps.stop()
	a.out.freeze()
	a.err.freeze()
	a.ended.Store(true)
	fit = p.release(a, stop)

	report := Report{Key: a.order.Key, Kind: Finished, At: stop, GrantedAt: a.order.GrantedAt}
	rec := &report.Record
	*rec = messages.AttemptRecord{
		Task: a.order.Key.Task, Attempt: a.order.Key.Attempt, Start: a.began, Stop: stop, Node: p.cfg.Node,
		MaxRSSKB:  p.peak(a),
		UserCPU:   time.Duration(a.usage.Utime.Nano()),
		SystemCPU: time.Duration(a.usage.Stime.Nano()),
	}
	rec.Result, rec.RC, rec.ExecutorLog = a.result()
	if why := a.group.outOfMemory(); why != "" {
		rec.ExecutorLog = join(rec.ExecutorLog, why)
	}
	rec.Stdout = a.out.kept(p.cfg.MaxOutput)
	rec.Stderr = a.err.kept(p.cfg.MaxOutput)
	if p.long(&rec.Stdout) || p.long(&rec.Stderr) {
		p.spread(fit)
		fit = nil
	}
	p.keep(a, rec)
	if a.order.Capture {
		p.capture(a, &report)
	}
	p.conclude(a, &report)
	return fit
}

func (a *attempt) isZombie() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.phase == zombie
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
	}{{messages.Stdout, a.out, &rec.Stdout}, {messages.Stderr, a.err, &rec.Stderr}}
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
		rec.ExecutorLog = join(rec.ExecutorLog, fmt.Sprintf("output cut to %d bytes: %v", p.cfg.InlineMax, err))
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
		r.Stdout = a.out.bytes(0, size)
		return
	}
	if r.Record.Result == messages.AttemptSucceeded {
		r.Record.Result = messages.AttemptRejected
	}
	r.Record.ExecutorLog = join(r.Record.ExecutorLog,
		fmt.Sprintf("%d bytes of output are more than the %d that a generator may print", size, p.cfg.MaxCapture))
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}
