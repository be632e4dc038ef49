package model

// Scope is the world in which the protocol is checked: which faults happen, and what time there is.
// Small scopes keep the number of states in hand; together they have each fault in the company of
// those that matter to it.
type Scope struct {
	Name   string
	Faults Faults
	// PromptReports is set when a leader hears the first report of a session at once.
	PromptReports bool
	// Settled is set when the model starts later: the first leader has heard all workers, and has
	// ordered the first attempt to the first of them.
	Settled bool
	// LateWorker is set when the second worker joins at some later time.
	LateWorker bool
	// Lease is the worker's lease in ticks; 0 = attempts are never ended for silence, and there is no
	// time.
	Lease uint8
	// Drift is how many ticks a worker's clock may be late in the time of a lease.
	Drift uint8
	// Grace is how many ticks the end of an attempt takes once the lease is over.
	Grace uint8
}

// leaseMargin is what a leader adds to the lease. It must exceed drift and grace together: a worker that
// has to end its attempts before the next tick may not have done so yet. The margin that is too
// short covers the drift alone.
func (m *Model) leaseMargin() uint8 {
	if !m.Rules.Has(MarginCoversGrace) {
		return m.Scope.Drift + 1
	}
	return m.Scope.Drift + m.Scope.Grace + 1
}

// Model is the protocol, with a choice of its rules, in a scope. It is a System of State and Step.
type Model struct {
	Rules Rules
	Scope Scope
	// PlacedGrants is set for the variant in which a grant names the worker (package doc, Placed
	// grants).
	PlacedGrants bool
}

var _ System[State, Step] = (*Model)(nil)

// Initial implements System: node 1 leads term 1 and has the engine of epoch 1. The task is ready for
// its first attempt. All workers are registered; a late one is absent.
func (m *Model) Initial() State {
	s := State{Term: 1, Faults: m.Scope.Faults, Committed: Rows{Attempt: 1}}
	for w := range s.Workers {
		s.Workers[w].Incarnation = 1
		if w == 1 && m.Scope.LateWorker {
			s.Workers[w] = Worker{Phase: workerAbsent}
			continue
		}
		if !m.PlacedGrants || m.Scope.Settled && w == 0 {
			s.Committed.Registered[w] = 1
		}
	}
	for n := range s.Nodes {
		if !m.Rules.Has(TakeoverReadsAll) {
			s.Nodes[n].Engine.Rows = s.Committed
		}
	}
	s.Nodes[0].Leads = 1
	m.beginEngine(&s, 0)
	if m.Scope.Settled {
		for w := range s.Workers {
			s.Workers[w].Noted, s.Workers[w].Session = 1, 1
			s.Nodes[0].Engine.Sessions[w] = Session{Number: 1, State: sessionHeard}
		}
		e := &s.Nodes[0].Engine
		s.Committed.Phase, e.Rows.Phase = taskGranted, taskGranted
		e.Place, e.Fresh = 1, true
		s.Network.Orders[0][0] = frameBit(1, 1)
	}
	m.normalize(&s)
	return s
}

// IsGoal implements System: the task has ended.
func (m *Model) IsGoal(s State) bool { return s.Committed.ended() }

// Violation implements System.
func (m *Model) Violation(s State) string {
	if s.Broken != PropertyNone {
		return s.Broken.String()
	}
	live := 0
	for w := range s.Workers {
		for i := range attemptCount {
			if s.Workers[w].Live[i] {
				live++
			}
			if s.Workers[w].Attempts[i] == attemptForgotten && !s.Committed.hasEnd(uint8(i+1)) {
				return KeptEnd.String()
			}
		}
	}
	if live > 1 {
		return OneCopy.String()
	}
	for _, n := range s.Starts {
		if n > 1 {
			return OneStart.String()
		}
	}
	return PropertyNone.String()
}

// Next implements System.
func (m *Model) Next(s State, yield func(Step, State)) {
	if s.Committed.ended() && m.Scope.Lease != 0 {
		return
	}
	do := func(step Step, change func(*State)) {
		next := s
		change(&next)
		m.normalize(&next)
		yield(step, next)
	}
	m.groupSteps(&s, do)
	for n := range s.Nodes {
		if !s.Nodes[n].Down && s.Nodes[n].Engine.Epoch != 0 {
			m.engineSteps(&s, n, do)
		}
	}
	for w := range s.Workers {
		m.workerSteps(&s, w, do)
		m.workerFaults(&s, w, do)
	}
	m.timeSteps(&s, do)
}

// tryStep makes the state that follows a step, and hands both on.
type tryStep = func(Step, func(*State))

// normalize makes states equal that cannot be told apart by any later step: it drops frames that
// their receivers refuse for ever, and clears what is not used any more.
func (m *Model) normalize(s *State) {
	for n := range s.Nodes {
		node := &s.Nodes[n]
		switch {
		case node.Engine.Epoch == 0:
		case m.isPowerless(s, n):
			node.Leads, node.Engine = 0, Engine{}
		case node.Leads != s.Term && m.Rules.Has(FenceByTerm) || node.Engine.Rows.ended():
			node.Engine.Wait = [workerCount]uint8{} // it does not propose a loss any more, or in vain
		}
	}
	for w := range s.Workers {
		m.normalizeWorker(s, w)
	}
}

// isPowerless reports whether a former leader will never order an attempt again, although it does not
// know that. All that it can still do is to open sessions, which makes workers refuse more, and to
// acknowledge durable ends, which other leaders do as well.
func (m *Model) isPowerless(s *State, n int) bool {
	e := &s.Nodes[n].Engine
	if s.Nodes[n].Leads == s.Term {
		return false
	}
	for _, r := range []Rule{FenceByTerm, RenewWhileLeading, LeaseFromSending, HighestEpoch, NoteIsDurable} {
		if !m.Rules.Has(r) {
			return false
		}
	}
	if e.Unsure || e.Rows.Phase != taskGranted {
		return true
	}
	hears := func(w int) bool { return s.Workers[w].Phase != workerGone && s.Workers[w].Noted <= e.Epoch }
	if e.Place != 0 {
		return !hears(int(e.Place - 1))
	}
	some := false
	for w, registered := range e.Rows.Registered {
		if !hears(w) && registered != 0 && !e.Fresh && e.Sessions[w].State != sessionHeard && m.Rules.Has(ResumeHearsAll) {
			return true
		}
		some = some || hears(w) && (registered != 0 || !m.PlacedGrants)
	}
	return !some
}

// normalizeWorker is normalize for a worker and the frames from and to it.
func (m *Model) normalizeWorker(s *State, w int) {
	worker, net := &s.Workers[w], &s.Network
	if worker.Phase == workerGone || worker.Phase == workerAbsent {
		*worker = Worker{Phase: worker.Phase}
		net.Leads[w], net.Orders[w] = 0, [attemptCount]frameSet{}
	}
	former := frameSet(0) // frames of former epochs
	if worker.Noted > 0 {
		former = frameBit(worker.Noted, 1) - 1
	}
	seen := former // the same, with former sessions
	if worker.Session > 0 {
		seen = frameBit(worker.Noted, worker.Session) - 1
	}
	net.Leads[w] &^= seen
	if worker.Session > 0 {
		net.Leads[w] &^= frameBit(worker.Noted, worker.Session)
	}
	refused := frameSet(0)
	if m.Rules.Has(HighestEpoch) {
		refused = former
		if m.Rules.Has(NewestSession) {
			refused = seen
		}
	}
	for i := range net.Orders[w] {
		net.Orders[w][i] &^= refused
		if m.Rules.Has(StartOnce) && worker.Attempts[i] > attemptQueued {
			net.Orders[w][i] = 0 // until the worker's death, which drops frames anyway
		}
	}
	for epoch := uint8(1); epoch <= maxTerm; epoch++ {
		n := s.engineOf(epoch)
		if n < 0 || s.Nodes[n].Engine.Sessions[w].State == sessionNone ||
			s.Nodes[n].Engine.Sessions[w].State == sessionHeard && m.Rules.Has(AbsenceFromFirstReport) {
			net.Reports[w][epoch-1] = 0
		}
	}
	if h := &net.Heartbeat; int(h.Worker) == w && (h.Epoch != worker.Noted || worker.Session == 0) {
		*h = heartbeat{} // it would not be taken
	}
}

// engineOf returns the node that has the engine of an epoch, or -1.
func (s *State) engineOf(epoch uint8) int {
	for n := range s.Nodes {
		if s.Nodes[n].Engine.Epoch == epoch {
			return n
		}
	}
	return -1
}
