package worker

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/fleet"
	"github.com/caravan-dag/caravan/executor/lease"
	"github.com/caravan-dag/caravan/executor/lifecycle"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/messages"
)

// coreFrame is a frame under way. It arrives if its connection is open at the end that it goes to.
type coreFrame struct {
	link     *coreLink
	toWorker bool
	take     func()
}

// coreLink is a connection. Its ends may notice a break at different times.
type coreLink struct {
	node                     *coreNode
	worker                   *coreWorker
	openAtNode, openAtWorker bool
}

// coreMachine is a machine with its disk, its worker, and the processes of attempts, which outlive the
// worker.
type coreMachine struct {
	c            *cores
	index        int
	rate         int64 // of its clock, in thousandths of the right one
	worker       *coreWorker
	incarnation  int
	frozen       bool                           // the worker is stopped
	draining     bool                           // the worker accepts no more orders
	gone         bool                           // it is lost with its disk
	torn         bool                           // the journal was cut by a power failure
	processes    map[messages.AttemptKey]bool   // true: it lives; false: it has exited by itself
	begun        map[messages.AttemptKey]int64  // intents of the journal: the times of the grants
	ends         map[messages.AttemptKey][]byte // ends of the journal
	deadline     int64                          // what the guard knows, by the machine's clock
	predecessors []fleet.Predecessor            // of the worker
}

// coreWorker is a worker's process: partition, and what the Worker does around it.
type coreWorker struct {
	machine      *coreMachine
	name         string
	up           bool
	partition    partition
	links        []*coreLink // open at this end
	sessionLink  *coreLink   // of the present session; nil without one
	started      map[messages.AttemptKey]bool
	sentAt       []int64 // of heartbeats; the first has number 1
	predecessors []fleet.Predecessor
}

func (c *cores) addMachine() {
	m := &coreMachine{c: c, index: len(c.machines), rate: c.randomRate(), processes: map[messages.AttemptKey]bool{},
		begun: map[messages.AttemptKey]int64{}, ends: map[messages.AttemptKey][]byte{}}
	c.machines = append(c.machines, m)
	m.startWorker(0)
}

// startWorker starts a worker, which knows what the journal has, and may have its note of the highest
// epoch.
func (m *coreMachine) startWorker(noted uint64) {
	m.incarnation++
	w := &coreWorker{machine: m, name: fmt.Sprintf("w-%d-%d", m.index, m.incarnation), up: true,
		partition: partition{attempts: attemptTable{}, session: workerpb.Session{Epoch: noted}},
		started:   map[messages.AttemptKey]bool{}, predecessors: slices.Clone(m.predecessors)}
	if m.c.lease {
		w.partition.leases = make([]lease.Lease, 1)
	}
	m.worker, m.frozen, m.draining = w, false, false
	for _, key := range sortedKeys(m.begun) {
		a := &trackedAttempt{}
		w.partition.attempts[key] = a
		if m.ends[key] == nil {
			m.ends[key] = encodeEnd(key, m.begun[key], messages.AttemptLost)
		}
		a.MoveTo(lifecycle.Ended)
		a.end = m.ends[key]
	}
}

func sortedKeys[V any](m map[messages.AttemptKey]V) []messages.AttemptKey {
	return slices.SortedFunc(maps.Keys(m), compareKeys)
}

func encodeEnd(key messages.AttemptKey, grantedAt int64, result messages.AttemptResult) []byte {
	return workerpb.AppendFinished(nil, &executor.Report{Key: key, Kind: executor.Finished, At: 1, GrantedAt: grantedAt,
		Record: messages.AttemptRecord{Task: key.Task, Attempt: key.Attempt, Result: result, Start: 1, Stop: 1}})
}

func (m *coreMachine) clock() int64 { return m.c.now * m.rate / 1000 }

// runs reports whether the worker takes steps.
func (m *coreMachine) runs() bool { return m.worker.up && !m.frozen }

// deliverFrame delivers a frame. It may stay, and so be repeated, or be lost.
func (c *cores) deliverFrame() {
	if len(c.frames) == 0 {
		return
	}
	i := 0
	if c.chance(2) {
		i = c.random.IntN(len(c.frames))
	}
	f := c.frames[i]
	if f.toWorker && f.link.worker.machine.frozen || !f.toWorker && f.link.node.frozen {
		return
	}
	if !c.chance(6) {
		c.frames = slices.Delete(c.frames, i, i+1)
	}
	if open := f.toWorker && f.link.openAtWorker || !f.toWorker && f.link.openAtNode; open && !c.chance(40) {
		f.take()
	}
}

// passTime lets time go on. The guards end processes in time.
func (c *cores) passTime() {
	c.now += 1 + c.random.Int64N(coreTick)
	if c.lease {
		for _, m := range c.machines {
			if m.clock() >= m.deadline+coreGuardDelay {
				m.endProcesses()
			}
		}
	}
	for _, n := range c.nodes {
		if n.engine != nil && !n.frozen && n.clock() >= n.nextTick && !c.chance(10) {
			n.engine.table.Tick(c.now)
			if s := n.engine.slots; s != nil {
				c.counts["moves"] += int(s.Moved)
				s.Moved = 0
			}
			n.nextTick = n.clock() + coreTick
		}
	}
}

// endProcesses kills all processes of attempts: they have not exited by themselves.
func (m *coreMachine) endProcesses() {
	maps.DeleteFunc(m.processes, func(_ messages.AttemptKey, lives bool) bool { return lives })
}

// connect connects a node and a worker. For the worker the connection takes the place of the former
// one.
func (n *coreNode) connect(m *coreMachine) {
	w := m.worker
	if !m.runs() || n.frozen {
		return
	}
	for _, l := range n.links {
		if l.worker == w && l.openAtWorker {
			return
		}
	}
	for _, l := range slices.Clone(n.links) {
		if l.worker == w {
			l.closeAtNode()
		}
	}
	for _, l := range slices.Clone(w.links) {
		if l.node == n {
			l.closeAtWorker()
		}
	}
	l := &coreLink{node: n, worker: w, openAtNode: true, openAtWorker: true}
	n.links, w.links = append(n.links, l), append(w.links, l)
	if n.engine != nil {
		n.engine.connect(l)
	}
}

func (l *coreLink) closeAtNode() {
	l.openAtNode = false
	l.node.links = slices.DeleteFunc(l.node.links, func(other *coreLink) bool { return other == l })
	if e := l.node.engine; e != nil {
		e.table.Disconnect(l.worker.name, l)
	}
}

func (l *coreLink) closeAtWorker() {
	l.openAtWorker = false
	w := l.worker
	w.links = slices.DeleteFunc(w.links, func(other *coreLink) bool { return other == l })
	if w.sessionLink == l {
		w.sessionLink = nil
		w.partition.endSession()
	}
}

// breakLink breaks a connection, which one end notices.
func (c *cores) breakLink() {
	n := c.nodes[c.random.IntN(len(c.nodes))]
	if len(n.links) == 0 || n.frozen {
		return
	}
	if l := n.links[c.random.IntN(len(n.links))]; c.chance(2) {
		l.closeAtNode()
	} else if l.openAtWorker && l.worker.machine.runs() {
		l.closeAtWorker()
	}
}

// noticeBreak lets the other end notice a break.
func (c *cores) noticeBreak() {
	for _, n := range c.nodes {
		for _, l := range slices.Clone(n.links) {
			if !l.openAtWorker && !n.frozen && c.chance(2) {
				l.closeAtNode()
			}
		}
	}
	for _, m := range c.machines {
		for _, l := range slices.Clone(m.worker.links) {
			if !l.openAtNode && m.runs() && c.chance(2) {
				l.closeAtWorker()
			}
		}
	}
}

// killWorker ends the worker's process with its memory. The processes of its attempts live on.
func (m *coreMachine) killWorker() {
	m.worker.up, m.frozen = false, false
	for _, l := range m.worker.links {
		l.openAtWorker = false
	}
	m.worker.links, m.worker.sessionLink = nil, nil
}

// cutPower ends all processes, and part of the journal is lost.
func (m *coreMachine) cutPower() {
	if m.gone {
		return
	}
	m.killWorker()
	clear(m.processes)
	m.torn = true
	for _, key := range sortedKeys(m.begun) {
		switch m.c.random.IntN(3) {
		case 0:
			delete(m.begun, key)
			delete(m.ends, key)
		case 1:
			delete(m.ends, key)
		}
	}
}

// loseMachine loses a machine with its disk, and another one joins. Its processes may live on where
// leases end them.
func (m *coreMachine) loseMachine() {
	if m.gone || m.c.losses == 3 {
		return
	}
	m.killWorker()
	m.gone = true
	m.c.losses++
	if !m.c.lease {
		clear(m.processes)
	}
	m.c.addMachine()
}

// declareDeaths lets the operator call the workers of lost machines dead, where leases do not show it.
func (c *cores) declareDeaths() {
	if c.lease {
		return
	}
	for _, m := range c.machines {
		if !m.gone || slices.Contains(c.declared, m.worker.name) {
			continue
		}
		names := []string{m.worker.name}
		for _, p := range m.predecessors {
			names = append(names, p.Name)
		}
		c.declared = append(c.declared, names...)
		for _, n := range c.nodes {
			for _, name := range names {
				if n.engine != nil {
					n.engine.table.Died(name, false, nil, nil, c.now)
				}
			}
		}
	}
}

// restartWorker starts the successor of a dead worker, which ends the processes that are left first.
// Once the journal was cut, it does not prove that the workers before have not begun an attempt either.
func (m *coreMachine) restartWorker() {
	if m.worker.up || m.gone {
		return
	}
	clear(m.processes)
	m.predecessors = append(m.predecessors, fleet.Predecessor{Name: m.worker.name, Complete: true})
	if m.torn {
		for i := range m.predecessors {
			m.predecessors[i].Complete = false
		}
		m.torn = false
	}
	noted := uint64(0)
	if !m.c.lease || m.c.chance(2) { // a former leader cannot renew a lease: so the note may be lost
		noted = m.worker.partition.session.Epoch
	}
	m.startWorker(noted)
	m.c.counts["recoveries"]++
}

// stepWorker lets the worker do something with one of its attempts.
func (m *coreMachine) stepWorker() {
	for _, key := range sortedKeys(m.processes) { // a process ends, whether its worker lives or not
		if m.processes[key] && m.c.chance(20) {
			m.processes[key] = false
		}
	}
	if !m.runs() {
		return
	}
	w := m.worker
	if m.c.chance(4) {
		w.endOverdue()
		return
	}
	keys := sortedKeys(w.partition.attempts)
	if len(keys) == 0 {
		return
	}
	key := keys[m.c.random.IntN(len(keys))]
	switch w.partition.attempts[key].State() {
	case lifecycle.Queued:
		if w.partition.mayBegin(key, m.clock()) {
			w.begin(key)
		}
	case lifecycle.Running:
		switch lives, left := m.processes[key]; {
		case !left: // the guard has killed it
			w.end(key, messages.AttemptLost)
		case !lives:
			w.end(key, messages.AttemptSucceeded)
		}
	}
}

// begin starts the process of an attempt, and checks the properties that this may break.
func (w *coreWorker) begin(key messages.AttemptKey) {
	m, c, a := w.machine, w.machine.c, w.partition.attempts[key]
	for _, other := range c.machines {
		for k, lives := range other.processes {
			if lives && k.Task == key.Task {
				c.fail("%s starts %v while %v lives on machine %d", w.name, key, k, other.index)
			}
		}
	}
	switch row := c.rows[key.Task]; {
	case row.phase >= coreCompleted:
		c.fail("%s starts %v although the end of the task is durable", w.name, key)
	case row.attempt > key.Attempt:
		c.fail("%s starts %v although its loss is durable", w.name, key)
	case row.attempt < key.Attempt || row.phase == coreReady:
		c.fail("%s starts %v without a durable grant", w.name, key)
	case row.worker != w.name && !c.places:
		c.fail("%s starts %v, which was granted to %s", w.name, key, row.worker)
	}
	if c.starts[key]++; c.starts[key] > 1 {
		c.fail("%v was started twice", key)
	}
	a.MoveTo(lifecycle.Starting)
	a.MoveTo(lifecycle.Running)
	a.StartedAt = 1
	m.begun[key], m.processes[key], w.started[key] = a.GrantedAt, true, true
	c.counts["starts"]++
	w.tellAttempt(key)
}

// end takes in that the process of an attempt has ended.
func (w *coreWorker) end(key messages.AttemptKey, result messages.AttemptResult) {
	a := w.partition.attempts[key]
	delete(w.machine.processes, key)
	a.MoveTo(lifecycle.Ended)
	a.end = encodeEnd(key, a.GrantedAt, result)
	w.machine.ends[key] = a.end
	w.tellAttempt(key)
}

// giveBack drops an order that has not begun.
func (w *coreWorker) giveBack(key messages.AttemptKey) {
	delete(w.partition.attempts, key)
	w.tell(w.sessionLink, w.partition.session, func(r *workerpb.PartitionReport) { r.AddRevoked(key, 1) })
	w.machine.c.counts["orders that came back"]++
}

// endOverdue does what the deadline asks for.
func (w *coreWorker) endOverdue() {
	revoke, kill := w.partition.overdue(w.machine.clock())
	for _, key := range revoke {
		w.giveBack(key)
	}
	for _, key := range kill {
		w.end(key, messages.AttemptLost)
	}
}

// sendHeartbeat sends one to all nodes. The time is taken before.
func (m *coreMachine) sendHeartbeat() {
	if !m.runs() {
		return
	}
	w := m.worker
	w.sentAt = append(w.sentAt, m.clock())
	number := uint64(len(w.sentAt))
	for _, l := range w.links {
		l.sendToNode(func() { l.node.takeHeartbeat(l, number) })
	}
}

// takeHeartbeat answers a heartbeat if the node leads, which it checks at once or later.
func (n *coreNode) takeHeartbeat(l *coreLink, number uint64) {
	e, c := n.engine, n.c
	if e == nil {
		return
	}
	e.table.Heartbeat(l.worker.name)
	if l.worker == l.worker.machine.worker && l.worker.machine.draining {
		e.table.Drain(l.worker.name, c.now)
	}
	renew := func() {
		if n.engine == e && n.leads() {
			e.table.Renew(l.worker.name, number, c.now)
		}
	}
	if c.chance(2) {
		renew()
	} else {
		l.sendToNode(renew)
	}
}

// tellAttempt tells the leader of the present session what became of an attempt.
func (w *coreWorker) tellAttempt(key messages.AttemptKey) {
	w.tell(w.sessionLink, w.partition.session, func(r *workerpb.PartitionReport) { w.addAttempt(r, key) })
}

func (w *coreWorker) addAttempt(r *workerpb.PartitionReport, key messages.AttemptKey) {
	switch a := w.partition.attempts[key]; a.State() {
	case lifecycle.Ended:
		r.AddFinished(a.end)
	case lifecycle.Running:
		r.AddStarted(key, a.StartedAt, 0, a.GrantedAt)
	default:
		r.AddQueued(key, a.GrantedAt)
	}
}

// tell sends a report in a session, if there is a connection.
func (w *coreWorker) tell(l *coreLink, s workerpb.Session, fill func(*workerpb.PartitionReport)) {
	if l == nil || s.Number == 0 {
		return
	}
	report := &workerpb.PartitionReport{Partition: s.Partition, Epoch: s.Epoch, Session: s.Number}
	fill(report)
	l.sendToNode(func() {
		if e := l.node.engine; e != nil {
			if err := e.table.Hear(w.name, l, report, w.machine.c.now); err != nil {
				w.machine.c.fail("report of %s: %v", w.name, err)
			}
			if report.Synced && e.slots != nil {
				e.concludeUnplaced()
			}
		}
	})
}

// ignore says in which session a frame was not accepted, and why.
func (w *coreWorker) ignore(l *coreLink, s workerpb.Session, key messages.AttemptKey, reason workerpb.IgnoreReason) {
	w.tell(l, s, func(r *workerpb.PartitionReport) { r.AddIgnored(key, reason, w.partition.session.Epoch) })
}

func (l *coreLink) sendToNode(take func()) {
	l.node.c.frames = append(l.node.c.frames, coreFrame{link: l, take: take})
}

func (l *coreLink) sendToWorker(take func()) {
	l.node.c.frames = append(l.node.c.frames, coreFrame{link: l, toWorker: true, take: take})
}

// isPresent reports whether orders of a session on a connection count.
func (w *coreWorker) isPresent(l *coreLink, s workerpb.Session) (reason workerpb.IgnoreReason, present bool) {
	if reason, present = w.partition.checkSession(s); present && w.sessionLink != l {
		return workerpb.IgnoreReason_IGNORE_REASON_STALE_SESSION, false
	}
	return reason, present
}

// AddLead implements fleet.Link.
func (l *coreLink) AddLead(s workerpb.Session) {
	w := l.worker
	l.sendToWorker(func() {
		reason, begun := w.partition.beginSession(s)
		if !begun {
			w.ignore(l, s, messages.AttemptKey{}, reason)
			return
		}
		w.sessionLink = l
		w.tell(l, s, func(r *workerpb.PartitionReport) {
			for _, key := range sortedKeys(w.partition.attempts) {
				w.addAttempt(r, key)
			}
			r.Synced = true
		})
	})
}

// AddRenewal implements fleet.Link.
func (l *coreLink) AddRenewal(_ uint32, epoch, heartbeat uint64) {
	w := l.worker
	l.sendToWorker(func() {
		until := w.sentAt[heartbeat-1] + coreLease
		if epoch == w.partition.session.Epoch && w.partition.extendLease(0, until, w.machine.clock()) {
			w.machine.deadline = until
			w.machine.c.counts["renewals"]++
		}
	})
}

// AddOrder implements fleet.Link.
func (l *coreLink) AddOrder(s workerpb.Session, o *executor.Order) {
	w, key, grantedAt := l.worker, o.Key, o.GrantedAt
	l.sendToWorker(func() {
		if reason, present := w.isPresent(l, s); !present {
			w.ignore(l, s, key, reason)
			return
		}
		switch w.partition.enterOrder(key, grantedAt, w.machine.clock(), w.started[key], w.machine.draining) {
		case orderKnown:
			w.tellAttempt(key)
		case orderKeyUsed:
			w.ignore(l, s, key, workerpb.IgnoreReason_IGNORE_REASON_KEY_USED)
		case orderGivenBack, orderLeaseOver:
			w.giveBack(key)
		}
	})
}

// AddKill implements fleet.Link.
func (l *coreLink) AddKill(s workerpb.Session, key messages.AttemptKey, _ time.Duration) {
	w := l.worker
	l.sendToWorker(func() {
		a := w.partition.attempts[key]
		if _, present := w.isPresent(l, s); !present || a == nil {
			return
		}
		switch a.State() {
		case lifecycle.Queued:
			w.giveBack(key)
		case lifecycle.Running:
			w.end(key, messages.AttemptKilled)
		}
	})
}

// AddRevocation implements fleet.Link.
func (l *coreLink) AddRevocation(s workerpb.Session, key messages.AttemptKey) {
	w := l.worker
	l.sendToWorker(func() {
		a := w.partition.attempts[key]
		if _, present := w.isPresent(l, s); present && a != nil && a.State() == lifecycle.Queued {
			w.giveBack(key)
		}
	})
}

// AddAcknowledgement implements fleet.Link. An end that a worker forgets has to be durable. The journal
// keeps some for longer.
func (l *coreLink) AddAcknowledgement(_ workerpb.Session, key messages.AttemptKey) {
	w := l.worker
	l.sendToWorker(func() {
		a, m := w.partition.attempts[key], w.machine
		if a == nil || a.State() != lifecycle.Ended {
			return
		}
		if !m.c.rows[key.Task].hasEnd(key.Attempt) {
			m.c.fail("the acknowledged end of %v is not durable", key)
		}
		delete(w.partition.attempts, key)
		if m.c.chance(2) {
			delete(m.begun, key)
			delete(m.ends, key)
		}
	})
}
