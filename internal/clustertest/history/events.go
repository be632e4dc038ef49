package history

import (
	"maps"
	"slices"
)

// streamCheck follows one stream from its begin. It knows what was seen so far, and so what a later
// event must not take back.
type streamCheck struct {
	*check
	stream  *Stream
	id      uint64
	state   string // of the last summary
	missed  bool
	resumed bool // it may repeat changes
	last    map[string]TaskChange
	changes map[TaskChange]bool // all so far
}

// checkEvents: rule events. IDs do not go back; the changes of a task go forward, and end with
// COMPLETED; changes are repeated only after a resumption; every change arrives, unless gap events
// are allowed; a stream whose run has ended ends with its summary.
func (c *check) checkEvents() {
	for i := range c.Streams {
		s := &streamCheck{check: c, stream: &c.Streams[i], last: map[string]TaskChange{}, changes: map[TaskChange]bool{}}
		for j := range s.stream.Events {
			s.follow(&s.stream.Events[j])
		}
		s.compareWithRecord()
	}
}

func (s *streamCheck) reportf(format string, args ...any) {
	s.check.reportf("events", "client %d, run %d: "+format, append([]any{s.stream.Client, s.stream.Run}, args...)...)
}

// follow checks one event against those before it.
func (s *streamCheck) follow(e *Event) {
	if e.Resumed {
		s.resumed = true
		return
	}
	if e.ID < s.id {
		s.reportf("ID %d follows ID %d", e.ID, s.id)
	}
	s.id = e.ID
	if e.Missed > 0 {
		s.missed = true
		if !s.options.AllowMissed {
			s.reportf("after ID %d the service left out %d changes", s.id, e.Missed)
		}
	}
	if e.State != "" {
		if isFinal(s.state) && e.State != s.state && !s.resumed && len(s.runFacts(s.stream.Run).changed) == 0 {
			s.reportf("the run went from %s to %s", s.state, e.State)
		}
		s.state = e.State
	}
	for _, change := range e.Tasks {
		s.followTask(change)
	}
}

// followTask checks one change of a task. A stream that was resumed may repeat whatever it has sent.
func (s *streamCheck) followTask(change TaskChange) {
	if s.changes[change] {
		// A task that lost its slot is QUEUED again with the same attempt number.
		if !s.resumed && isFinal(change.State) {
			s.reportf("task %s: attempt %d is %s for the second time", change.Task, change.Attempt, change.State)
		}
		return
	}
	s.changes[change] = true
	last := s.last[change.Task]
	if last.State == stateCompleted {
		s.reportf("task %s is %s (attempt %d) after COMPLETED (attempt %d)", change.Task, change.State, change.Attempt, last.Attempt)
	}
	// A task with a slot is shown as QUEUED with the number of its next attempt, until that begins. The
	// number is free again when the slot is taken back, as by a kill.
	revoked := change.State == stateQueued && last.State == stateQueued && change.Attempt == last.Attempt-1
	if change.Attempt < last.Attempt && !revoked {
		s.reportf("task %s: a change of attempt %d follows one of attempt %d", change.Task, change.Attempt, last.Attempt)
	}
	s.last[change.Task] = change
}

// compareWithRecord checks that a stream has the end of its run. One that began with the run also has
// the final state of each task. States before that may be left out: a change from RETRY to RUNNING
// passes through QUEUED, and resumed streams leave out starts.
//
// A stream ends at the first end of its run. A user may restart the run after that, so the streams of
// runs that users changed have some end of the run.
func (s *streamCheck) compareWithRecord() {
	run := s.runFacts(s.stream.Run)
	record := run.record
	if record == nil || !isFinal(record.State()) {
		return
	}
	if len(run.changed) > 0 {
		if !isFinal(s.state) || !slices.ContainsFunc(record.StateChanges, func(c StateChange) bool { return c.State == s.state }) {
			s.reportf("the last summary is %q, the states of the run are %v", s.state, record.StateChanges)
		}
		return
	}
	if s.state != record.State() {
		s.reportf("the last summary is %q, the run is %s", s.state, record.State())
	}
	if s.missed || !s.stream.FromStart {
		return
	}
	for _, task := range slices.Sorted(maps.Keys(record.TaskStates)) {
		state := record.TaskStates[task]
		if isFinal(state) && s.last[task].State != state {
			s.reportf("task %s is %s, the last change of it is %q", task, state, s.last[task].State)
		}
	}
}
