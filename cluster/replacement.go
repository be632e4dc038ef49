package cluster

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/internal/clustertls"
)

// A node that lost its folder is replaced by a new node of the same name (Config.Replace). The new one has
// an ID of its own, so nobody takes it for the former one:
//
//	new node        learns from another member which cluster it is to join, and which replicas the former
//	                node had, and opens empty ones without a list of voters. Such a replica waits for a
//	                leader, and has no vote
//	                asks the leader of each partition again and again to admit it
//	leader          makes one change of members for each request:
//	                  unknown                     becomes a learner: it gets the log, or a copy of all rows
//	                  learner with most entries   the former node of its name is removed
//	                  learner, former removed     becomes a voter
//	                refuses while the former node still answers: two nodes would share its name
//
// The requests carry no state, so either side may stop and go on at any point. Raft makes one change of
// members at a time, and each is safe by itself. The former node is removed first: with the new one beside
// it a partition would have four voters, and could lose its majority for good if the new one died, too.
// Without both it needs the two that are left, as it did before.

// admissionProtocol carries the requests of new nodes.
const admissionProtocol = "caravan-join/1"

const (
	// admissionPause is between two requests for the same partition.
	admissionPause = 300 * time.Millisecond
	// admissionLag is how many entries the new node may lack when the former one is removed.
	admissionLag = 512
)

// admissionRequest asks the leader of a partition to admit the node that sends it.
type admissionRequest struct {
	Partition int            `json:"partition"`
	Name      string         `json:"name"`
	ID        raftlog.NodeID `json:"id"`
}

// admissionAnswer says how far the admission is.
type admissionAnswer struct {
	Leads   bool   `json:"leads"`   // the node that answers leads the partition
	IsVoter bool   `json:"isVoter"` // the new node is in place of the former one
	Error   string `json:"error,omitempty"`
}

// decideReplacement returns the formed identity of a new node that replaces the former one of its name. It
// returns nil when no other node has heard of a cluster yet.
func decideReplacement(self *introduction, others map[string]*introduction) (*identity, error) {
	if self.Seed != "" {
		return nil, refusedBecause("it begins with %s: start a replacement with an empty folder, it gets all rows from the other nodes", describeSeed(self.Seed))
	}
	var known *introduction
	var members []*introduction
	for _, node := range self.Nodes {
		other := others[node.Name]
		if other == nil || !other.isFormed() {
			continue
		}
		adopted := *self // it has no rows of its own
		adopted.Base, adopted.Seed = other.Base, other.Seed
		if err := compareIntroductions(&adopted, other, node); err != nil {
			return nil, err
		}
		if known != nil && known.Cluster != other.Cluster {
			return nil, refusedBecause("node %s is in cluster %s, and node %s in cluster %s", known.Name, known.Cluster, other.Name, other.Cluster)
		}
		known = other
		members = append(members, other)
	}
	if known != nil && known.Level > self.Supports {
		return nil, refusedBecause("the cluster has feature level %d, and this program supports levels up to %d", known.Level, self.Supports)
	}
	if known == nil {
		return nil, nil
	}
	at := slices.IndexFunc(known.Members, func(m memberName) bool { return m.Name == self.Name })
	if at < 0 {
		return nil, refusedBecause("node %s is in cluster %s without a node %s", known.Name, known.Cluster, self.Name)
	}
	if !known.coversList(self.Nodes) { // it may lack nodes that were removed
		return nil, refusedBecause("%v", known.compareList(self.Nodes))
	}
	replicas, isKnown, err := replicasOfFormer(self.Name, members)
	if err != nil || !isKnown {
		return nil, err
	}
	formed := self.identity
	formed.Replicas = replicas
	formed.Cluster, formed.Partitions, formed.Members = known.Cluster, known.Partitions, slices.Clone(known.Members)
	formed.Base, formed.Seed, formed.SeedTerm = known.Base, known.Seed, known.SeedTerm
	formed.Level = known.Level
	// The ID of this folder is known if the first start of the cluster was interrupted here.
	formed.IsReplacement = formed.Members[at].ID != self.ID || known.IsReplacement
	formed.Members[at].ID = self.ID
	return &formed, nil
}

// admitter answers the requests of new nodes.
type admitter struct {
	member   *Member
	listener net.Listener
	wait     sync.WaitGroup
}

func startAdmitter(m *Member) (*admitter, error) {
	listener, err := m.port.openListener(admissionProtocol)
	if err != nil {
		return nil, err
	}
	a := &admitter{member: m, listener: listener}
	a.wait.Go(a.answerAll)
	return a, nil
}

// close ends the answers.
func (a *admitter) close() {
	a.listener.Close()
	a.wait.Wait()
}

// answerAll answers one request after the other: each may change the members of a group.
func (a *admitter) answerAll() {
	for {
		conn, err := a.listener.Accept()
		if err != nil {
			return
		}
		if err := a.answer(conn); err != nil {
			a.member.config.Logger.Info("request of a new node", "err", err)
		}
	}
}

func (a *admitter) answer(conn net.Conn) error {
	defer conn.Close()
	ctx, cancel := context.WithTimeout(a.member.port.ctx, greetingLimit)
	defer cancel()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	var request admissionRequest
	if err := readJSONLine(conn, &request); err != nil {
		return err
	}
	if secure, ok := conn.(*tls.Conn); ok {
		peer, err := clustertls.PeerOf(secure.ConnectionState())
		if err != nil {
			return err
		}
		if peer.Name != request.Name {
			return fmt.Errorf("%s asks for the admission of node %s", peer, request.Name)
		}
	}
	return writeJSONLine(conn, a.member.admit(ctx, &request))
}

// admit does the next step of an admission, if this node leads the partition.
func (m *Member) admit(ctx context.Context, r *admissionRequest) (answer admissionAnswer) {
	if _, err := m.placeOf(r.ID); err != nil || r.Partition < 0 || r.Partition >= m.Partitions() || nameOfID(r.ID) != r.Name {
		return admissionAnswer{Error: fmt.Sprintf("node %s with the ID %s, partition %d: not of this cluster", r.Name, r.ID, r.Partition)}
	}
	if !m.leadsGroup(r.Partition) {
		return admissionAnswer{}
	}
	group := m.host(r.Partition).group
	answer.Leads = true
	is := group.Members()
	want := raftlog.Membership{Voters: slices.Clone(is.Voters), Learners: slices.Clone(is.Learners)}
	without := func(ids []raftlog.NodeID, id raftlog.NodeID) []raftlog.NodeID {
		return slices.DeleteFunc(ids, func(other raftlog.NodeID) bool { return other == id })
	}
	var former raftlog.NodeID
	for _, id := range slices.Concat(is.Voters, is.Learners) {
		if id != r.ID && nameOfID(id) == r.Name {
			former = id
		}
	}
	isVoter, isLearner := slices.Contains(is.Voters, r.ID), slices.Contains(is.Learners, r.ID)
	status := group.Status()
	switch {
	case isVoter && former == "":
		answer.IsVoter = true
		return answer
	case former != "" && (m.hasAnsweredLately(&status, former) || m.isReachable(ctx, former)):
		answer.Error = fmt.Sprintf("node %s still runs as %s", r.Name, former)
		return answer
	case !isVoter && !isLearner:
		want.Learners = append(want.Learners, r.ID)
	case isLearner && status.Match[r.ID]+admissionLag < status.Last:
		answer.Error = fmt.Sprintf("it has %d of %d entries", status.Match[r.ID], status.Last)
		return answer
	case former != "":
		want.Voters, want.Learners = without(want.Voters, former), without(want.Learners, former)
	default:
		want.Voters, want.Learners = append(want.Voters, r.ID), without(want.Learners, r.ID)
	}
	if err := group.Change(want); err != nil {
		answer.Error = err.Error()
	} else {
		m.config.Logger.Info("members of a partition have changed", "partition", r.Partition, "voters", want.Voters, "learners", want.Learners)
	}
	return answer
}

// hasAnsweredLately reports whether a node has answered this leader within the last heartbeats: it runs, even
// when it is too slow for isReachable.
func (m *Member) hasAnsweredLately(s *raftlog.Status, id raftlog.NodeID) bool {
	heartbeat := cmp.Or(m.config.Log.Heartbeat, raftlog.DefaultSettings().Heartbeat)
	silent, ok := s.Silent[id]
	return ok && silent < 3*heartbeat
}

// isReachable reports whether a node answers at its address under this ID.
func (m *Member) isReachable(ctx context.Context, id raftlog.NodeID) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	conn, err := m.Dial(ctx, id, admissionProtocol)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// seekAdmission asks the leaders of this node's partitions to admit it, until it is in place of the former
// one everywhere or the member is closed.
func (m *Member) seekAdmission() {
	admitted := *m.identity // groups read the one in memory
	admitted.Opened = true
	write := func() bool {
		if err := m.folder.writeIdentity(&admitted); err != nil {
			m.config.Fatal(fmt.Errorf("write %s: %w", identityFile, err))
			return false
		}
		return true
	}
	pending := map[int]bool{}
	for h := range m.ownHosts() {
		p := h.partition
		if !slices.Contains(admitted.AdmittedTo, p) {
			pending[p] = true
		}
	}
	for _, p := range admitted.AdmittedTo { // it may have been removed since
		if !m.confirmMembership(p) {
			return
		}
	}
	logged := ""
	for len(pending) > 0 {
		problem := ""
		for h := range m.ownHosts() {
			p := h.partition
			if !pending[p] {
				continue
			}
			switch answer := m.requestAdmission(p); {
			case answer.IsVoter:
				if s := h.group.Status(); s.Last == 0 && s.Snapshot == 0 {
					continue // its first entries are on their way
				}
				delete(pending, p)
				admitted.AdmittedTo = append(slices.Clone(admitted.AdmittedTo), p)
				if !write() {
					return
				}
			case answer.Error != "":
				problem = fmt.Sprintf("partition %d: %s", p, answer.Error)
			}
		}
		if problem != "" && problem != logged {
			logged = problem
			m.config.Logger.Info("this node is not admitted yet", "reason", problem)
		}
		select {
		case <-m.port.ctx.Done():
			return
		case <-time.After(admissionPause):
		}
	}
	admitted.AdmittedTo, admitted.IsAdmitted = nil, true
	if !write() {
		return
	}
	m.config.Logger.Info("this node is in place of the former one", "node", m.Self())
}

// requestAdmission sends the request for a partition to all other nodes, until its leader answers. A node that
// leads the partition itself has become a voter of it without an answer.
func (m *Member) requestAdmission(partition int) (answer admissionAnswer) {
	if m.leadsGroup(partition) {
		return admissionAnswer{Leads: true, IsVoter: true}
	}
	for _, node := range m.config.Nodes {
		if node.Name == m.config.Name {
			continue
		}
		got, err := m.requestAdmissionOf(node, partition)
		switch {
		case err != nil:
			answer.Error = fmt.Sprintf("node %s: %v", node.Name, err)
		case got.Leads || got.Error != "":
			return got
		}
	}
	return answer
}

func (m *Member) requestAdmissionOf(node NodeAddress, partition int) (answer admissionAnswer, err error) {
	ctx, cancel := context.WithTimeout(m.port.ctx, 2*greetingLimit)
	defer cancel()
	// Which ID the node has by now is not known: it may have been replaced, too.
	conn, err := m.port.dialNode(ctx, node, admissionProtocol, m.cluster, "")
	if err != nil {
		return answer, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	err = writeJSONLine(conn, admissionRequest{Partition: partition, Name: m.config.Name, ID: m.Self()})
	if err == nil {
		err = readJSONLine(conn, &answer)
	}
	return answer, err
}

// writeJSONLine writes a value as one line.
func writeJSONLine(w io.Writer, value any) error {
	text, err := json.Marshal(value)
	if err == nil {
		_, err = w.Write(append(text, '\n'))
	}
	return err
}

// maxJSONLine bounds a line, in bytes.
const maxJSONLine = 64 << 10

// readJSONLine reads what writeJSONLine has written.
func readJSONLine(r io.Reader, value any) error { return readJSONLineUpTo(r, maxJSONLine, value) }

// readJSONLineUpTo is readJSONLine for lines of another length, in bytes.
func readJSONLineUpTo(r io.Reader, limit int64, value any) error {
	line, err := bufio.NewReader(io.LimitReader(r, limit)).ReadBytes('\n')
	if err != nil {
		return err
	}
	return json.Unmarshal(line, value)
}
