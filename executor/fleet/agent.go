package fleet

import (
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/lease"
	"github.com/caravan-dag/caravan/executor/lifecycle"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/messages"
)

// Known is what is known of an attempt that was not acknowledged.
type Known struct {
	Key       messages.AttemptKey
	State     lifecycle.State
	StartedAt int64 // once it has begun
	GrantedAt int64
	End       *executor.Report // of an attempt that has ended; it must not be changed
}

// Workers are the workers of this machine (package remote).
type Workers interface {
	executor.Durable
	executor.HealthReporter
	// Attempts returns what they know of a partition; ok is false while some have not spoken.
	Attempts(partition messages.Numbering) (known []Known, ok bool)
	// ExtendLease tells them until when attempts of a partition may run, in nanoseconds since boot.
	ExtendLease(partition uint32, until int64)
}

// agent lets leaders, here and on other nodes, use the workers of this machine: to them it is one worker, with
// the ID of its node. It keeps a session and a lease for each partition, and no table of attempts: the
// workers have it, and outlive the agent.
//
// An agent has no memory of epochs from before its start. It accepts orders only under a lease that it got itself:
// a former leader could not renew it any more when the agent had heard of a later one.
//
// Lock order: frameMu, then mu. The workers are called without mu, since they call takeReports.
type agent struct {
	workerpb.UnimplementedWorkerServer

	workers Workers
	length  time.Duration
	log     *slog.Logger
	local   *localListener

	// frameMu is held while a leader's frame is carried out, and while a report of a session is made: so a
	// report has all orders of the sessions before.
	frameMu sync.Mutex

	stateChanged chan struct{} // state has: the links are to hear of it

	mu         sync.Mutex
	node       string // its ID; "" until setNode
	links      map[*agentLink]bool
	state      workerpb.NodeStatus // of the node, as its leaders see it
	stopping   bool                // the node takes no more orders
	unhealthy  bool                // its workers cannot start attempts: it takes no orders in the meantime
	replaces   bool                // the node took the place of a former one
	partitions []agentPartition
	heartbeat  uint64                      // number of the last one
	sentAt     [rememberedHeartbeats]int64 // when they were sent, by their number
	ledSince   int64                       // when the first session began; 0 before it
}

// rememberedHeartbeats is how many heartbeats a renewal may be late. A lease has at most as many, unless it
// is longer than a quarter of an hour; then a renewal that is so late is ignored.
const rememberedHeartbeats = 1024

// agentPartition is the session and the lease of a partition.
type agentPartition struct {
	session   workerpb.Session  // the newest one, with the highest epoch
	link      *agentLink        // of the session; nil: it has ended with its link
	reportDue bool              // the first report of the session was not made yet
	listing   bool              // the workers are asked for it
	missed    []executor.Report // came while listing: the list may not have them
	lease     lease.Lease
}

// agentLink is the link of a leader's node. agent.mu guards outgoing.
type agentLink struct {
	outgoing *workerpb.WorkerFrame
	wake     chan struct{} // outgoing has items
	replaces bool          // its hello says so
}

func newAgent(c *Config) *agent {
	return &agent{length: c.Lease, log: c.Logger, local: newLocalListener(),
		partitions: make([]agentPartition, c.Partitions), stateChanged: make(chan struct{}, 1), links: map[*agentLink]bool{},
		state: workerpb.NodeStatus{Capacity: c.Capacity, Taken: make([]workerpb.Taken, c.Partitions)}}
}

// setNode says which node this is.
func (a *agent) setNode(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.node = id
}

// setReplaces says whether this node took the place of a former one.
func (a *agent) setReplaces(replaces bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.replaces = replaces
}

// name returns the ID of the node; "" until setNode.
func (a *agent) name() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.node
}

// announceDelay is how long a change of what leaders take waits for others, before all links hear of it.
const announceDelay = 50 * time.Millisecond

// announceState tells all links the state of the node. mu is held.
func (a *agent) announceState() {
	for l := range a.links {
		l.outgoing.SetNode(a.state)
		l.requestSend()
	}
}

// takeShare takes in what the leader of a partition says that its attempts take of this node. mu is held.
func (a *agent) takeShare(l *agentLink, m *workerpb.Share) {
	if p := &a.partitions[m.Partition]; p.link == l && a.state.Taken[m.Partition] != m.Taken() {
		a.state.Taken[m.Partition] = m.Taken()
		wakeUp(a.stateChanged)
	}
}

// run sends heartbeats and the state of the node, and watches the leases and the health of the workers, until the channel
// is closed.
func (a *agent) run(ended <-chan struct{}) {
	beats, checks := time.NewTicker(lease.HeartbeatInterval(a.length)), time.NewTicker(lease.CheckInterval(a.length))
	health, announce := time.NewTicker(healthInterval), time.NewTimer(time.Hour)
	defer health.Stop()
	defer beats.Stop()
	defer checks.Stop()
	defer announce.Stop()
	a.beat(lease.Now())
	for isDue := false; ; {
		select {
		case <-beats.C:
			a.beat(lease.Now())
		case <-checks.C:
			a.check(lease.Now())
		case <-health.C:
			a.checkHealth()
		case <-a.stateChanged:
			if !isDue {
				isDue = true
				announce.Reset(announceDelay)
			}
		case <-announce.C:
			isDue = false
			a.mu.Lock()
			a.announceState()
			a.mu.Unlock()
		case <-ended:
			return
		}
	}
}

// beat sends a heartbeat to each node that leads here. The time is taken before.
func (a *agent) beat(now int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.heartbeat++
	a.sentAt[a.heartbeat%rememberedHeartbeats] = now
	for i := range a.partitions {
		if l := a.partitions[i].link; l != nil && l.outgoing.Heartbeat != a.heartbeat {
			l.outgoing.Heartbeat = a.heartbeat
			l.requestSend()
		}
	}
}

// check makes reports that are due, and ends attempts whose lease is over. The workers do the latter as well:
// this is for orders that wait for a worker. It says hello again where that has said that a former node may still
// have processes, and the time of that is over: leaders need not wait for it any more.
func (a *agent) check(now int64) {
	a.mu.Lock()
	for l := range a.links {
		if l.replaces && !a.mayHaveFormer(now) {
			a.sayHello(l)
		}
	}
	a.mu.Unlock()
	a.frameMu.Lock()
	defer a.frameMu.Unlock()
	for p := range a.partitions {
		a.reportSession(p)
		if !a.isOver(p, now) {
			continue
		}
		a.revokeQueued(p)
	}
}

// isOver reports whether the lease of a partition is over, with attempts left. frameMu is held.
func (a *agent) isOver(p int, now int64) bool {
	unended := a.unended(p)
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.partitions[p].lease.IsOver(now, unended)
}

// unended returns what tells whether an attempt of a partition waits, begins or runs. It must not ask the
// workers under mu, so it asks first if the lease may be over.
func (a *agent) unended(p int) func() bool {
	a.mu.Lock()
	past := a.partitions[p].lease.IsPast(lease.Now())
	a.mu.Unlock()
	if !past {
		return func() bool { return true } // not asked
	}
	known, ok := a.workers.Attempts(a.numbering(p))
	left := !ok
	for _, k := range known {
		left = left || k.State != lifecycle.Ended
	}
	return func() bool { return left }
}

func (a *agent) numbering(partition int) messages.Numbering {
	return messages.Numbering{Partitions: uint64(len(a.partitions)), Partition: uint64(partition)}
}

// isLed reports whether a leader of a run's partition is connected.
func (a *agent) isLed(run messages.RunID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.partitions[uint64(run)%uint64(len(a.partitions))].link != nil
}

// requestSend wakes the sender. agent.mu is held.
func (l *agentLink) requestSend() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Attach implements workerpb.WorkerServer. It serves the node of a leader, or of several partitions' leaders,
// until it goes. It says hello, and each leader begins a session then.
func (a *agent) Attach(stream grpc.BidiStreamingServer[workerpb.ServerFrame, workerpb.WorkerFrame]) error {
	l := &agentLink{outgoing: workerpb.WorkerFrameFromVTPool(), wake: make(chan struct{}, 1)}
	a.mu.Lock()
	a.sayHello(l)
	l.outgoing.SetNode(a.state)
	a.links[l] = true
	a.mu.Unlock()
	defer a.endLink(l)

	received := make(chan error, 1)
	go func() { received <- a.receiveFrames(l, stream) }()
	for {
		select {
		case <-l.wake:
		case err := <-received:
			return err
		}
		a.mu.Lock()
		frame := l.outgoing
		l.outgoing = workerpb.WorkerFrameFromVTPool()
		a.mu.Unlock()
		if frame.IsEmpty() {
			frame.ReturnToVTPool()
			continue
		}
		for _, part := range frame.Split(workerpb.MaxFrame / 4) {
			if err := stream.Send(part); err != nil {
				return err
			}
			part.ReturnToVTPool()
		}
	}
}

// sayHello adds the hello to the next frame. A hello after the first one begins the sessions of the link again. mu is held.
func (a *agent) sayHello(l *agentLink) {
	l.replaces = a.mayHaveFormer(lease.Now())
	l.outgoing.Hello = &workerpb.Hello{Name: []byte(a.node), Pid: int64(os.Getpid()), Replaces: l.replaces}
	l.requestSend()
}

// mayHaveFormer reports whether the former node of this one's name may still have processes. Their leases
// ended within a lease of the moment at which leaders let this node take part, when it was led first.
// mu is held.
func (a *agent) mayHaveFormer(now int64) bool {
	return a.replaces && (a.ledSince == 0 || now-a.ledSince < int64(lease.Silence(a.length)))
}

// endLink ends the sessions of a link. Their leases go on.
func (a *agent) endLink(l *agentLink) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.links, l)
	for i := range a.partitions {
		if p := &a.partitions[i]; p.link == l {
			p.link, p.session.Number = nil, 0
		}
	}
}

func (a *agent) receiveFrames(l *agentLink, stream grpc.BidiStreamingServer[workerpb.ServerFrame, workerpb.WorkerFrame]) error {
	frame := workerpb.ServerFrameFromVTPool()
	defer frame.ReturnToVTPool()
	for {
		frame.ResetVT()
		if err := stream.RecvMsg(frame); err != nil {
			return err
		}
		if err := a.handleFrame(l, frame); err != nil {
			a.log.Error("frame of a leader refused", "err", err)
			return err
		}
	}
}

// handleFrame carries out a frame, in the order that the protocol says. An error ends the link.
func (a *agent) handleFrame(l *agentLink, frame *workerpb.ServerFrame) error {
	a.frameMu.Lock()
	defer a.frameMu.Unlock()
	for _, m := range frame.Leads {
		if int(m.Partition) >= len(a.partitions) || m.Session == 0 {
			return fmt.Errorf("invalid lead: partition %d, session %d", m.Partition, m.Session)
		}
		a.beginSession(l, workerpb.SessionOf(m))
	}
	for _, m := range frame.Renewals {
		if int(m.Partition) >= len(a.partitions) {
			return fmt.Errorf("renewal of partition %d", m.Partition)
		}
		a.renew(l, m)
	}
	for _, m := range frame.Partitions {
		if int(m.Partition) >= len(a.partitions) {
			return fmt.Errorf("orders of partition %d", m.Partition)
		}
		for _, o := range m.Orders {
			if o.Attempt == 0 { // a worker would end its connection, and get the order again on the next one
				return fmt.Errorf("run %d: task %d: an order without the number of its attempt", o.Run, o.Task)
			}
		}
		a.handleOrders(l, m)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, m := range frame.Shares {
		if int(m.Partition) >= len(a.partitions) {
			return fmt.Errorf("share of partition %d", m.Partition)
		}
		a.takeShare(l, m)
	}
	return nil
}

// beginSession accepts a Lead of the highest epoch, and of the newest session in it. It ignores those on a
// link that has ended, whose last frame may be carried out after that. frameMu is held.
func (a *agent) beginSession(l *agentLink, s workerpb.Session) {
	a.mu.Lock()
	if !a.links[l] {
		a.mu.Unlock()
		return
	}
	p := &a.partitions[s.Partition]
	reason, stale := workerpb.IgnoreReason(0), false
	switch {
	case s.Epoch < p.session.Epoch:
		reason, stale = workerpb.IgnoreReason_IGNORE_REASON_STALE_EPOCH, true
	case s.Epoch == p.session.Epoch && s.Number <= p.session.Number:
		reason, stale = workerpb.IgnoreReason_IGNORE_REASON_STALE_SESSION, true
	}
	if stale {
		l.outgoing.ReportIn(s).AddIgnored(messages.AttemptKey{}, reason, p.session.Epoch)
		l.requestSend()
	} else {
		p.session, p.link, p.reportDue = s, l, true
		if a.ledSince == 0 {
			a.ledSince = lease.Now()
		}
	}
	a.mu.Unlock()
	if !stale {
		a.reportSession(int(s.Partition))
	}
}

// reportSession makes the first report of a session, with all that the workers know, if it is due and all of
// them have spoken. A report of theirs that comes while they are asked follows the list, which may be older.
// frameMu is held.
func (a *agent) reportSession(partition int) {
	p := &a.partitions[partition]
	a.mu.Lock()
	p.listing = p.reportDue
	due := p.listing
	a.mu.Unlock()
	if !due {
		return
	}
	isOver := a.isOver(partition, lease.Now())
	known, ok := a.workers.Attempts(a.numbering(partition))
	a.mu.Lock()
	defer a.mu.Unlock()
	missed := p.missed
	p.listing, p.missed = false, nil
	if !ok {
		return // the next list has them
	}
	p.reportDue = false
	if p.link == nil {
		return
	}
	report := p.link.outgoing.ReportIn(p.session)
	for i := range known {
		switch k := &known[i]; k.State {
		case lifecycle.Ended:
			report.AddFinished(workerpb.AppendFinished(nil, k.End))
		case lifecycle.Running:
			report.AddStarted(k.Key, k.StartedAt, 0, k.GrantedAt)
		default:
			report.AddQueued(k.Key, k.GrantedAt)
		}
	}
	for i := range missed {
		r := &missed[i]
		addReport(report, r, encodeEnd(r))
	}
	report.Synced = true
	if !isOver {
		// Orders need not wait for the next heartbeat. Under a lease that is over they would come back at once, and
		// begin the next session without a pause.
		p.link.outgoing.Heartbeat = a.heartbeat
	}
	p.link.requestSend()
}

// renew extends the lease of a partition, from the moment at which the heartbeat was sent. frameMu is held.
func (a *agent) renew(l *agentLink, m *workerpb.Renewal) {
	now := lease.Now()
	unended := a.unended(int(m.Partition))
	a.mu.Lock()
	p := &a.partitions[m.Partition]
	until, extended := int64(0), false
	isKnown := m.Heartbeat <= a.heartbeat && m.Heartbeat > 0 && m.Heartbeat+rememberedHeartbeats > a.heartbeat
	if isKnown && p.link == l && m.Epoch == p.session.Epoch {
		until = a.sentAt[m.Heartbeat%rememberedHeartbeats] + int64(a.length)
		extended = p.lease.Extend(until, now, unended)
	}
	a.mu.Unlock()
	if extended {
		a.workers.ExtendLease(m.Partition, until)
	}
}

// handleOrders carries out what a leader says in a session. Orders of another session than the present one are
// refused. An acknowledgement counts in any session: the end is durable. frameMu is held.
func (a *agent) handleOrders(l *agentLink, m *workerpb.PartitionOrders) {
	if len(m.Acknowledgements) > 0 {
		keys := make([]messages.AttemptKey, len(m.Acknowledgements))
		for i, k := range m.Acknowledgements {
			keys[i] = workerpb.KeyOf(k)
		}
		a.workers.Acknowledge(keys...)
	}
	s := workerpb.SessionOf(m)
	a.mu.Lock()
	p := &a.partitions[m.Partition]
	isPresent := p.link == l && p.session == s
	permits := p.lease.Permits(lease.Now()) && !a.state.Draining
	if !isPresent || !permits {
		for _, o := range m.Orders {
			if report := l.outgoing.ReportIn(s); isPresent {
				report.AddRevoked(workerpb.KeyOf(o), time.Now().UnixNano())
			} else {
				report.AddIgnored(workerpb.KeyOf(o), workerpb.IgnoreReason_IGNORE_REASON_STALE_SESSION, p.session.Epoch)
			}
		}
		l.requestSend()
	}
	a.mu.Unlock()
	if !isPresent {
		return
	}
	if permits {
		for _, o := range m.Orders {
			a.workers.Start(o.ToOrder())
		}
	}
	for _, k := range m.Kills {
		a.workers.Kill(workerpb.KeyOf(k), time.Duration(k.Grace))
	}
	for _, k := range m.Revocations {
		a.workers.Revoke(workerpb.KeyOf(k))
	}
}

// takeReports is the sink of the workers. It drops a report of a partition without a leader, or whose first
// report was not made yet: the next first report says the same.
func (a *agent) takeReports(reports ...executor.Report) {
	ends := make([][]byte, len(reports))
	for i := range reports {
		ends[i] = encodeEnd(&reports[i])
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range reports {
		r := &reports[i]
		p := &a.partitions[uint64(r.Key.Run)%uint64(len(a.partitions))]
		switch {
		case p.link == nil:
		case p.listing:
			p.missed = append(p.missed, *r)
		case !p.reportDue:
			addReport(p.link.outgoing.ReportIn(p.session), r, ends[i])
			p.link.requestSend()
		}
	}
}

// encodeEnd encodes the report of an end; the result is nil for other reports.
func encodeEnd(r *executor.Report) []byte {
	if r.Kind != executor.Finished {
		return nil
	}
	return workerpb.AppendFinished(nil, r)
}

// addReport adds a report of the workers. end is what encodeEnd made of it.
func addReport(report *workerpb.PartitionReport, r *executor.Report, end []byte) {
	switch r.Kind {
	case executor.Started:
		report.AddStarted(r.Key, r.At, r.StartDelay, r.GrantedAt)
	case executor.Finished:
		report.AddFinished(end)
	case executor.Revoked:
		report.AddRevoked(r.Key, r.At)
	}
}

// Log implements workerpb.WorkerServer.
func (a *agent) Log(stream workerpb.LogServer) error {
	return workerpb.ServeLog(stream, a.workers.OpenLog)
}
