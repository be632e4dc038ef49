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
	run     *actor.PID
	tasks   []*actor.PID
	reports []*executor.Report
}

// sink returns the function by which an executor reports. Several reports that come together
// become one message to each run; a single one goes to its task. A report without a recipient
// is dropped; when it is an end, unclaimed is called.
func (a *attempts) sink(root *actor.RootContext, name string) executor.Sink {
	return func(list ...executor.Report) {
		var runs map[messages.RunID]*reports // when there are several
		var order []*reports
		for i := range list {
			r := &list[i]
			to := a.find(r.Key)
			if to.task == nil {
				if unclaimed := a.unclaimed.Load(); r.Kind == executor.Finished && unclaimed != nil {
					(*unclaimed)(name, r.Key)
				}
				continue
			}
			m := runs[r.Key.Run]
			if m == nil {
				m = &reports{run: to.run}
				order = append(order, m)
				if len(list) > 1 {
					if runs == nil {
						runs = make(map[messages.RunID]*reports)
					}
					runs[r.Key.Run] = m
				}
			}
			m.tasks, m.reports = append(m.tasks, to.task), append(m.reports, r)
		}
		for _, m := range order {
			if len(m.tasks) == 1 {
				root.Send(m.tasks[0], m.reports[0])
				continue
			}
			root.Send(m.run, m)
		}
	}
}
