package worker

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/messages"
)

// Estate is what a dead worker leaves behind. All processes of its attempts that had
// not ended are gone. The folder, and its lock, belong to the receiver: the folder
// must stay until every end is acknowledged.
type Estate struct {
	Folder *Folder
	Ends   []executor.Report // what ended, and what was lost, in the order of their beginnings
	// Certain: what Ends does not name was never begun by this worker. It is not so
	// when the machine was restarted: the journal's last part may be lost then.
	Certain bool
}

// Bury finds out what a dead worker leaves: it ends what still runs of its attempts
// (SIGTERM, after grace SIGKILL) and returns when that is proven dead, or ctx ends.
func Bury(ctx context.Context, f *Folder, grace time.Duration, log *slog.Logger) (*Estate, error) {
	text, err := os.ReadFile(filepath.Join(f.Path, journalFile))
	if err != nil && !gone(err) {
		return nil, fmt.Errorf("dead worker's journal: %w", err)
	}
	boot, err := BootID()
	if err != nil {
		return nil, fmt.Errorf("dead worker: boot id: %w", err)
	}
	p, written := readJournal(text)
	e := &Estate{Folder: f, Certain: !written || p.header.Boot == boot}
	if p.torn > 0 {
		log.Warn("the last record of a dead worker's journal is torn", "folder", f.Path, "bytes", p.torn)
	}
	if written && p.header.Boot == boot {
		if err := p.end(ctx, f.Name(), grace, log); err != nil {
			return nil, err
		}
	}
	executor.RemoveCgroups(f.Name())
	for _, k := range p.keys {
		rep, err := p.report(k, boot)
		if err != nil {
			return nil, fmt.Errorf("dead worker's journal: %w", err)
		}
		e.Ends = append(e.Ends, rep)
	}
	return e, nil
}

// report returns an attempt's end as it was, or its loss.
func (p *past) report(k messages.AttemptKey, boot string) (executor.Report, error) {
	a := p.attempts[k]
	if a.end != nil {
		return workerpb.ParseFinished(a.end)
	}
	now := time.Now().UnixNano()
	rec := messages.AttemptRecord{Task: k.Task, Attempt: k.Attempt, Result: messages.AttemptLost, RC: -1, Stop: now}
	if p.header.Boot == boot {
		rec.Start = now - max(bootNow()-a.intent, 0)
		rec.ExecutorLog = fmt.Sprintf("lost: its worker (pid %d) died", p.header.PID)
	} else {
		rec.ExecutorLog = "lost: the machine was restarted"
	}
	return executor.Report{Key: k, Kind: executor.Finished, At: now, Record: rec}, nil
}

// end ends what runs of the attempts that have no end, and returns when a look at all
// processes finds none.
func (p *past) end(ctx context.Context, name string, grace time.Duration, log *slog.Logger) error {
	open := false
	for _, a := range p.attempts {
		open = open || a.end == nil
	}
	if !open {
		return nil
	}
	began, warned := time.Now(), false
	told := map[int]bool{}
	for wait := time.Millisecond; ; wait = min(2*wait, 20*time.Millisecond) {
		victims, err := p.victims(name)
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
// One without (it had not come to its exec when the worker died, or has cleared its
// environment) is judged by its process group. Descendants of attempts that ended by
// themselves are left alone.
func (p *past) victims(name string) (victims []process, _ error) {
	list, err := processes()
	if err != nil {
		return nil, err
	}
	session := true
	for _, q := range list {
		// Another process has the worker's number: no member of its session is left,
		// since the number is not free while there is one.
		if q.pid == p.header.PID && q.ticks != p.header.Ticks {
			session = false
		}
	}
	groups := map[int]*pastAttempt{}
	var unborn int64 // the earliest fork of an attempt whose process is not known
	for _, a := range p.attempts {
		switch {
		case a.pid != 0:
			// A number may have served twice; then the first attempt's group is no more.
			if b := groups[a.pid]; b == nil || b.born < a.born {
				groups[a.pid] = a
			}
		case a.end == nil && (unborn == 0 || a.intent < unborn):
			unborn = a.intent
		}
	}
	for _, q := range list {
		if q.dead || q.pid == os.Getpid() || q.ticks+1 < p.header.Ticks {
			continue
		}
		key, has := marked(environ(q.pid), name)
		ours := session && q.session == p.header.PID && q.pid != p.header.PID
		switch {
		case !ours && !has:
		case key != nil:
			if a := p.attempts[*key]; a != nil && a.end == nil {
				victims = append(victims, q)
			}
		case groups[q.group] != nil:
			if groups[q.group].end == nil {
				victims = append(victims, q)
			}
		case unborn != 0 && int64(q.ticks+1)*tick >= unborn:
			victims = append(victims, q)
		}
	}
	return victims, nil
}
