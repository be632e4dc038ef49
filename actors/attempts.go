package actors

import (
	"sync"
	"sync/atomic"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/messages"
)

// attempts knows which task actor waits for the report of which attempt. It is
// the executors' way into the tree.
type attempts struct {
	// unclaimed is told of an end that nobody waits for, and by which executor. It is
	// set when the tree is there.
	unclaimed atomic.Pointer[func(executor string, key messages.AttemptKey)]
	parts     [64]struct {
		mu      sync.Mutex
		waiting map[messages.AttemptKey]recipient
	}
}

// recipient is the task actor that waits for a report, and its run's.
type recipient struct{ task, run *actor.PID }

func newAttempts() *attempts {
	a := new(attempts)
	for i := range a.parts {
		a.parts[i].waiting = make(map[messages.AttemptKey]recipient)
	}
	return a
}

func (a *attempts) add(key messages.AttemptKey, task, run *actor.PID) {
	p := &a.parts[key.Task%uint32(len(a.parts))]
	p.mu.Lock()
	p.waiting[key] = recipient{task, run}
	p.mu.Unlock()
}

// remove takes an actor off which the report of this attempt would go to. A later
// actor that has taken its place stays.
func (a *attempts) remove(key messages.AttemptKey, task *actor.PID) {
	p := &a.parts[key.Task%uint32(len(a.parts))]
	p.mu.Lock()
	if at := p.waiting[key].task; at != nil && at.Equal(task) {
		delete(p.waiting, key)
	}
	p.mu.Unlock()
}

// find returns the actors that wait for the report of an attempt; the zero recipient when none does.
func (a *attempts) find(key messages.AttemptKey) recipient {
	p := &a.parts[key.Task%uint32(len(a.parts))]
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.waiting[key]
}

// reports are those of one run that came together, with the tasks that they are for.
type reports struct {
	id      messages.RunID
	run     *actor.PID
	tasks   []*actor.PID
	reports []*executor.Report
}

// sink returns the function by which an executor reports. Several reports that come together
// become one message to each run; a single one goes to its task. A report without a recipient
// is dropped; when it is an end, unclaimed is called.
func (a *attempts) sink(root *actor.RootContext, name string) executor.Sink {
	return func(list ...executor.Report) {
		if len(list) == 1 {
			if to := a.recipientOf(&list[0], name); to.task != nil {
				root.Send(to.task, &list[0])
			}
			return
		}
		for _, m := range a.byRun(list, name) {
			if len(m.tasks) == 1 {
				root.Send(m.tasks[0], m.reports[0])
				continue
			}
			root.Send(m.run, m)
		}
	}
}

// recipientOf is find, for a report that an executor gives.
func (a *attempts) recipientOf(r *executor.Report, name string) recipient {
	to := a.find(r.Key)
	if unclaimed := a.unclaimed.Load(); to.task == nil && r.Kind == executor.Finished && unclaimed != nil {
		(*unclaimed)(name, r.Key)
	}
	return to
}

// byRun puts together the reports of each run. Most lists are of one run, or have the reports
// of a run in a row: the map is for the others.
func (a *attempts) byRun(list []executor.Report, name string) (all []*reports) {
	var last *reports
	var known map[messages.RunID]*reports // of several runs
	for i := range list {
		r := &list[i]
		to := a.recipientOf(r, name)
		if to.task == nil {
			continue
		}
		if last == nil || last.id != r.Key.Run {
			m := known[r.Key.Run]
			if m == nil {
				m = &reports{id: r.Key.Run, run: to.run}
				switch {
				case last == nil:
					m.tasks, m.reports = make([]*actor.PID, 0, len(list)-i), make([]*executor.Report, 0, len(list)-i)
				case known == nil:
					known = map[messages.RunID]*reports{last.id: last, m.id: m}
				default:
					known[m.id] = m
				}
				all = append(all, m)
			}
			last = m
		}
		last.tasks, last.reports = append(last.tasks, to.task), append(last.reports, r)
	}
	return all
}
