package model

// Steps of workers and of their attempts, and the faults of workers.

// workerSteps tries those of worker w.
func (m *Model) workerSteps(s *State, w int, do tryStep) {
	worker := &s.Workers[w]
	at := Step{}.withWorker(w)
	if worker.Phase == workerUp {
		for epoch := uint8(1); epoch <= maxTerm; epoch++ {
			for session := uint8(1); session <= maxSession; session++ {
				bit := frameBit(epoch, session)
				at := at
				at.Epoch, at.Session = epoch, session
				if s.Network.Leads[w]&bit != 0 {
					do(at.withKind(stepTakeLead), func(s *State) { m.takeLead(s, w, epoch, session) })
				}
				for i := range attemptCount {
					if s.Network.Orders[w][i]&bit != 0 && m.acceptsOrder(worker, epoch, session, i) {
						at.Attempt = uint8(i + 1)
						do(at.withKind(stepTakeOrder), func(s *State) { s.Workers[w].Attempts[i] = attemptQueued })
					}
				}
			}
		}
	}
	for i, state := range worker.Attempts {
		at := at
		at.Attempt = uint8(i + 1)
		up := worker.Phase == workerUp
		switch {
		case up && state == attemptQueued && m.hasLease(worker):
			do(at.withKind(stepBegin), func(s *State) { m.beginAttempt(s, w, i) })
		case up && state == attemptBegun && worker.Live[i]:
			do(at.withKind(stepFinish), func(s *State) {
				s.Workers[w].Attempts[i], s.Workers[w].Live[i] = attemptEnded, false
			})
		}
		if !m.leaseIsOver(worker) {
			continue
		}
		switch {
		case up && state == attemptQueued:
			do(at.withKind(stepDropOrder), func(s *State) { s.Workers[w].Attempts[i] = attemptUnknown })
		case up && state == attemptBegun: // if the process is dead, the guard has ended it
			do(at.withKind(stepLeaseEnds), func(s *State) {
				s.Workers[w].Attempts[i], s.Workers[w].Live[i] = attemptLost, false
			})
		case !up && worker.Live[i] && m.Rules.Has(LeaseNeedsNoWorker):
			do(at.withKind(stepGuardEnds), func(s *State) { s.Workers[w].Live[i] = false })
		}
	}
}

// takeLead notes a higher epoch, or a newer session of the same, and tells what the worker knows.
// From then on, orders of earlier epochs and sessions are ignored. The note is on disk before the
// report is sent. Frames that are not newer were dropped by normalize.
func (m *Model) takeLead(s *State, w int, epoch, session uint8) {
	worker := &s.Workers[w]
	worker.Noted, worker.Session = epoch, session
	r := reportSent
	if worker.Torn {
		r |= reportTorn
	}
	for i, state := range worker.Attempts {
		if state != attemptUnknown && state != attemptForgotten {
			r |= reportHas1 << i
		}
	}
	if n := s.engineOf(epoch); n >= 0 && s.Nodes[n].Engine.Sessions[w].Number == session {
		if m.Scope.PromptReports {
			m.hearReport(s, n, w, r)
			return
		}
		s.Network.Reports[w][epoch-1] = r
	}
}

// acceptsOrder reports whether the worker enters an order that has arrived. It answers other
// orders with Ignored. That frame does not tell a leader what became of the attempt, so the model
// leaves it out.
func (m *Model) acceptsOrder(worker *Worker, epoch, session uint8, i int) bool {
	if worker.Session == 0 || epoch > worker.Noted ||
		epoch < worker.Noted && m.Rules.Has(HighestEpoch) ||
		epoch == worker.Noted && session < worker.Session && m.Rules.Has(NewestSession) ||
		epoch == worker.Noted && session > worker.Session || !m.hasLease(worker) {
		return false
	}
	switch worker.Attempts[i] {
	case attemptUnknown:
		return true
	case attemptEnded, attemptLost, attemptForgotten:
		return !m.Rules.Has(StartOnce)
	}
	return false
}

// hasLease reports whether attempts may begin.
func (m *Model) hasLease(worker *Worker) bool {
	return m.Scope.Lease == 0 || !m.Rules.Has(BeginUnderLease) || worker.Lease > 0
}

// leaseIsOver reports whether attempts are ended.
func (m *Model) leaseIsOver(worker *Worker) bool {
	return m.Scope.Lease != 0 && m.Rules.Has(LeaseEndsAttempts) && worker.Lease <= 0
}

// beginAttempt starts the process of attempt i + 1.
func (m *Model) beginAttempt(s *State, w, i int) {
	worker, attempt := &s.Workers[w], uint8(i+1)
	worker.Attempts[i], worker.Live[i] = attemptBegun, true
	s.Starts[i]++
	switch c := &s.Committed; {
	case c.ended():
		s.Broken = NoRerun
	case c.Attempt < attempt || c.Attempt == attempt && c.Phase == taskReady:
		s.Broken = DurableGrant
	}
}

// workerFaults tries the faults of worker w, and what repairs them.
func (m *Model) workerFaults(s *State, w int, do tryStep) {
	at := Step{}.withWorker(w)
	alive := s.Workers[w].Phase == workerUp || s.Workers[w].Phase == workerFrozen
	if s.Workers[w].Phase == workerAbsent {
		do(at.withKind(stepJoin), func(s *State) { s.Workers[w] = Worker{Incarnation: 1} })
		return
	}
	if alive && s.Faults.Kills > 0 {
		do(at.withKind(stepKillWorker), func(s *State) {
			s.Faults.Kills--
			m.endWorker(s, w)
		})
	}
	if s.Workers[w].Phase != workerGone && s.Faults.PowerCuts > 0 {
		do(at.withKind(stepCutPower), func(s *State) {
			s.Faults.PowerCuts--
			m.endWorker(s, w)
			worker := &s.Workers[w]
			worker.Torn, worker.Live = true, [attemptCount]bool{}
			worker.Attempts = [attemptCount]attemptState{} // the worst that can be lost
		})
	}
	if s.Workers[w].Phase != workerGone && s.Faults.Losses > 0 {
		do(at.withKind(stepLoseWorker), func(s *State) {
			s.Faults.Losses--
			m.endWorker(s, w)
			s.Workers[w].Phase = workerGone
		})
	}
	if s.Workers[w].Phase == workerGone && !s.Declared[w] && m.Rules.Has(OperatorDeclaresDeath) && m.Scope.Lease == 0 {
		do(at.withKind(stepDeclare), func(s *State) { s.Declared[w] = true })
	}
	if s.Workers[w].Phase == workerDown && m.Rules.Has(RecoverDeadWorkers) {
		do(at.withKind(stepRestartWorker), func(s *State) { m.restartWorker(s, w) })
	}
	if s.Workers[w].Phase == workerUp && s.Faults.Freezes > 0 {
		do(at.withKind(stepFreeze), func(s *State) {
			s.Faults.Freezes--
			s.Workers[w].Phase = workerFrozen
		})
	}
	if s.Workers[w].Phase == workerFrozen {
		do(at.withKind(stepWake), func(s *State) { s.Workers[w].Phase = workerUp })
	}
}

// endWorker ends the worker's process with all that it has in memory, and its connections with the
// frames on them.
func (m *Model) endWorker(s *State, w int) {
	worker := &s.Workers[w]
	worker.Phase, worker.Session = workerDown, 0
	if !m.Rules.Has(NoteIsDurable) {
		worker.Noted = 0
	}
	for i, state := range worker.Attempts {
		if state == attemptQueued || state == attemptForgotten || state == attemptBegun && !m.Rules.Has(IntentBeforeFork) {
			worker.Attempts[i] = attemptUnknown
		}
	}
	s.Network.Leads[w], s.Network.Orders[w] = 0, [attemptCount]frameSet{}
	for n := range s.Nodes {
		s.Nodes[n].Engine.Sessions[w].State = sessionNone
	}
}

// restartWorker starts the successor of a dead worker: it ends the processes that are left, and
// takes over what the journal says. It begins without a lease.
func (m *Model) restartWorker(s *State, w int) {
	worker := &s.Workers[w]
	worker.Phase, worker.Lease = workerUp, 0
	worker.Incarnation++
	for i, state := range worker.Attempts {
		if state == attemptBegun {
			worker.Attempts[i] = attemptLost
		}
		if m.Rules.Has(EndProcessesFirst) {
			worker.Live[i] = false
		}
	}
}
