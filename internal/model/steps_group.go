package model

// Steps of the partition's group: elections, commits, the begin and end of engines.

// groupSteps tries them all.
func (m *Model) groupSteps(s *State, do tryStep) {
	m.electLeaders(s, do)
	if s.Proposed.Kind != proposalNone {
		do(Step{Kind: stepCommit, Node: uint8(s.presentLeader()), Proposal: s.Proposed.Kind}, m.commitProposal)
	}
	for n := range s.Nodes {
		node := &s.Nodes[n]
		at := Step{Node: uint8(n)}
		if node.Down {
			do(at.withKind(stepRestartNode), func(s *State) { s.Nodes[n].Down = false })
			continue
		}
		if node.Leads != s.Term && node.Leads != 0 || node.Engine.Epoch != 0 && node.Leads != node.Engine.Epoch {
			do(at.withKind(stepStepDown), func(s *State) {
				node := &s.Nodes[n]
				if node.Leads != s.Term {
					node.Leads = 0
				}
				node.Engine = Engine{}
			})
		}
		resolved := s.Proposed.Kind == proposalNone || !m.Rules.Has(ResolveBeforeRestart)
		if node.Leads == s.Term && node.Engine.Epoch == 0 && resolved {
			do(at.withKind(stepTakeOver), func(s *State) { m.beginEngine(s, n) })
		}
		if !m.Rules.Has(TakeoverReadsAll) && node.Engine.Epoch == 0 && node.Engine.Rows != s.Committed {
			do(at.withKind(stepCatchUp), func(s *State) { s.Nodes[n].Engine.Rows = s.Committed })
		}
		if s.Faults.NodeCrashes > 0 {
			m.withOutcome(s, n, at.withKind(stepCrashNode), do, func(s *State) {
				s.Faults.NodeCrashes--
				s.Nodes[n] = Node{Down: true}
			})
		}
		if s.Faults.EngineFailures > 0 && node.Leads == s.Term && node.Engine.Epoch == s.Term {
			do(at.withKind(stepFailEngine), func(s *State) {
				s.Faults.EngineFailures--
				// Numbers of sessions go on in the same term.
				sessions := s.Nodes[n].Engine.Sessions
				s.Nodes[n].Engine = Engine{Sessions: sessions}
				for w := range sessions {
					s.Nodes[n].Engine.Sessions[w].State = sessionNone
				}
				s.Proposed.Orphaned = s.Proposed.Kind != proposalNone
			})
		}
	}
}

// presentLeader returns the node that leads the present term, or -1.
func (s *State) presentLeader() int {
	for n := range s.Nodes {
		if s.Nodes[n].Leads == s.Term {
			return n
		}
	}
	return -1
}

// electLeaders elects each node that is up and does not lead: at any time while the scope has elections
// left, and always when the present term has lost its leader. A node may lead again after another.
func (m *Model) electLeaders(s *State, do tryStep) {
	former := s.presentLeader()
	if s.Term == maxTerm || former >= 0 && s.Faults.Elections == 0 {
		return
	}
	for n := range s.Nodes {
		if s.Nodes[n].Down || n == former {
			continue
		}
		elect := func(s *State) {
			if former >= 0 {
				s.Faults.Elections--
			}
			s.Term++
			s.Nodes[n].Leads = s.Term
			if s.Nodes[n].Engine.Epoch == 0 {
				s.Nodes[n].Engine.Sessions = [workerCount]Session{} // those of a failed engine
			}
		}
		m.withOutcome(s, former, Step{Kind: stepElect, Node: uint8(n), Epoch: s.Term + 1}, do, elect)
	}
}

// withOutcome tries a step that ends the leadership of a node. What becomes of its proposal is
// unknown to it: either the next leader has the entry, and commits it before its own takeover, or
// the entry is lost.
func (m *Model) withOutcome(s *State, leader int, step Step, do tryStep, change func(*State)) {
	if leader < 0 || leader != s.presentLeader() || s.Proposed.Kind == proposalNone {
		do(step, change)
		return
	}
	step.Proposal = s.Proposed.Kind
	for _, committed := range []bool{false, true} {
		step.Committed = committed
		do(step, func(s *State) {
			if committed {
				m.applyRows(s)
			}
			e := &s.Nodes[leader].Engine
			e.Unsure = e.Epoch == s.Proposed.Epoch && s.Proposed.Kind != proposalRegistration && m.Rules.Has(UnknownEndsEngine)
			s.Proposed = Proposal{}
			change(s)
		})
	}
}

// applyRows writes the rows of the entry under way, on all replicas. Its log term is the present one.
func (m *Model) applyRows(s *State) (written bool) {
	p := &s.Proposed
	if p.Epoch != s.Term && m.Rules.Has(FenceByTerm) {
		return false
	}
	before := s.Committed
	if p.Kind == proposalRegistration {
		s.Committed.Registered = p.Rows.Registered
	} else {
		s.Committed.Attempt, s.Committed.Phase = p.Rows.Attempt, p.Rows.Phase
		if m.PlacedGrants {
			s.Committed.Registered = p.Rows.Registered
		}
	}
	if before.ended() && (s.Committed.Attempt != before.Attempt || s.Committed.Phase != before.Phase) {
		s.Broken = FinalEnd
	}
	return true
}

// commitProposal commits the entry under way, and tells the engine that waits for it. The two are one step:
// a leader that dies in between is one that dies before it has used what it was told.
func (m *Model) commitProposal(s *State) {
	p := s.Proposed
	written := m.applyRows(s)
	s.Proposed = Proposal{}
	n := s.presentLeader()
	if n < 0 || p.Orphaned || s.Nodes[n].Engine.Epoch != p.Epoch {
		return
	}
	e := &s.Nodes[n].Engine
	if !written { // ErrLost: the engine ends
		*e = Engine{}
		return
	}
	if p.Kind == proposalRegistration {
		m.learnRegistrations(e, p.Rows.Registered)
		return
	}
	m.learnOutcome(e, p)
}

// learnRegistrations tells an engine of new workers, or new incarnations.
func (m *Model) learnRegistrations(e *Engine, registered [workerCount]uint8) {
	for w := range registered {
		if e.Rows.Registered[w] != registered[w] {
			e.Rows.Registered[w], e.Wait[w] = registered[w], m.silenceTicks()
		}
	}
}

// learnOutcome brings the engine to the rows of its committed proposal.
func (m *Model) learnOutcome(e *Engine, p Proposal) {
	e.Rows.Attempt, e.Rows.Phase = p.Rows.Attempt, p.Rows.Phase
	if m.PlacedGrants {
		e.Rows.Registered = p.Rows.Registered
	}
	switch p.Kind {
	case proposalGrant:
		if m.Rules.Has(CommitBeforeOrder) { // else it has done so when it proposed
			e.Place, e.Fresh, e.Verdict = 0, true, undisputed
		}
	case proposalLoss, proposalRevocation, proposalEnd:
		e.Place, e.Fresh, e.Verdict = 0, false, undisputed
	}
}

// beginEngine takes the partition over: the takeover is committed, and the engine begins with the
// rows.
func (m *Model) beginEngine(s *State, n int) {
	node := &s.Nodes[n]
	sessions, replica := node.Engine.Sessions, node.Engine.Rows
	node.Engine = Engine{Epoch: node.Leads, Rows: s.Committed, Sessions: sessions}
	e := &node.Engine
	if !m.Rules.Has(TakeoverReadsAll) {
		e.Rows.Attempt, e.Rows.Phase = replica.Attempt, replica.Phase
		if replica.Attempt == 0 {
			e.Rows = s.Committed
		}
	}
	for w := range s.Workers {
		if !m.Rules.Has(RegisterWorkers) {
			e.Rows.Registered[w] = s.Workers[w].Incarnation // the workers that there are at this moment
		}
		if (e.Rows.Registered[w] != 0 || m.PlacedGrants) && m.Rules.Has(FullWaitAtTakeover) {
			e.Wait[w] = m.silenceTicks()
		}
	}
}

// silenceTicks is the time of silence after which a worker's attempts have ended, in ticks of the leader.
func (m *Model) silenceTicks() uint8 {
	if m.Scope.Lease == 0 {
		return 0
	}
	return m.Scope.Lease + m.leaseMargin()
}
