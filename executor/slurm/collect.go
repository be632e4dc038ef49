package slurm

import (
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/messages"
)

// beside does something that takes a while beside the clerk, few at one time.
func (s *Slurm) beside(do func()) {
	s.work.Go(func() {
		s.slots <- struct{}{}
		defer func() { <-s.slots }()
		do()
	})
}

// collect makes the final report of an attempt that has begun, keeps its output and
// writes the verdict.
func (s *Slurm) collect(e *entry, end outcome, written bool) *executor.Report {
	now := time.Now().UnixNano()
	r := &executor.Report{Key: e.key, Kind: executor.Finished, At: now}
	rec := &r.Record
	*rec = messages.AttemptRecord{Task: e.key.Task, Attempt: e.key.Attempt, Start: e.at, Stop: now, Node: e.node}
	if e.node == "" && e.last != nil {
		rec.Node = e.last.node
	}
	if written {
		rec.Stop, rec.UserCPU, rec.SystemCPU = max(end.at, e.at), end.user, end.system
	}
	rec.Result, rec.RC, rec.ExecutorLog = judge(e, end, written)
	if rec.Result != messages.AttemptSucceeded && rec.Result != messages.AttemptKilled {
		rec.ExecutorLog = join(rec.ExecutorLog, s.slurmSays(e.job))
	}
	out, err := e.streams.out.freeze(), e.streams.err.freeze()
	s.keep(e, rec, out, err)
	if e.order.Capture {
		s.capture(e, r)
	}
	if err := e.folder.setVerdict(r); err != nil {
		s.cfg.Logger.Warn("the end of an attempt is not kept", "key", e.key, "err", err)
	}
	return r
}

// judge says how an attempt ended: by its script's word, and Slurm's.
func judge(e *entry, end outcome, written bool) (messages.AttemptResult, int32, string) {
	j, rc := e.last, int32(-1)
	switch {
	case written:
		rc = end.rc
	case j != nil && j.exit.Signaled():
		rc = 128 + int32(j.exit.Signal())
	case j != nil && j.exit.ExitStatus() != 0:
		rc = int32(j.exit.ExitStatus())
	}
	switch cause := e.folder.word("cause"); {
	case cause == "killed" && e.stopped:
		return messages.AttemptLost, rc, "ended by the executor's shutdown"
	case cause == "killed":
		return messages.AttemptKilled, orKilled(rc), "killed by the user"
	case cause != "":
		return messages.AttemptTimedOut, orKilled(rc), "timed out after " + e.order.Timeout.String()
	case j != nil && j.lost() && rc != 0:
		return messages.AttemptLost, rc, fmt.Sprintf("lost: job %s ended as %s", e.job, j.state)
	case written && rc == 0:
		return messages.AttemptSucceeded, 0, ""
	case e.folder.word("unstarted") == "folder":
		return messages.AttemptNotStarted, -1, fmt.Sprintf("working folder %q: not to be entered on node %s", e.order.Dir, e.node)
	case e.folder.word("unstarted") != "":
		return messages.AttemptNotStarted, -1, fmt.Sprintf("start %q: not found, or not to be executed, on node %s", program(e.order), e.node)
	case j == nil && !written:
		return messages.AttemptLost, rc, fmt.Sprintf("lost: Slurm does not know job %s any more, and it has left no word of its end", e.job)
	case rc < 0:
		return messages.AttemptLost, rc, fmt.Sprintf("lost: job %s ended as %s, and its end was not written", e.job, j.state)
	}
	if j != nil && j.state == "CANCELLED" && e.killed {
		return messages.AttemptKilled, rc, "killed by the user"
	}
	log := ""
	if j != nil && j.state != "FAILED" && j.state != "COMPLETED" {
		log = fmt.Sprintf("job %s ended as %s", e.job, j.state)
	}
	switch {
	case j != nil && j.state == "TIMEOUT":
		return messages.AttemptTimedOut, rc, log
	case rc > 128 && rc <= 128+64:
		sig := syscall.Signal(rc - 128)
		return messages.AttemptSignaled, rc, join(log, fmt.Sprintf("ended by signal %d (%s)", int(sig), sig))
	}
	return messages.AttemptFailed, rc, log
}

// orKilled is the exit code of what was ended and did not live to tell.
func orKilled(rc int32) int32 {
	if rc < 0 {
		return 128 + int32(syscall.SIGKILL)
	}
	return rc
}

func program(o *executor.Order) string {
	if o.UseShell || len(o.Command) == 0 {
		return "/bin/sh"
	}
	return o.Command[0]
}

// slurmSays is what Slurm itself wrote on a job that did not end well, at its end.
func (s *Slurm) slurmSays(job string) string {
	if job == "" {
		return ""
	}
	const most = 1 << 10
	text, _ := readAt(filepath.Join(s.cfg.Dir, logFolder, job), -most, most)
	var lines []string
	for line := range strings.Lines(strings.ToValidUTF8(string(text), "")) {
		if strings.Contains(line, "slurm") { // the script's shell speaks of signals there
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return strings.Join(lines, "; ")
}

// keep puts short output into the record and long output into the run's file. When that
// cannot be written the result stands, with the beginning of the output.
func (s *Slurm) keep(e *entry, rec *messages.AttemptRecord, out, err *frozen) {
	defer out.close()
	defer err.close()
	both := []struct {
		which messages.Stream
		kept  *messages.Output
		from  *frozen
	}{{messages.Stdout, &rec.Stdout, out}, {messages.Stderr, &rec.Stderr, err}}
	var parts []outputs.Part
	for _, b := range both {
		*b.kept = b.from.kept(s.cfg.MaxOutput)
		if !s.long(b.kept) {
			b.kept.Inline = b.from.bytes(b.kept)
			continue
		}
		parts = append(parts, outputs.Part{Stream: b.which, Length: b.kept.Head + b.kept.Tail, Body: io.MultiReader(
			io.NewSectionReader(b.from, 0, b.kept.Head), io.NewSectionReader(b.from, b.kept.Size-b.kept.Tail, b.kept.Tail))})
	}
	if parts == nil {
		return
	}
	offsets, failed := s.cfg.Outputs.Append(e.key, parts...)
	if failed != nil {
		s.cfg.Logger.Error("output not kept", "key", e.key, "err", failed)
		rec.ExecutorLog = join(rec.ExecutorLog, fmt.Sprintf("output cut to %d bytes: %v", s.cfg.InlineMax, failed))
	}
	for _, b := range both {
		switch {
		case !s.long(b.kept):
		case failed != nil:
			b.kept.Head, b.kept.Tail = min(b.kept.Head, int64(s.cfg.InlineMax)), 0
			b.kept.Inline = b.from.bytes(b.kept)
		default:
			b.kept.Offset, offsets = offsets[0], offsets[1:]
		}
	}
}

// long tells whether output is too long for the record itself.
func (s *Slurm) long(o *messages.Output) bool { return o.Head+o.Tail > int64(s.cfg.InlineMax) }

// capture gives the report all of stdout. Success with more than the limit is none.
func (s *Slurm) capture(e *entry, r *executor.Report) {
	size := r.Record.Stdout.Size
	if size <= s.cfg.MaxCapture {
		text, err := readAt(e.folder.path("out"), 0, size)
		if err == nil || size == 0 {
			r.Stdout = text
			return
		}
		r.Record.ExecutorLog = join(r.Record.ExecutorLog, err.Error())
	} else {
		r.Record.ExecutorLog = join(r.Record.ExecutorLog,
			fmt.Sprintf("%d bytes of output are more than the %d that a generator may print", size, s.cfg.MaxCapture))
	}
	if r.Record.Result == messages.AttemptSucceeded {
		r.Record.Result = messages.AttemptRejected
	}
}

// repeat reports an end that was reported before and not acknowledged.
func (s *Slurm) repeat(e *entry, v verdict) {
	r := &executor.Report{Key: e.key, Kind: executor.Finished, At: v.At, Record: v.Record}
	if e.order != nil && e.order.Capture && r.Record.Result == messages.AttemptSucceeded {
		s.capture(e, r)
	}
	if b, ok := e.folder.begun(); ok && !b.byServer {
		e.job = b.job
	}
	s.ask(func() {
		s.clerk.tellStart(e)
		s.clerk.end(e, r)
	})
}

func join(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "; " + b
}
