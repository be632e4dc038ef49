package slurm

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
)

// attemptOutput are the two output files of an attempt that has begun.
type attemptOutput struct{ stdout, stderr *outputFile }

// outputFile is a file that an attempt prints into. Beyond the limit its middle is punched out. On a
// file system that cannot punch holes the file stays whole until the attempt ends.
type outputFile struct {
	path        string
	bounds      executor.OutputBounds
	cannotPunch bool         // the file system cannot punch holes
	final       atomic.Int64 // size at the end; -1 while the attempt runs
}

func newOutputFile(path string, limit int64) *outputFile {
	s := &outputFile{path: path}
	s.bounds.Limit = limit
	s.final.Store(-1)
	return s
}

// publishOutput makes an attempt's output readable by OpenLog.
func (s *Slurm) publishOutput(a *attempt) *attemptOutput {
	limit := s.cfg.MaxOutput
	if a.order != nil && a.order.Capture {
		limit = max(limit, s.cfg.MaxCapture)
	}
	st := &attemptOutput{newOutputFile(a.folder.path("out"), limit), newOutputFile(a.folder.path("err"), s.cfg.MaxOutput)}
	s.mu.Lock()
	s.liveOutput[a.key] = st
	s.mu.Unlock()
	return st
}

// hideOutput undoes publishOutput.
func (s *Slurm) hideOutput(a *attempt) {
	if a.output == nil {
		return
	}
	s.mu.Lock()
	delete(s.liveOutput, a.key)
	s.mu.Unlock()
	for _, st := range []*outputFile{a.output.stdout, a.output.stderr} {
		st.final.CompareAndSwap(-1, 0) // an orphan, whose output was never frozen
	}
}

// punchMiddle frees the middle of a file that has outgrown its limit, in steps of an eighth of the
// limit. Only the reconciler calls it, and never after freeze.
func (st *outputFile) punchMiddle(log *slog.Logger) {
	if st.cannotPunch {
		return
	}
	info, err := os.Stat(st.path)
	if err != nil {
		return
	}
	from, to, ok := st.bounds.NextHole(info.Size())
	if !ok {
		return
	}
	f, err := vfs.OpenNoFollow(st.path, os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer f.Close()
	// Readers look at Hole after they read, so it moves before the bytes go.
	before := st.bounds.Hole.Swap(to)
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, from, to-from); err != nil {
		st.bounds.Hole.Store(before)
		st.cannotPunch = true
		log.Warn("output is not bounded while its task runs: the file system cannot punch holes", "file", st.path, "err", err)
	}
}

// endedOutput is the output of an attempt that has ended. Later writes to it do not count.
type endedOutput struct {
	f       *os.File // nil if it cannot be opened
	size    int64
	problem error // why it cannot be opened
}

func (st *outputFile) freeze() *endedOutput {
	z := &endedOutput{}
	if z.f, z.problem = vfs.OpenNoFollow(st.path, os.O_RDONLY, 0); z.problem == nil {
		if info, err := z.f.Stat(); err == nil {
			z.size = info.Size()
		}
	}
	st.final.Store(z.size)
	return z
}

// Size implements executor.EndedOutput.
func (z *endedOutput) Size() int64 { return z.size }

// ReadAt implements executor.EndedOutput. Where the file was truncated it reads zeros, as from a
// hole.
func (z *endedOutput) ReadAt(p []byte, off int64) (int, error) {
	if z.f == nil {
		return 0, z.problem
	}
	n, err := z.f.ReadAt(p, off)
	if err == io.EOF {
		clear(p[n:])
		return len(p), nil
	}
	return n, err
}

func (z *endedOutput) close() {
	if z.f != nil {
		z.f.Close()
	}
}

// OpenLog implements executor.Executor. On a network file system the output of a task appears with
// the delay of that file system.
func (s *Slurm) OpenLog(key messages.AttemptKey, which messages.Stream) (messages.Log, error) {
	s.mu.Lock()
	st := s.liveOutput[key]
	s.mu.Unlock()
	if st == nil {
		return nil, executor.ErrNotRunning
	}
	log := &liveFile{outputFile: st.stdout}
	if which == messages.Stderr {
		log.outputFile = st.stderr
	}
	// Right after the start the file may not exist yet.
	if f, err := vfs.OpenNoFollow(log.path, os.O_RDONLY, 0); err == nil {
		log.f = f
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return executor.NewLiveLog(log, log.close), nil
}

// liveFile implements executor.LiveOutput. It opens the file once it exists.
type liveFile struct {
	*outputFile
	f *os.File // nil until it was opened
}

func (l *liveFile) open() *os.File {
	if l.f == nil {
		if f, err := vfs.OpenNoFollow(l.path, os.O_RDONLY, 0); err == nil {
			l.f = f
		}
	}
	return l.f
}

func (l *liveFile) close() error {
	if l.f == nil {
		return nil
	}
	return l.f.Close()
}

// Size implements executor.LiveOutput.
func (l *liveFile) Size() int64 {
	if n := l.final.Load(); n >= 0 {
		return n
	}
	f := l.open()
	if f == nil {
		return 0
	}
	info, err := f.Stat()
	if err != nil {
		return 0
	}
	return info.Size()
}

// ReadAt implements executor.LiveOutput.
func (l *liveFile) ReadAt(p []byte, off int64) (int, error) {
	f := l.open()
	if f == nil {
		return 0, io.EOF
	}
	return f.ReadAt(p, off)
}

// Live implements executor.LiveOutput.
func (l *liveFile) Live() bool { return l.final.Load() < 0 }

// Bounds implements executor.LiveOutput.
func (l *liveFile) Bounds() *executor.OutputBounds { return &l.bounds }

// runAsync calls do outside the reconciler's goroutine, a few at a time.
func (s *Slurm) runAsync(do func()) {
	s.goroutines.Go(func() {
		s.collectSlots <- struct{}{}
		defer func() { <-s.collectSlots }()
		do()
	})
}

// collectReport makes the final report of an attempt that has begun, keeps its output and saves the
// report in the folder.
func (s *Slurm) collectReport(a *attempt, end endNote, written bool) *executor.Report {
	now := time.Now().UnixNano()
	report := &executor.Report{Key: a.key, Kind: executor.Finished, At: now}
	rec := &report.Record
	*rec = messages.AttemptRecord{Task: a.key.Task, Attempt: a.key.Attempt, Start: a.startedAt, Stop: now, Node: a.node}
	if a.node == "" && a.endedJob != nil {
		rec.Node = a.endedJob.node
	}
	if written {
		rec.Stop, rec.UserCPU, rec.SystemCPU = max(end.at, a.startedAt), end.user, end.system
	}
	rec.Result, rec.RC, rec.ExecutorLog = attemptResult(a, end, written)
	if rec.Result != messages.AttemptSucceeded && rec.Result != messages.AttemptKilled {
		rec.ExecutorLog = executor.JoinTexts(rec.ExecutorLog, s.slurmMessages(a.jobID))
	}
	stdout, stderr := a.output.stdout.freeze(), a.output.stderr.freeze()
	defer stdout.close()
	defer stderr.close()
	s.collector.Keep(report, stdout, stderr)
	if a.order.Capture {
		s.collector.Capture(report, stdout)
	}
	if err := a.folder.saveReport(report); err != nil {
		s.cfg.Logger.Warn("cannot save the final report of an attempt", executor.LogKey(a.key), "err", err)
	}
	return report
}

// attemptResult says how an attempt ended, according to its script and to Slurm.
func attemptResult(a *attempt, end endNote, written bool) (messages.AttemptResult, int32, string) {
	j, rc := a.endedJob, int32(-1)
	switch {
	case written:
		rc = end.rc
	case j != nil && j.exit.Signaled():
		rc = 128 + int32(j.exit.Signal())
	case j != nil && j.exit.ExitStatus() != 0:
		rc = int32(j.exit.ExitStatus())
	}
	switch cause := a.folder.readWord("cause"); {
	case cause == "killed" && a.endedByClose:
		return messages.AttemptLost, rc, "ended by the executor's shutdown"
	case cause == "killed":
		return messages.AttemptKilled, orKilled(rc), "killed by the user"
	case cause != "":
		return messages.AttemptTimedOut, orKilled(rc), "timed out after " + a.order.Timeout.String()
	case j != nil && j.lostByCluster() && rc != 0:
		return messages.AttemptLost, rc, fmt.Sprintf("lost: job %s ended as %s", a.jobID, j.state)
	case written && rc == 0:
		return messages.AttemptSucceeded, 0, ""
	case a.folder.readWord("unstarted") == "folder":
		return messages.AttemptNotStarted, -1, fmt.Sprintf("working folder %q: cannot be entered on node %s", a.order.Dir, a.node)
	case a.folder.readWord("unstarted") != "":
		return messages.AttemptNotStarted, -1, fmt.Sprintf("start %q: not found, or not executable, on node %s", programName(a.order), a.node)
	case j == nil && !written:
		return messages.AttemptLost, rc, fmt.Sprintf("lost: Slurm no longer knows job %s, which did not write its end", a.jobID)
	case rc < 0:
		return messages.AttemptLost, rc, fmt.Sprintf("lost: job %s ended as %s, and its end was not written", a.jobID, j.state)
	}
	if j != nil && j.state == "CANCELLED" && a.killed {
		return messages.AttemptKilled, rc, "killed by the user"
	}
	log := ""
	if j != nil && j.state != "FAILED" && j.state != "COMPLETED" {
		log = fmt.Sprintf("job %s ended as %s", a.jobID, j.state)
	}
	switch {
	case j != nil && j.state == "TIMEOUT":
		return messages.AttemptTimedOut, rc, log
	case rc > 128 && rc <= 128+64:
		sig := syscall.Signal(rc - 128)
		return messages.AttemptSignaled, rc, executor.JoinTexts(log, fmt.Sprintf("ended by signal %d (%s)", int(sig), sig))
	}
	return messages.AttemptFailed, rc, log
}

// orKilled is the exit code of an attempt that was ended before it could write one.
func orKilled(rc int32) int32 {
	if rc < 0 {
		return 128 + int32(syscall.SIGKILL)
	}
	return rc
}

func programName(o *executor.Order) string {
	if o.UseShell || len(o.Command) == 0 {
		return "/bin/sh"
	}
	return o.Command[0]
}

// slurmMessages is what Slurm wrote last about a job that did not end well.
func (s *Slurm) slurmMessages(job string) string {
	if job == "" {
		return ""
	}
	const most = 1 << 10
	text, _ := readFileAt(filepath.Join(s.cfg.Dir, logFolder, job), -most, most)
	var lines []string
	for line := range strings.Lines(strings.ToValidUTF8(string(text), "")) {
		if strings.Contains(line, "slurm") { // other lines are the shell's, about signals
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return strings.Join(lines, "; ")
}

// repeatReport repeats an end that was reported before and not acknowledged.
func (s *Slurm) repeatReport(a *attempt, v savedReport) {
	report := &executor.Report{Key: a.key, Kind: executor.Finished, At: v.At, Record: v.Record}
	if a.order != nil && a.order.Capture && report.Record.Result == messages.AttemptSucceeded {
		stdout := newOutputFile(a.folder.path("out"), 0).freeze()
		s.collector.Capture(report, stdout)
		stdout.close()
	}
	if b, ok := a.folder.readStart(); ok && !b.byServer {
		a.jobID = b.job
	}
	s.request(func() {
		s.reconciler.reportStart(a)
		s.reconciler.reportEnd(a, report)
	})
}
