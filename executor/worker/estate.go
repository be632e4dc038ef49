package worker

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
)

// Estate is what a dead worker leaves behind. All processes of its attempts that had
// not ended are gone. The folder, and its lock, belong to the receiver: the folder
// must stay until every end is acknowledged.
type Estate struct {
	Folder *Folder           // nil when it is missing
	Ends   []executor.Report // what ended, and what was lost, in the order of their beginnings
	// Certain: what Ends does not name was never begun by this worker. It is not so
	// when the machine was restarted, since the journal's last part may be lost then, and
	// when the journal is missing, damaged or cut.
	Certain bool
}

// Dead is what is known of a worker that is to be buried.
type Dead struct {
	Path   string  // of its folder
	Folder *Folder // nil when the folder is missing
	Data   string  // identity of the data folder (Settings.Folder)
	// Process is the worker's own, as far as it is known from elsewhere than its journal.
	Process Identity
	// Unborn: it never served, so that its journal may be missing.
	Unborn bool
}

// Bury finds out what a dead worker leaves: it ends what still runs of its attempts
// (SIGTERM, after grace SIGKILL), the worker itself if it lives on without its folder,
// and returns when that is proven dead, or ctx ends.
func Bury(ctx context.Context, d Dead, grace time.Duration, log *slog.Logger) (*Estate, error) {
	boot, err := BootID()
	if err != nil {
		return nil, fmt.Errorf("dead worker: boot id: %w", err)
	}
	p, err := d.past(log)
	if err != nil {
		return nil, err
	}
	restarted := p.header.BootId != "" && p.header.BootId != boot
	if !restarted {
		s := search{past: p, mark: MarkValue(d.Data, filepath.Base(d.Path)), worker: d.Process}
		if string(p.header.Mark) == s.mark { // else the journal came here with a copy of its folder
			s.worker = Identity{PID: int(p.header.Pid), Ticks: p.header.StartTicks}
		}
		if err := s.end(ctx, grace, log); err != nil {
			return nil, err
		}
		executor.RemoveCgroups(cgroupName(d.Data, filepath.Base(d.Path)))
	}
	e := &Estate{Folder: d.Folder, Certain: p.whole && !restarted}
	for _, k := range p.keys {
		rep, err := p.report(k, restarted)
		if err != nil {
			return nil, fmt.Errorf("dead worker's journal: %w", err)
		}
		e.Ends = append(e.Ends, rep)
	}
	return e, nil
}

// past reads the dead worker's journal, and says what is wrong with it.
func (d *Dead) past(log *slog.Logger) (past, error) {
	path := filepath.Join(d.Path, journalFileName)
	text, err := vfs.ReadFile(path)
	switch {
	case err == nil:
	case !gone(err):
		return past{}, fmt.Errorf("dead worker's journal: %w", err)
	case d.Unborn:
		return past{header: &workerpb.JournalHeader{}, attempts: map[messages.AttemptKey]*pastAttempt{}, whole: true}, nil
	}
	p := readJournal(text)
	if err != nil {
		p.fault = "the file is missing"
	}
	if !p.whole {
		log.Error("a dead worker's journal does not tell all: what it does not prove is lost, and runs again with a new attempt number",
			"file", path, "fault", p.fault, "attempts", len(p.keys))
	}
	return p, nil
}

// report returns an attempt's end as it was, or its loss.
func (p *past) report(k messages.AttemptKey, restarted bool) (executor.Report, error) {
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
	if !restarted && a.intent != 0 {
		rec.Start = now - max(bootNow()-a.intent, 0)
	}
	return executor.Report{Key: k, Kind: executor.Finished, At: now, Record: rec}, nil
}

// search finds the processes of a dead worker.
type search struct {
	past
	mark   string   // the value of the worker's own mark
	worker Identity // zero when it is not known
}

// end ends what runs of the attempts that have no end, and returns when a look at all
// processes finds none.
func (s *search) end(ctx context.Context, grace time.Duration, log *slog.Logger) error {
	open := !s.whole || s.worker.Lives()
	for _, a := range s.attempts {
		open = open || a.end == nil
	}
	if !open {
		return nil
	}
	return endAll(ctx, s.victims, grace, log)
}

// endAll ends what find finds, again and again, until it finds nothing.
func endAll(ctx context.Context, find func() ([]process, error), grace time.Duration, log *slog.Logger) error {
	began, warned := time.Now(), false
	told := map[int]bool{}
	for wait := time.Millisecond; ; wait = min(2*wait, 20*time.Millisecond) {
		victims, err := find()
		if err != nil {
			return fmt.Errorf("dead worker's processes: %w", err)
		}
		if len(victims) == 0 {
			return nil
		}
		for _, v := range victims {
			switch {
			case time.Since(began) >= grace:
				v.signal(unix.SIGKILL)
			case !told[v.pid]:
				told[v.pid] = true
				v.signal(unix.SIGTERM)
				v.signal(unix.SIGCONT) // a stopped process takes no SIGTERM
			}
		}
		if !warned && time.Since(began) > grace+10*time.Second {
			warned = true
			log.Warn("a dead worker's processes survive SIGKILL", "pid", victims[0].pid, "processes", len(victims))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// victims finds the living processes of attempts that have no end. A process is the
// worker's if it is of its session, which it is from its first moment, or has its
// mark, which stays when it leaves the session. Which attempt's it is says the mark.
// One with the worker's own mark is the worker, or was being forked by it. One without a
// mark is judged by its process group. Descendants of attempts that ended by themselves
// are left alone; where the journal is not whole only those whose end it proves.
func (s *search) victims() (victims []process, _ error) {
	list, err := processes()
	if err != nil {
		return nil, err
	}
	session := s.worker.PID != 0
	var orphaned map[int]bool
	if !session {
		orphaned = s.orphanedSessions(list)
	}
	for _, q := range list {
		// Another process has the worker's number: no member of its session is left,
		// since the number is not free while there is one.
		if q.pid == s.worker.PID && q.ticks != s.worker.Ticks {
			session = false
		}
	}
	groups := map[int]*pastAttempt{}
	var unborn int64 // the earliest fork of an attempt whose process is not known
	for _, a := range s.attempts {
		switch {
		case a.pid != 0:
			// A number may have served twice; then the first attempt's group is no more.
			if b := groups[a.pid]; b == nil || b.born < a.born {
				groups[a.pid] = a
			}
		case a.end == nil && (unborn == 0 || a.intent < unborn):
			unborn = max(a.intent, 1)
		}
	}
	for _, q := range list {
		if q.dead || q.pid == os.Getpid() || q.ticks+1 < s.worker.Ticks {
			continue
		}
		key, has := marked(environ(q.pid), s.mark)
		ours := session && q.session == s.worker.PID || orphaned[q.session]
		victim := false
		switch {
		case !ours && !has:
		case key != nil:
			a := s.attempts[*key]
			victim = a != nil && a.end == nil || a == nil && !s.whole
		case has, q.pid == s.worker.PID:
			victim = true
		case groups[q.group] != nil:
			victim = groups[q.group].end == nil
		default:
			victim = !s.whole || unborn != 0 && int64(q.ticks+1)*tick >= unborn
		}
		if victim {
			victims = append(victims, q)
		}
	}
	return victims, nil
}

// orphanedSessions are the sessions with a marked process whose leader is dead: the
// worker's own, when its number is not known.
func (s *search) orphanedSessions(list []process) map[int]bool {
	leads := map[int]bool{}
	for _, q := range list {
		leads[q.pid] = !q.dead
	}
	orphaned := map[int]bool{}
	for _, q := range list {
		if q.dead || leads[q.session] || orphaned[q.session] || q.session == 0 {
			continue
		}
		if _, has := marked(environ(q.pid), s.mark); has {
			orphaned[q.session] = true
		}
	}
	return orphaned
}

// Marked returns the names of the workers that have, or had, the living processes which
// carry the mark of this data folder, each once.
func Marked(data string) (names []string, _ error) {
	list, err := processes()
	if err != nil {
		return nil, fmt.Errorf("marked processes: %w", err)
	}
	for _, q := range list {
		if q.dead || q.pid == os.Getpid() {
			continue
		}
		if name, has := markedBy(environ(q.pid), data); has && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}
