package model

// Steps of an engine and of its node on its behalf: sessions with workers, grants, orders, ends,
// losses. A step that proposes needs a node that leads: any other entry never commits.

// engineSteps tries those of the engine of node n.
func (m *Model) engineSteps(s *State, n int, do tryStep) {
	e := &s.Nodes[n].Engine
	at := Step{Node: uint8(n), Epoch: e.Epoch, Attempt: e.Rows.Attempt}
	proposes := s.Nodes[n].Leads == s.Term && s.Proposed.Kind == proposalNone && !e.Unsure
	// It does not act on the task while it waits for the outcome of a proposal about it.
	waits := e.Unsure || s.Nodes[n].Leads == s.Term && s.Proposed.Epoch == e.Epoch && s.Proposed.Kind != proposalRegistration && m.Rules.Has(CommitBeforeOrder)

	if e.Rows.Phase == taskReady && proposes && !m.PlacedGrants {
		do(at.withKind(stepGrant), func(s *State) { m.proposeRows(s, n, proposalGrant) })
	}
	if e.Rows.Phase == taskGranted && proposes && m.knowsLoss(s, e) {
		do(at.withKind(stepLose), func(s *State) {
			e := &s.Nodes[n].Engine
			for w := range e.Sessions {
				if m.isSilent(e, w) && m.Rules.Has(SilenceEndsSession) {
					e.Sessions[w].State = sessionNone
				}
			}
			m.proposeRows(s, n, proposalLoss)
		})
	}
	if e.Rows.Phase == taskGranted && e.Place == 0 && proposes && m.mayOrder(s, e) {
		do(at.withKind(stepRevoke), func(s *State) { m.proposeRows(s, n, proposalRevocation) })
	}
	for w := range s.Workers {
		at := at.withWorker(w)
		worker := &s.Workers[w]
		session := e.Sessions[w]
		connected := worker.Phase == workerUp || worker.Phase == workerFrozen
		at.Session = session.Number

		if proposes && connected && m.Rules.Has(RegisterWorkers) && !m.isRegistered(e, worker, w) {
			do(at.withKind(stepRegister), func(s *State) { m.proposeRows(s, n, proposalRegistration, w) })
		}
		if connected && m.isRegistered(e, worker, w) && session.Number < maxSession &&
			(session.State == sessionNone || s.Faults.Breaks > 0) {
			at := at
			at.Session++
			do(at.withKind(stepLead), func(s *State) { m.openSession(s, n, w) })
		}
		if r := s.Network.Reports[w][e.Epoch-1]; r&reportSent != 0 && session.State != sessionNone {
			do(at.withKind(stepHear), func(s *State) { m.hearReport(s, n, w, r) })
		}
		if session.State != sessionHeard {
			continue
		}
		named := e.Rows.Registered[w] == worker.Incarnation
		if m.PlacedGrants && proposes && connected && e.Rows.Phase == taskReady {
			do(at.withKind(stepPlaceGrant), func(s *State) { m.proposeRows(s, n, proposalGrant, w) })
		}
		if e.Rows.Phase == taskGranted && e.Place == 0 && !waits && (named || !m.PlacedGrants) && m.mayOrder(s, e) {
			do(at.withKind(stepOrder), func(s *State) {
				e := &s.Nodes[n].Engine
				e.Place, e.Fresh = uint8(w+1), true
				s.Network.Orders[w][e.Rows.Attempt-1] |= frameBit(e.Epoch, session.Number)
			})
		}
		// A worker that is up tells the leader of its session what has changed. Such a report may
		// be late, but it stays true, so that to tell it at once is enough.
		if worker.Phase != workerUp || worker.Noted != e.Epoch || worker.Session != session.Number {
			continue
		}
		for i, state := range worker.Attempts {
			attempt := uint8(i + 1)
			if state != attemptEnded && state != attemptLost {
				continue
			}
			at := at
			at.Attempt = attempt
			switch {
			case e.Rows.hasEnd(attempt):
				do(at.withKind(stepAcknowledge), func(s *State) { s.Workers[w].Attempts[i] = attemptForgotten })
			case e.Rows.Attempt != attempt || e.Rows.Phase != taskGranted || !proposes:
			case state == attemptEnded:
				do(at.withKind(stepEnd), func(s *State) { m.proposeRows(s, n, proposalEnd) })
			default:
				do(at.withKind(stepHearLoss), func(s *State) { m.proposeRows(s, n, proposalLoss) })
			}
		}
	}
}

// proposeRows proposes what the kind says of the granted attempt, or of a worker.
func (m *Model) proposeRows(s *State, n int, kind proposalKind, worker ...int) {
	e := &s.Nodes[n].Engine
	rows := e.Rows
	switch kind {
	case proposalGrant:
		rows.Phase = taskGranted
		for _, w := range worker {
			rows.Registered = [workerCount]uint8{}
			rows.Registered[w] = s.Workers[w].Incarnation
		}
	case proposalRevocation:
		rows.Phase = taskReady
	case proposalEnd:
		rows.Phase = taskCompleted
	case proposalLoss:
		if rows.Attempt == attemptCount {
			rows.Phase = taskGaveUp
		} else {
			rows.Attempt, rows.Phase = rows.Attempt+1, taskReady
		}
	case proposalRegistration:
		for _, w := range worker {
			rows.Registered[w] = s.Workers[w].Incarnation
		}
	}
	s.Proposed = Proposal{Kind: kind, Epoch: e.Epoch, Rows: rows}
	switch {
	case kind == proposalGrant && !m.Rules.Has(CommitBeforeOrder):
		e.Rows, e.Place, e.Fresh, e.Verdict = rows, 0, true, undisputed
	case kind == proposalEnd && !m.Rules.Has(AcknowledgeAfterCommit):
		e.Rows.Phase = taskCompleted
	}
}

// isRegistered reports whether the engine's rows have this incarnation of the worker, or with fewer
// rules any, or whether that is not asked for.
func (m *Model) isRegistered(e *Engine, worker *Worker, w int) bool {
	switch {
	case !m.Rules.Has(RegisterWorkers) || m.PlacedGrants:
		return true
	case !m.Rules.Has(RegisterIncarnations):
		return e.Rows.Registered[w] != 0
	}
	return e.Rows.Registered[w] == worker.Incarnation
}

// openSession sends Lead on a new session.
func (m *Model) openSession(s *State, n, w int) {
	e := &s.Nodes[n].Engine
	if e.Sessions[w].State != sessionNone {
		s.Faults.Breaks--
	}
	if !m.Rules.Has(RegisterWorkers) && e.Rows.Registered[w] != s.Workers[w].Incarnation {
		e.Rows.Registered[w], e.Wait[w] = s.Workers[w].Incarnation, m.silenceTicks()
	}
	e.Sessions[w] = Session{Number: e.Sessions[w].Number + 1, State: sessionOpened}
	s.Network.Leads[w] |= frameBit(e.Epoch, e.Sessions[w].Number)
	s.Network.Reports[w][e.Epoch-1] = 0
}

// hearReport takes in the first report of a session. Whatever the attempt's former place was, a worker that
// knows the attempt has it. An attempt that its place does not know has not begun, unless the
// worker's memory is incomplete.
func (m *Model) hearReport(s *State, n, w int, r report) {
	e := &s.Nodes[n].Engine
	e.Sessions[w].State = sessionHeard
	e.Wait[w] = m.silenceTicks()
	if e.Rows.Phase != taskGranted {
		return
	}
	torn := r&reportTorn != 0 && m.Rules.Has(TornJournalProvesNothing)
	switch {
	case r.has(e.Rows.Attempt):
		if e.Place == 0 {
			e.Place, e.Verdict = uint8(w+1), undisputed
		}
	case e.Place == uint8(w+1):
		e.Place, e.Fresh = 0, !torn
		if torn {
			e.Verdict = knownAsLost
		}
	case e.Place == 0 && !e.Fresh && torn && e.Verdict == undisputed:
		e.Verdict = inDoubt
	}
}

// isSilent reports whether the leader has not heard a worker for the whole lease and its margin.
func (m *Model) isSilent(e *Engine, w int) bool { return m.Scope.Lease != 0 && e.Wait[w] == 0 }

// mayOrder reports whether the granted attempt, which is not known to be at a worker, has certainly not
// begun.
func (m *Model) mayOrder(s *State, e *Engine) bool {
	switch {
	case e.Verdict != undisputed:
		return false
	case e.Fresh || !m.Rules.Has(ResumeHearsAll):
		return true
	}
	for w, registered := range e.Rows.Registered {
		if registered == 0 || e.Sessions[w].State == sessionHeard {
			continue
		}
		if m.Rules.Has(SilentIsLost) || !m.isDead(s, e, w) {
			return false
		}
	}
	return true
}

// knowsLoss reports whether the granted attempt is lost: it may have begun, and its processes
// have ended. While a worker that may have it can still be heard, it is not.
func (m *Model) knowsLoss(s *State, e *Engine) bool {
	switch {
	case e.Verdict == knownAsLost:
		return true
	case e.Place != 0:
		return m.isDead(s, e, int(e.Place-1))
	case e.Fresh:
		return false
	}
	lost := e.Verdict == inDoubt
	for w, registered := range e.Rows.Registered {
		if registered == 0 || e.Sessions[w].State == sessionHeard {
			continue
		}
		if !m.isDead(s, e, w) {
			return false
		}
		lost = true
	}
	return lost
}

// isDead reports whether all attempts of a worker have ended: it is silent, or the operator says so.
func (m *Model) isDead(s *State, e *Engine, w int) bool { return m.isSilent(e, w) || s.Declared[w] }
