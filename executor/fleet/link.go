package fleet

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/messages"
)

// leaderLink is a connection of this node to the agent of one, here or elsewhere. All partitions that are led
// here share it. Fleet.mu guards outgoing.
type leaderLink struct {
	node     string
	conn     *grpc.ClientConn
	outgoing *workerpb.ServerFrame
	wake     chan struct{} // outgoing has items
	replaces bool          // of its hello
	isJoined bool          // the node is a joined worker (joined.go)
	cancel   func()        // ends the connection
	silence  silence
	shares   []sentShare // by partition: what the agent was told last
}

// sentShare is what an agent was told of a partition that is led here.
type sentShare struct {
	session workerpb.Session
	taken   workerpb.Taken
}

var _ Link = (*leaderLink)(nil)

// Pauses between connections to a node that does not answer.
const (
	firstPause = 10 * time.Millisecond
	lastPause  = time.Second
	// steadyTime is how long a connection lasts after which the pauses begin anew. A node may end each one after its
	// hello, or send what cannot be read.
	steadyTime = 5 * time.Second
)

// keepConnected connects to the agent of a node, again and again until ctx ends.
func (f *Fleet) keepConnected(ctx context.Context, node string) {
	pause := firstPause
	for ctx.Err() == nil {
		began := time.Now()
		said, err := f.serveLink(ctx, node, false, func(ctx context.Context) (net.Conn, error) { return f.dial(ctx, node) })
		if said && time.Since(began) >= steadyTime {
			pause = firstPause
		}
		if said && ctx.Err() == nil && pause == firstPause { // and not for each one in a row
			f.log.Info("the connection to a node's workers has ended", "node", node, "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, lastPause)
	}
}

// serveLink has one connection with the agent of a node, or of a joined worker. said reports whether it has said
// hello.
func (f *Fleet) serveLink(ctx context.Context, node string, isJoined bool, dial func(context.Context) (net.Conn, error)) (said bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := grpc.NewClient("passthrough:///"+node, append(workerpb.DialOptions(),
		grpc.WithTransportCredentials(insecure.NewCredentials()), // the cluster's connections are encrypted
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx) }))...)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	stream, err := workerpb.NewWorkerClient(conn).Attach(ctx)
	if err != nil {
		return false, err
	}
	l := &leaderLink{node: node, conn: conn, outgoing: workerpb.ServerFrameFromVTPool(), wake: make(chan struct{}, 1), shares: make([]sentShare, len(f.leads)),
		isJoined: isJoined, cancel: cancel}
	sender := make(chan struct{})
	go func() {
		defer close(sender)
		f.sendFrames(ctx, l, stream)
	}()
	said, err = f.receiveFrames(l, stream)
	cancel()
	<-sender
	f.mu.Lock()
	defer f.unlockAndDeliver()
	if f.links[node] == l {
		delete(f.links, node)
		for _, lead := range f.leads {
			if lead != nil {
				f.leaveLead(lead, l)
			}
		}
	}
	return said, err
}

// dial connects to the agent of a node.
func (f *Fleet) dial(ctx context.Context, node string) (net.Conn, error) {
	if node == f.agent.name() {
		return f.agent.local.dial(ctx)
	}
	f.mu.Lock()
	c := f.cluster
	f.mu.Unlock()
	return c.Dial(ctx, node)
}

// sendFrames sends what gathers in the link's outgoing, until ctx ends.
func (f *Fleet) sendFrames(ctx context.Context, l *leaderLink, stream grpc.BidiStreamingClient[workerpb.ServerFrame, workerpb.WorkerFrame]) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
		}
		f.mu.Lock()
		f.addShares(l)
		frame := l.outgoing
		l.outgoing = workerpb.ServerFrameFromVTPool()
		f.mu.Unlock()
		if !frame.IsEmpty() && stream.Send(frame) != nil {
			return // receiveFrames learns why
		}
		frame.ReturnToVTPool()
	}
}

// addShares adds what the attempts of partitions that are led here take of the link's node, where that has changed.
// mu is held.
func (f *Fleet) addShares(l *leaderLink) {
	for p, lead := range f.leads {
		if lead == nil || f.links[l.node] != l {
			continue
		}
		now := sentShare{lead.table.SessionOf(l.node), lead.table.TakenAt(l.node)}
		if now.session.Number != 0 && now != l.shares[p] {
			l.shares[p] = now
			l.outgoing.AddShare(uint32(p), now.taken)
		}
	}
}

// receiveFrames takes frames in until the stream ends. said reports whether the agent has said hello.
func (f *Fleet) receiveFrames(l *leaderLink, stream grpc.BidiStreamingClient[workerpb.ServerFrame, workerpb.WorkerFrame]) (said bool, err error) {
	frame := workerpb.WorkerFrameFromVTPool()
	defer frame.ReturnToVTPool()
	for {
		frame.ResetVT()
		if err := stream.RecvMsg(frame); err != nil {
			return said, err
		}
		said = said || frame.Hello != nil
		if err := f.handleFrame(l, frame); err != nil {
			f.complain("invalid frame of a node's workers", l.node, err)
			return said, err
		}
	}
}

// complaintInterval is between two complaints about a node.
const complaintInterval = time.Minute

// complain logs what is wrong with the frames of a node. Each connection may begin with the same.
func (f *Fleet) complain(text, node string, err error) {
	f.mu.Lock()
	now := time.Now()
	isDue := f.complained[node].IsZero() || now.Sub(f.complained[node]) >= complaintInterval
	if isDue {
		f.complained[node] = now
	}
	f.mu.Unlock()
	if isDue {
		f.log.Error(text, "node", node, "err", err)
	}
}

// handleFrame takes a frame of a node's agent in, in the order that the protocol says.
func (f *Fleet) handleFrame(l *leaderLink, frame *workerpb.WorkerFrame) error {
	at := time.Now().UnixNano()
	f.mu.Lock()
	defer f.unlockAndDeliver()
	f.heard[l.node] = time.Now()
	if h := frame.Hello; h != nil {
		if string(h.Name) != l.node {
			return fmt.Errorf("node %q answers for %q", h.Name, l.node)
		}
		l.replaces = h.Replaces
		f.links[l.node] = l
		for _, lead := range f.leads {
			if lead != nil {
				f.connectLead(lead, l)
			}
		}
	}
	for _, report := range frame.Partitions {
		if int(report.Partition) >= len(f.leads) {
			return fmt.Errorf("report of partition %d", report.Partition)
		}
		lead := f.leads[report.Partition]
		if lead == nil {
			continue
		}
		if err := lead.table.Hear(l.node, l, report, at); err != nil {
			return err
		}
		if report.Synced {
			f.concludeUnplaced(lead, at)
		}
	}
	if frame.Node != nil {
		f.slots.SetNode(l.node, frame.Node.Status(len(f.leads)))
		for _, lead := range f.leads {
			if lead != nil {
				lead.table.PlaceWaiting(at)
			}
		}
	}
	if frame.Heartbeat != 0 {
		for _, lead := range f.leads {
			if lead != nil {
				lead.table.Heartbeat(l.node)
				lead.heartbeats[l.node] = frame.Heartbeat
				wakeUp(lead.wake)
			}
		}
	}
	return nil
}

// renewLeases answers the heartbeats of all nodes, until the partition is handed over. It makes sure that this
// node leads after it has taken the heartbeats.
func (f *Fleet) renewLeases(l *lead) {
	for {
		select {
		case <-l.wake:
		case <-l.ended:
			return
		}
		f.mu.Lock()
		heartbeats, c := l.heartbeats, f.cluster
		l.heartbeats = map[string]uint64{}
		f.mu.Unlock()
		if !c.Leads(int(l.partition.Partition), l.epoch) {
			continue
		}
		at := time.Now().UnixNano()
		f.mu.Lock()
		if f.leads[l.partition.Partition] == l {
			for _, node := range slices.Sorted(maps.Keys(heartbeats)) {
				l.table.Renew(node, heartbeats[node], at)
			}
		}
		f.unlockAndDeliver()
	}
}

// wakeUp wakes the receiver of a channel with room for one; one wake-up is enough.
func wakeUp(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// AddLead implements Link.
func (l *leaderLink) AddLead(s workerpb.Session) {
	l.outgoing.AddLead(s)
	wakeUp(l.wake)
}

// AddRenewal implements Link.
func (l *leaderLink) AddRenewal(partition uint32, epoch, heartbeat uint64) {
	l.outgoing.AddRenewal(partition, epoch, heartbeat)
	wakeUp(l.wake)
}

// AddOrder implements Link.
func (l *leaderLink) AddOrder(s workerpb.Session, o *executor.Order) {
	l.outgoing.OrdersIn(s).AddOrder(o)
	wakeUp(l.wake)
}

// AddKill implements Link.
func (l *leaderLink) AddKill(s workerpb.Session, key messages.AttemptKey, grace time.Duration) {
	l.outgoing.OrdersIn(s).AddKill(key, grace)
	wakeUp(l.wake)
}

// AddRevocation implements Link.
func (l *leaderLink) AddRevocation(s workerpb.Session, key messages.AttemptKey) {
	l.outgoing.OrdersIn(s).AddRevocation(key)
	wakeUp(l.wake)
}

// AddAcknowledgement implements Link.
func (l *leaderLink) AddAcknowledgement(s workerpb.Session, key messages.AttemptKey) {
	l.outgoing.OrdersIn(s).AddAcknowledgement(key)
	wakeUp(l.wake)
}
