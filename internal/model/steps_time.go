package model

// Steps of time: ticks, heartbeats and the renewal of leases.

// timeSteps tries them, in a scope with leases.
func (m *Model) timeSteps(s *State, do tryStep) {
	if m.Scope.Lease == 0 {
		return
	}
	if m.mayTick(s) {
		do(Step{Kind: stepTick}, m.passTick)
	}
	h := s.Network.Heartbeat
	if !h.UnderWay {
		m.heartbeatSteps(s, do)
		return
	}
	at := Step{Epoch: h.Epoch, Worker: h.Worker}
	if worker := &s.Workers[h.Worker]; worker.Phase == workerUp && m.mayRenew(worker) {
		for at.Ticks = range m.Scope.Drift + 1 {
			late := at.Ticks
			do(at.withKind(stepRenew), func(s *State) { m.renewLease(s, late) })
		}
	}
	do(at.withKind(stepLoseHeartbeat), func(s *State) { s.Network.Heartbeat = heartbeat{} })
}

// heartbeatSteps sends a heartbeat of a worker, which its node answers, or where the rules allow that, a
// frame of a leader which renews the lease without one.
func (m *Model) heartbeatSteps(s *State, do tryStep) {
	for w := range s.Workers {
		worker := &s.Workers[w]
		n := s.engineOf(worker.Noted)
		if n < 0 || worker.Session == 0 || s.Nodes[n].Engine.Sessions[w].State != sessionHeard {
			continue
		}
		at := Step{Node: uint8(n), Epoch: worker.Noted}.withWorker(w)
		renewal := heartbeat{UnderWay: true, Worker: uint8(w), Epoch: worker.Noted}
		leads := s.Nodes[n].Leads == s.Term && s.Term == worker.Noted
		if worker.Phase == workerUp && (leads || !m.Rules.Has(RenewWhileLeading)) {
			do(at.withKind(stepHeartbeat), func(s *State) {
				s.Nodes[n].Engine.Wait[w] = m.silenceTicks()
				s.Network.Heartbeat = renewal
			})
		}
		if !m.Rules.Has(LeaseFromSending) {
			do(at.withKind(stepSendFrame), func(s *State) { s.Network.Heartbeat = renewal })
		}
	}
}

// mayRenew reports whether the worker takes a renewal in: a lease that is over has to end all that
// it had allowed first.
func (m *Model) mayRenew(worker *Worker) bool {
	if worker.Lease > 0 || !m.Rules.Has(OverIsOver) {
		return true
	}
	for _, state := range worker.Attempts {
		if state == attemptQueued || state == attemptBegun {
			return false
		}
	}
	return true
}

// renewLease extends the worker's lease. A clock that is late makes it so many ticks longer.
func (m *Model) renewLease(s *State, late uint8) {
	h := s.Network.Heartbeat
	if !m.Rules.Has(LeaseFromSending) {
		h.Age = 0
	}
	worker := &s.Workers[h.Worker]
	worker.Lease = max(worker.Lease, int8(m.Scope.Lease)+int8(late)-int8(h.Age))
	s.Network.Heartbeat = heartbeat{}
}

// mayTick reports whether time may go on: it waits for attempts whose lease and grace are over, where
// they are ended in time.
func (m *Model) mayTick(s *State) bool {
	for w := range s.Workers {
		worker := &s.Workers[w]
		if worker.Lease > -int8(m.Scope.Grace) || worker.Live == [attemptCount]bool{} || !m.Rules.Has(LeaseEndsAttempts) {
			continue
		}
		if worker.Phase == workerUp || m.Rules.Has(LeaseNeedsNoWorker) {
			return false
		}
	}
	return true
}

// passTick lets time go on by a tick, for leases, waits and heartbeats.
func (m *Model) passTick(s *State) {
	for w := range s.Workers {
		worker := &s.Workers[w]
		if worker.Phase != workerGone && worker.Phase != workerAbsent {
			worker.Lease = max(worker.Lease-1, -int8(m.Scope.Grace))
		}
		for n := range s.Nodes {
			if wait := &s.Nodes[n].Engine.Wait[w]; *wait > 0 {
				*wait--
			}
		}
	}
	if h := &s.Network.Heartbeat; h.UnderWay {
		h.Age = min(h.Age+1, m.Scope.Lease+m.Scope.Drift)
		if h.Age == m.Scope.Lease+m.Scope.Drift && m.Rules.Has(LeaseFromSending) {
			*h = heartbeat{} // it would not extend the lease
		}
	}
}
