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
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
)

// attemptOutput are the two output files of an attempt that has begun. The job's script opens both for
// appending (>>), since a task may share them with its children.
type attemptOutput struct{ stdout, stderr *outputFile }

// outputFile is a file that an attempt prints into. Beyond the limit its middle is punched out. On a
// file system that cannot punch holes the file stays whole until the attempt ends.
type outputFile struct {
	executor.OutputBounds
	path        string
	cannotPunch bool // the file system cannot punch holes
}

// newOutputFile returns an output that keeps so many bytes, half from each end. The file need not exist.
func newOutputFile(path string, limit int64) *outputFile {
	return &outputFile{path: path, OutputBounds: executor.OutputBounds{Limit: limit}}
}

// publishOutput makes an attempt's output readable by OpenLog. The reconciler calls it once the attempt
// has begun.
func (s *Slurm) publishOutput(a *attempt) *attemptOutput {
	limit := s.cfg.StdoutLimit(a.order != nil && a.order.Capture)
	st := &attemptOutput{newOutputFile(a.folder.path("out"), limit), newOutputFile(a.folder.path("err"), s.cfg.MaxOutput)}
	s.mu.Lock()
	s.liveOutput[a.key] = st
	s.mu.Unlock()
	return st
}

// hideOutput undoes publishOutput. Logs that are open stay readable, up to the final size.
//
// The caller calls it before it moves the attempt to stageEnded. An attempt that was not collected has no
// final size yet and gets 0, so that its open logs end. In stageCollecting the size is the collection's to
// fix: its copy of the attempt has the same output, and a size of 0 would make an empty report of it.
func (s *Slurm) hideOutput(a *attempt) {
	if a.output == nil {
		return
	}
	s.mu.Lock()
	delete(s.liveOutput, a.key)
	s.mu.Unlock()
	if a.stage < stageCollecting {
		a.output.stdout.Freeze(0)
		a.output.stderr.Freeze(0)
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
	from, to, ok := st.NextHole(info.Size())
	if !ok {
		return
	}
	f, err := vfs.OpenNoFollow(st.path, os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer f.Close()
	// Readers look at Hole after they read, so it moves before the bytes go.
	before := st.Hole.Swap(to)
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, from, to-from); err != nil {
		st.Hole.Store(before)
		st.cannotPunch = true
		log.Warn("output is not bounded while its task runs: the file system cannot punch holes", "file", st.path, "err", err)
	}
}

// freeze fixes the size of the file: later writes to it do not count. The caller closes the result.
func (st *outputFile) freeze() *outputReader {
	r := &outputReader{outputFile: st}
	st.Freeze(r.Size())
	return r
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
	log := &outputReader{outputFile: st.stdout}
	if which == messages.Stderr {
		log.outputFile = st.stderr
	}
	// Right after the start the file may not exist yet.
	if err := log.open(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return executor.NewLiveLog(log, log.close), nil
}

// outputReader reads an output file, which it opens once the file exists. It implements
// executor.LiveOutput and executor.EndedOutput. One goroutine at a time uses it.
type outputReader struct {
	*outputFile
	f *os.File // nil until it was opened
}

func (r *outputReader) open() (err error) {
	if r.f == nil {
		r.f, err = vfs.OpenNoFollow(r.path, os.O_RDONLY, 0)
	}
	return err
}

func (r *outputReader) close() error {
	r.f.Close() // an error only says that it was never opened
	return nil
}

// Size implements executor.LiveOutput and executor.EndedOutput.
func (r *outputReader) Size() int64 {
	if n, frozen := r.FinalSize(); frozen {
		return n
	}
	if r.open() != nil {
		return 0
	}
	info, err := r.f.Stat()
	if err != nil {
		return 0
	}
	return info.Size()
}

// ReadAt implements io.ReaderAt. While the attempt runs, a file that cannot be opened is empty.
func (r *outputReader) ReadAt(p []byte, off int64) (int, error) {
	switch err := r.open(); {
	case err == nil:
		return r.f.ReadAt(p, off)
	case r.Live():
		return 0, io.EOF
	default:
		return 0, err
	}
}

// runAsync calls do outside the reconciler's goroutine, at most maxCollecting at a time. do must not use
// the reconciler or its attempts: it gets copies, and hands its result back by request.
func (s *Slurm) runAsync(do func()) {
	s.goroutines.Go(func() {
		s.collectSlots <- struct{}{}
		defer func() { <-s.collectSlots }()
		do()
	})
}

// collectReport makes the final report of an attempt that has begun, keeps its output and saves the
// report in the folder. a is a copy; end is valid if written is true. runAsync runs it, as long output
// takes long to copy.
//
// The order matters: the output is frozen before it is kept, so that the sizes in the record are those of
// what was kept. It is kept before the report is saved: a server that dies in between collects it again,
// and the first copy in the store is not referred to.
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
	s.cfg.KeepOutput(report, stdout, stderr)
	if a.order.Capture {
		s.cfg.CaptureStdout(report, stdout)
	}
	if err := a.folder.saveReport(report); err != nil {
		s.cfg.Logger.Warn("cannot save the final report of an attempt", executor.LogKey(a.key), "err", err)
	}
	return report
}

// attemptResult says how an attempt ended, according to its script and to Slurm: the result, the exit code
// and a text for the record. The first of these that applies:
//
//	cause says killed or timed out        the server or the script's own clock has ended it
//	the cluster has ended the job         lost, unless the task had succeeded before
//	exit code 0                           succeeded
//	unstarted                             the program or the folder is missing on the node
//	the job is forgotten, without an end  lost
//	no exit code at all                   lost
//	the job was cancelled, after a kill   killed: the script did not act in time
//	the state of the job, the exit code   timed out by Slurm, ended by a signal, or failed
//
// Slurm's state is told in the text where it says more than the exit code, such as OUT_OF_MEMORY.
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

// programName is the program of an order, for a message.
func programName(o *executor.Order) string {
	if o.UseShell || len(o.Command) == 0 {
		return "/bin/sh"
	}
	return o.Command[0]
}

// slurmMessages is what Slurm wrote last about a job that did not end well, of the last KiB, such as
//
//	slurmstepd: error: *** JOB 1234 ON node7 CANCELLED AT 2026-11-30T10:00:00 DUE TO TIME LIMIT ***
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

// repeatReport makes the report of an end that was reported before and not acknowledged, and returns the
// number of the job, by which Slurm's messages on it are found. runAsync runs it on a copy of the attempt.
// The saved report lacks what a generator printed, so that is read again: the output file stays as long
// as the folder.
func (s *Slurm) repeatReport(a *attempt, v savedReport) (report *executor.Report, job string) {
	report = &executor.Report{Key: a.key, Kind: executor.Finished, At: v.At, Record: v.Record}
	if a.order != nil && a.order.Capture && report.Record.Result == messages.AttemptSucceeded {
		stdout := newOutputFile(a.folder.path("out"), 0).freeze()
		s.cfg.CaptureStdout(report, stdout)
		stdout.close()
	}
	if b, ok := a.folder.readStart(); ok && !b.byServer {
		job = b.job
	}
	return report, job
}
