package cluster

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/internal/clustertls"
	"github.com/caravan-dag/caravan/messages"
)

// The nodes of a cluster tell each other what they lead. Each node sends lines of JSON
// to each other one, over one connection for each direction:
//
//	{"node":"n1-…","members":["n1-…","n2-…","n4-…"],
//	 "partitions":[{"partition":0,"next":17,"queued":3,"term":5,"members":[0,1,2]}]}    in one line
//
// A line leaves within announcePause of a change, and without a change after longestAnnouncePause. What the
// others do with it:
//
//	next   the number of the partition's next run. A partition with a lower one goes on from there. So the
//	       IDs of all partitions ascend with the time of submission, except within some announcePauses
//	queued the tasks that wait for a slot. Submissions without a key go to short queues (Member.QueuedTasks)
//	term   is that of the leadership. Nodes without a replica of the partition take the one with the highest term
//	       for the leader, until its lines stop or do not have the partition any more (Member.Leader)
//	members are those of the group, for nodes without a replica: positions in the members of the line
//	node   is steady while its lines come, and may be given partitions (balance.go); with "stopping":true, as
//	       it stops or was drained (transfer.go), not
//	table  is the version of its table of the nodes. A node with a lower one fetches it (table_keeper.go)
//
// Announcements are hints: one that is lost or late, or comes from a leader of a former term, does no harm.
// So they are not part of a log.

// announcementProtocol carries the announcements.
const announcementProtocol = "caravan-announce/1"

const (
	// announcePause is the shortest time between two announcements of a node.
	announcePause = 100 * time.Millisecond
	// longestAnnouncePause is the longest one. A connection without a line for announcementLimit is closed.
	longestAnnouncePause = time.Second
	announcementLimit    = 5 * time.Second
	// silentAfter is how long a node that is heard may be between two lines.
	silentAfter = 2 * longestAnnouncePause
	// maxAnnouncement bounds a line: it has room for messages.MaxPartitions.
	maxAnnouncement = 1 << 20
)

// announcement is what a node tells the others.
type announcement struct {
	Node       raftlog.NodeID          `json:"node"`
	IsStopping bool                    `json:"stopping,omitempty"`
	Table      uint64                  `json:"table,omitempty"` // the version of the table of the nodes that the node has
	Partitions []partitionAnnouncement `json:"partitions"`      // those that the node leads, in ascending order
	// Members are those of the groups of all Partitions: with IDs in each of them, a line would be ten times as long.
	Members []raftlog.NodeID `json:"members,omitempty"`
}

// addMembers adds the members of a group, and returns their positions.
func (a *announcement) addMembers(ids []raftlog.NodeID) (positions []int) {
	for _, id := range ids {
		at := slices.Index(a.Members, id)
		if at < 0 {
			at = len(a.Members)
			a.Members = append(a.Members, id)
		}
		positions = append(positions, at)
	}
	return positions
}

// membersAt returns the members of given positions; nil if the line lacks one of them.
func (a *announcement) membersAt(positions []int) (ids []raftlog.NodeID) {
	for _, at := range positions {
		if at < 0 || at >= len(a.Members) {
			return nil
		}
		ids = append(ids, a.Members[at])
	}
	return ids
}

// announcedQueue is how many tasks of a partition wait for a slot, and the node that has said so.
type announcedQueue struct {
	by     raftlog.NodeID
	queued int
}

// heardNode is when lines of another node have come: on its present connection since, and at last.
type heardNode struct{ since, last time.Time }

// partitionAnnouncement is what the leader of a partition says about it.
type partitionAnnouncement struct {
	Partition int    `json:"partition"`
	Next      uint64 `json:"next"`             // the number of the next run
	Queued    int    `json:"queued,omitempty"` // tasks that wait for a slot
	// Term is that of the leadership; 0 from a program that does not say it. Members are those of the group, by their
	// positions in announcement.Members.
	Term    uint64 `json:"term,omitempty"`
	Members []int  `json:"members,omitempty"`
}

// announcedLead is the leadership of a partition without a replica here, as its leader has announced it.
type announcedLead struct {
	node    raftlog.NodeID
	term    uint64
	members []raftlog.NodeID // never changed
	heard   time.Time        // when the leader said it last
}

// isSilent reports whether the leader has not been heard for so long that it may have lost the partition.
func (l *announcedLead) isSilent() bool { return time.Since(l.heard) > silentAfter }

// announcer sends the announcements of a node, and takes those of the others.
type announcer struct {
	member   *Member
	listener net.Listener
	ctx      context.Context // ends with close
	stop     context.CancelFunc
	wait     sync.WaitGroup
	// isStopping says that this node gives its leaderships away (HandOver).
	isStopping atomic.Bool
	// drainedUntil is until when others keep their leaderships from this node (transfer.go). Nil: it gets them.
	drainedUntil atomic.Pointer[time.Time]

	mu      sync.Mutex // a leaf, of what follows
	heard   map[raftlog.NodeID]heardNode
	queues  map[int]announcedQueue // by partition: the last announcement
	leads   map[int]announcedLead  // by partition: those without a replica here
	highest uint64                 // the highest next number of all partitions that was ever heard
	line    []byte                 // what this node announces; nil at first; never changed in place
	changed chan struct{}          // closed when line is replaced
}

// newAnnouncer makes an announcer. Hosts ask it for leaders, so it exists before they run.
func newAnnouncer(m *Member) *announcer {
	a := &announcer{member: m, changed: make(chan struct{}), heard: map[raftlog.NodeID]heardNode{}, queues: map[int]announcedQueue{}, leads: map[int]announcedLead{}}
	a.ctx, a.stop = context.WithCancel(context.Background())
	return a
}

// start begins to announce and to listen.
func (a *announcer) start() (err error) {
	m := a.member
	if a.listener, err = m.port.openListener(announcementProtocol); err != nil {
		return err
	}
	a.wait.Go(a.keepComposing)
	a.wait.Go(a.acceptAll)
	return nil
}

// close ends all goroutines and connections.
func (a *announcer) close() {
	a.stop()
	if a.listener != nil {
		a.listener.Close()
	}
	a.wait.Wait()
}

// keepComposing keeps the announcement and the engines of this node up to date. An engine that begins is
// raised at once, before it numbers many runs. A node that joins later hears this one, too.
func (a *announcer) keepComposing() {
	names := a.member.nodeNames()
	a.sendToAll(names)
	var table *nodeTable // the one whose nodes are among names
	ticker := time.NewTicker(announcePause)
	defer ticker.Stop()
	for {
		engines := a.member.Changed()
		a.compose()
		a.forgetSilentLeads()
		if now := a.member.table(); now != table {
			table = now
			for _, n := range table.Nodes {
				if name := nameOfID(n.ID); !slices.Contains(names, name) {
					names = append(names, name)
					a.sendToAll([]string{name})
				}
			}
		}
		select {
		case <-ticker.C:
		case <-engines:
		case <-a.ctx.Done():
			return
		}
	}
}

// compose raises the numbers of this node's engines to the highest ones of all partitions, and replaces
// the announcement if it differs.
func (a *announcer) compose() {
	m := a.member
	now := announcement{Node: m.Self(), IsStopping: a.isStopping.Load() || a.isDrained(), Table: m.tables.version(), Partitions: []partitionAnnouncement{}}
	var leads []*leadership
	for h := range m.ownHosts() {
		if l := h.published.Load(); l != nil {
			leads = append(leads, l)
			a.noteNumber(l.engine.NextNumber())
		}
	}
	highest := a.highestNumber()
	for _, l := range leads {
		p := l.host.partition
		l.engine.RaiseNextNumber(highest)
		now.Partitions = append(now.Partitions, partitionAnnouncement{Partition: p, Next: l.engine.NextNumber(), Queued: l.engine.Load().Queued,
			Term: l.epoch, Members: now.addMembers(m.groupMembers(p))})
	}
	line, err := json.Marshal(&now)
	if err != nil {
		panic(err) // an announcement has nothing that JSON lacks
	}
	line = append(line, '\n')
	a.mu.Lock()
	defer a.mu.Unlock()
	if !bytes.Equal(line, a.line) {
		a.line = line
		close(a.changed)
		a.changed = make(chan struct{})
	}
}

// noteNumber takes the number of some partition's next run. A node that is out of its mind must not raise the
// numbers of all for ever, so one that no partition can have reached is ignored.
func (a *announcer) noteNumber(next uint64) {
	if next > messages.MaxNumber/2 {
		return
	}
	a.mu.Lock()
	a.highest = max(a.highest, next)
	a.mu.Unlock()
}

// drain makes this node announce for some time that it is stopping. The time 0 ends that.
func (a *announcer) drain(d time.Duration) {
	until := time.Now().Add(d)
	a.drainedUntil.Store(&until)
}

func (a *announcer) isDrained() bool {
	until := a.drainedUntil.Load()
	return until != nil && time.Now().Before(*until)
}

func (a *announcer) highestNumber() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.highest
}

// current returns the announcement, and a channel that is closed when it changes.
func (a *announcer) current() (line []byte, changed <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.line, a.changed
}

// sendToAll begins to send announcements to the nodes of some names, but for this one.
func (a *announcer) sendToAll(names []string) {
	for _, name := range names {
		if name != a.member.config.Name {
			a.wait.Go(func() { a.sendTo(name) })
		}
	}
}

// sendTo sends announcements to the node of a name, until close. A node that is down is dialled again and
// again.
func (a *announcer) sendTo(name string) {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-pause.C:
		case <-a.ctx.Done():
			return
		}
		if err := a.sendLines(name); err != nil && a.ctx.Err() == nil {
			a.member.config.Logger.Debug("announcements to a node end", "to", name, "err", err)
		}
		pause.Reset(longestAnnouncePause)
	}
}

// sendLines sends announcements over one connection until it breaks.
func (a *announcer) sendLines(name string) error {
	id := a.member.idOf(name)
	if id == "" {
		return fmt.Errorf("node %s is not a member at present", name)
	}
	conn, err := a.member.Dial(a.ctx, id, announcementProtocol)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(a.ctx, func() { conn.Close() })()
	timer := time.NewTimer(longestAnnouncePause)
	defer timer.Stop()
	for {
		line, changed := a.current()
		if err := conn.SetWriteDeadline(time.Now().Add(announcementLimit)); err != nil {
			return err
		}
		if _, err := conn.Write(line); err != nil {
			return err
		}
		timer.Reset(longestAnnouncePause)
		select {
		case <-changed:
		case <-timer.C:
		case <-a.ctx.Done():
			return nil
		}
	}
}

// acceptAll takes the announcements of the other nodes, each connection on a goroutine of its own.
func (a *announcer) acceptAll() {
	for {
		conn, err := a.listener.Accept()
		if err != nil {
			return
		}
		a.wait.Go(func() {
			if err := a.receiveLines(conn); err != nil && a.ctx.Err() == nil {
				a.member.config.Logger.Debug("announcements of a node end", "remote", conn.RemoteAddr().String(), "err", err)
			}
		})
	}
}

// receiveLines takes the announcements of one connection until it ends.
func (a *announcer) receiveLines(conn net.Conn) error {
	defer conn.Close()
	defer context.AfterFunc(a.ctx, func() { conn.Close() })()
	sender := "" // by its certificate; "" = the connection is in memory
	if secure, ok := conn.(*tls.Conn); ok {
		peer, err := clustertls.PeerOf(secure.ConnectionState())
		if err != nil {
			return err
		}
		sender = peer.Name
	}
	since := time.Now()
	lines := bufio.NewScanner(conn)
	lines.Buffer(nil, maxAnnouncement)
	for {
		if err := conn.SetReadDeadline(time.Now().Add(announcementLimit)); err != nil {
			return err
		}
		if !lines.Scan() {
			return lines.Err()
		}
		var told announcement
		if err := json.Unmarshal(lines.Bytes(), &told); err != nil {
			return err
		}
		if name := nameOfID(told.Node); sender != "" && name != sender {
			return fmt.Errorf("node %s announces what %s leads", sender, name)
		}
		a.noteAnnouncement(&told, since)
	}
}

// noteAnnouncement notes what another node has announced, on a connection since some time.
func (a *announcer) noteAnnouncement(told *announcement, since time.Time) {
	a.mu.Lock()
	if told.IsStopping {
		delete(a.heard, told.Node)
	} else {
		a.heard[told.Node] = heardNode{since, time.Now()}
	}
	for _, p := range told.Partitions {
		if p.Partition >= 0 && p.Partition < a.member.Partitions() {
			a.queues[p.Partition] = announcedQueue{told.Node, p.Queued}
		}
	}
	isChanged := a.noteLeads(told)
	a.mu.Unlock()
	if isChanged {
		a.member.announceChange()
	}
	a.member.tables.noteVersion(told.Node, told.Table)
	for _, p := range told.Partitions {
		a.noteNumber(p.Next)
	}
}

// noteLeads notes which partitions without a replica here a node leads, and which ones it leads no longer. It reports
// whether a leader has changed. The caller holds mu.
func (a *announcer) noteLeads(told *announcement) (isChanged bool) {
	for p, lead := range a.leads {
		if lead.node == told.Node && !slices.ContainsFunc(told.Partitions, func(t partitionAnnouncement) bool { return t.Partition == p }) {
			delete(a.leads, p)
			isChanged = true
		}
	}
	for _, t := range told.Partitions {
		if t.Partition < 0 || t.Partition >= a.member.Partitions() || t.Term == 0 || a.member.host(t.Partition) != nil {
			continue
		}
		former := a.leads[t.Partition]
		if t.Term < former.term {
			continue // of a former leader, which does not know it yet
		}
		a.leads[t.Partition] = announcedLead{node: told.Node, term: t.Term, members: told.membersAt(t.Members), heard: time.Now()}
		isChanged = isChanged || former.node != told.Node || former.term != t.Term
	}
	return isChanged
}

// forgetSilentLeads forgets the leaders that are not heard any more.
func (a *announcer) forgetSilentLeads() {
	isChanged := false
	a.mu.Lock()
	for p, lead := range a.leads {
		if lead.isSilent() {
			delete(a.leads, p)
			isChanged = true
		}
	}
	a.mu.Unlock()
	if isChanged {
		a.member.announceChange()
	}
}

// leaderOf returns the leader of a partition without a replica here, while it is heard.
func (a *announcer) leaderOf(partition int) (node raftlog.NodeID, term uint64, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	lead, ok := a.leads[partition]
	if !ok || lead.isSilent() {
		return "", 0, false
	}
	return lead.node, lead.term, true
}

// membersOf returns the members of a partition's group without a replica here, while its leader is heard.
func (a *announcer) membersOf(partition int) []raftlog.NodeID {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.leads[partition].members
}

// isSteady reports whether lines of a node have come without a break for some time.
func (a *announcer) isSteady(node raftlog.NodeID, steady time.Duration) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	heard, ok := a.heard[node]
	return ok && time.Since(heard.last) <= silentAfter && time.Since(heard.since) >= steady
}

// queuedAt returns what a node has said last about a partition, if it was the last to speak of it.
func (a *announcer) queuedAt(node raftlog.NodeID, partition int) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	if q := a.queues[partition]; q.by == node {
		return q.queued
	}
	return 0
}

// QueuedTasks returns how many tasks of a partition wait for a slot, as far as this node knows. It is 0 while
// the leader is unknown or has not announced itself.
func (m *Member) QueuedTasks(partition int) int {
	if engine, _, ok := m.Engine(partition); ok {
		return engine.Load().Queued
	}
	l, ok := m.Leader(partition)
	if !ok {
		return 0
	}
	return m.announcer.queuedAt(l.Node, partition)
}

// idOf returns the present ID of the node of a name; "" = the cluster lacks it at present.
func (m *Member) idOf(name string) raftlog.NodeID {
	for _, node := range m.Nodes() {
		if node.Name == name {
			return node.ID
		}
	}
	return ""
}
