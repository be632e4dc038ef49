package worker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/procfs"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
)

// DeadWorkerState is what a dead worker leaves. Every process of its attempts without an end has
// ended. The folder and its lock belong to the receiver; the folder must stay until every end is
// acknowledged.
type DeadWorkerState struct {
	Folder *Folder           // nil when it is missing
	Ends   []executor.Report // ended and lost attempts, in the order of their intents
	// Complete reports that the worker never began an attempt that Ends lacks. It is false after a
	// restart of the machine, which may lose the last part of the journal, and when the journal is
	// missing, damaged or cut.
	Complete bool
}

// DeadWorker is what a server knows of a worker that is dead, or lives on without its folder. The caller
// holds the lock of the folder, if there is one: so the worker is dead, and no other server recovers it.
type DeadWorker struct {
	Path         string  // of its folder
	Folder       *Folder // nil when the folder is missing
	DataFolderID string  // Settings.DataFolderID
	// Process is the worker's own process, if it is known from elsewhere than its journal.
	Process procfs.Identity
	// NeverServed is set for a worker that never served: its journal may be missing.
	NeverServed bool
}

// RecoverDeadWorker reads what a dead worker leaves. It ends the processes of its attempts that had
// not ended (SIGTERM, after grace SIGKILL), and the worker itself if that lives on without its folder. It
// returns when they are proven dead, or ctx ends: for processes that hang in the kernel that may take for
// ever. The caller calls it again after an error; nothing is lost by that, since the folder stays.
//
// After a restart of the machine (the boot ID differs) all processes are dead, and the numbers in the
// journal belong to others: then nothing is searched. A journal without a readable header gives no boot
// ID, so the processes are searched all the same, by their marks.
func RecoverDeadWorker(ctx context.Context, d DeadWorker, grace time.Duration, log *slog.Logger) (*DeadWorkerState, error) {
	boot, err := procfs.BootID()
	if err != nil {
		return nil, fmt.Errorf("dead worker: boot ID: %w", err)
	}
	p, err := d.readJournal(log)
	if err != nil {
		return nil, err
	}
	restarted := p.header.BootId != "" && p.header.BootId != boot
	if !restarted {
		s := processSearch{journalContents: p, mark: MarkValue(d.DataFolderID, filepath.Base(d.Path)), worker: d.Process}
		if string(p.header.Mark) == s.mark { // else the journal came here with a copy of its folder
			s.worker = procfs.Identity{PID: int(p.header.Pid), Ticks: p.header.StartTicks}
		}
		if err := s.endProcesses(ctx, grace, log); err != nil {
			return nil, err
		}
		executor.RemoveCgroups(cgroupName(d.DataFolderID, filepath.Base(d.Path)), func(rest string) bool { return rest != "" })
	}
	e := &DeadWorkerState{Folder: d.Folder, Complete: p.complete && !restarted}
	for _, k := range p.keys {
		rep, err := p.reportOf(k, restarted)
		if err != nil {
			return nil, fmt.Errorf("dead worker's journal: %w", err)
		}
		e.Ends = append(e.Ends, rep)
	}
	return e, nil
}

// readJournal reads the dead worker's journal, and logs what is wrong with it. A missing journal counts as
// an empty one, which is incomplete, unless the worker never served: then it cannot have had an order.
// Any other error of the file is returned, since the next try may read it.
func (d *DeadWorker) readJournal(log *slog.Logger) (journalContents, error) {
	path := filepath.Join(d.Path, journalFileName)
	text, err := vfs.ReadFile(path)
	switch {
	case err == nil:
	case !errors.Is(err, fs.ErrNotExist):
		return journalContents{}, fmt.Errorf("dead worker's journal: %w", err)
	case d.NeverServed:
		return journalContents{header: &workerpb.JournalHeader{}, attempts: map[messages.AttemptKey]*journalAttempt{}, complete: true}, nil
	}
	p := parseJournal(text)
	if err != nil {
		p.fault = "the file is missing"
	}
	if !p.complete {
		log.Error("the journal of a dead worker is incomplete: attempts that it does not prove are lost, and run again with a new attempt number",
			"file", path, "fault", p.fault, "attempts", len(p.keys))
	}
	return p, nil
}

// reportOf returns the attempt's end as it was, or the report of its loss. The start of a lost attempt is
// that of its intent, on the clock since boot, which a change of the wall clock does not move; after a
// restart of the machine it is unknown.
func (p *journalContents) reportOf(k messages.AttemptKey, restarted bool) (executor.Report, error) {
	a := p.attempts[k]
	if a.end != nil {
		return workerpb.ParseFinished(a.end)
	}
	now := time.Now().UnixNano()
	rec := messages.AttemptRecord{Task: k.Task, Attempt: k.Attempt, Result: messages.AttemptLost, RC: -1, Stop: now}
	switch {
	case restarted:
		rec.ExecutorLog = "lost: the machine was restarted"
	case p.header.Pid == 0:
		rec.ExecutorLog = "lost: its worker died, and its journal is damaged"
	default:
		rec.ExecutorLog = fmt.Sprintf("lost: its worker (pid %d) died", p.header.Pid)
	}
	if !restarted && a.intentAt != 0 {
		rec.Start = now - max(sinceBoot()-a.intentAt, 0)
	}
	return executor.Report{Key: k, Kind: executor.Finished, At: now, Record: rec}, nil
}

// processSearch finds the processes of a dead worker, by what its journal says of its attempts.
type processSearch struct {
	journalContents
	mark   string          // the value of the worker's own mark
	worker procfs.Identity // zero when it is not known
}

// endProcesses ends the processes of attempts without an end. It returns when they have left the
// list of all processes of the machine. It reads that list, with the environment of each process, only if
// the worker may have left any: a worker that ended in order costs no search.
func (s *processSearch) endProcesses(ctx context.Context, grace time.Duration, log *slog.Logger) error {
	open := !s.complete || s.worker.IsAlive()
	for _, a := range s.attempts {
		open = open || a.end == nil
	}
	if !open {
		return nil
	}
	return endUntilGone(ctx, s.orphanedProcesses, grace, log)
}

// endUntilGone ends the processes that find returns, again and again, until find returns an empty list. A
// process may fork while it is searched, and its child be missed: so only an empty list proves that all
// have ended. Each process gets one SIGTERM within the grace, and SIGKILL at each look after it.
func endUntilGone(ctx context.Context, find func() ([]procfs.Process, error), grace time.Duration, log *slog.Logger) error {
	began, warned := time.Now(), false
	terminated := map[int]bool{} // got SIGTERM
	for wait := time.Millisecond; ; wait = min(2*wait, 20*time.Millisecond) {
		found, err := find()
		if err != nil {
			return fmt.Errorf("dead worker's processes: %w", err)
		}
		if len(found) == 0 {
			return nil
		}
		for _, p := range found {
			switch {
			case time.Since(began) >= grace:
				p.Signal(unix.SIGKILL)
			case !terminated[p.PID]:
				terminated[p.PID] = true
				p.Signal(unix.SIGTERM)
				p.Signal(unix.SIGCONT) // a stopped process does not handle SIGTERM
			}
		}
		if !warned && time.Since(began) > grace+10*time.Second {
			warned = true
			log.Warn("a dead worker's processes survive SIGKILL", "pid", found[0].PID, "processes", len(found))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// orphanedProcesses finds the living processes of attempts that had not ended.
//
// A process is the worker's if it belongs to the worker's session, which it does from its first
// moment, or has the worker's mark, which stays when it leaves the session. The mark names the
// attempt. A process with the worker's own mark is the worker, or was being forked by it. A process
// without a mark is judged by its process group. Descendants of attempts that ended by themselves
// are left alone; where the journal is incomplete, only those whose end it proves.
func (s *processSearch) orphanedProcesses() (orphans []procfs.Process, _ error) {
	list, err := procfs.List("/proc")
	if err != nil {
		return nil, err
	}
	inSession := s.worker.PID != 0 // whether its number names its session
	var orphanedSessions map[int]bool
	if !inSession {
		if orphanedSessions, err = s.orphanedSessions(list); err != nil {
			return nil, err
		}
	}
	if slices.ContainsFunc(list, func(p procfs.Process) bool { return p.PID == s.worker.PID && p.Ticks != s.worker.Ticks }) {
		// Another process has the worker's number. The number is not free while the session has a
		// member, so the session is over.
		inSession = false
	}
	groups := map[int]*journalAttempt{}
	var firstUnknown int64 // the earliest intent of an attempt whose process is not known
	for _, a := range s.attempts {
		switch {
		case a.pid != 0:
			// A number may have served twice. Then the group of the first attempt is no more.
			if b := groups[a.pid]; b == nil || b.startedAt < a.startedAt {
				groups[a.pid] = a
			}
		case a.end == nil && (firstUnknown == 0 || a.intentAt < firstUnknown):
			firstUnknown = max(a.intentAt, 1)
		}
	}
	for _, p := range list {
		// A process that is older than the worker is not its child. Ticks are coarse, hence the margin.
		if p.Dead || p.PID == os.Getpid() || p.Ticks+1 < s.worker.Ticks {
			continue
		}
		environ, err := p.Environment()
		if err != nil {
			return nil, err
		}
		key, hasMark := findMark(environ, s.mark)
		isMember := inSession && p.Session == s.worker.PID || orphanedSessions[p.Session]
		orphan := false
		switch {
		case !isMember && !hasMark:
		case key != nil:
			a := s.attempts[*key]
			orphan = a != nil && a.end == nil || a == nil && !s.complete
		case hasMark, p.PID == s.worker.PID:
			orphan = true
		case groups[p.Group] != nil:
			orphan = groups[p.Group].end == nil
		default: // a child of the session without a mark, as after env -i, in a group that is not known
			orphan = !s.complete || firstUnknown != 0 && int64(p.Ticks+1)*procfs.Tick >= firstUnknown
		}
		if orphan {
			orphans = append(orphans, p)
		}
	}
	return orphans, nil
}

// orphanedSessions finds the sessions that have a marked process and a dead leader. One of them is
// the worker's, when its number is not known. A session whose leader lives is one that a task has made by
// setsid: its marked processes are found by their marks, and the others are left alone.
func (s *processSearch) orphanedSessions(list []procfs.Process) (orphaned map[int]bool, _ error) {
	leads := map[int]bool{}
	for _, p := range list {
		leads[p.PID] = !p.Dead
	}
	orphaned = map[int]bool{}
	for _, p := range list {
		if p.Dead || leads[p.Session] || orphaned[p.Session] || p.Session == 0 {
			continue
		}
		environ, err := p.Environment()
		if err != nil {
			return nil, err
		}
		if _, has := findMark(environ, s.mark); has {
			orphaned[p.Session] = true
		}
	}
	return orphaned, nil
}

// MarkedWorkers returns the names of the workers whose mark a living process carries, sorted. Only
// workers of this data folder count.
func MarkedWorkers(dataFolderID string) (names []string, _ error) {
	list, err := procfs.List("/proc")
	if err != nil {
		return nil, fmt.Errorf("marked processes: %w", err)
	}
	for _, p := range list {
		if p.Dead || p.PID == os.Getpid() {
			continue
		}
		environ, err := p.Environment()
		if err != nil {
			return nil, fmt.Errorf("marked processes: %w", err)
		}
		if name, has := findWorkerMark(environ, dataFolderID); has && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}
