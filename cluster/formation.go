package cluster

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A cluster is formed once, by all of its first nodes together. Each of them starts with an empty folder
// and the same list of nodes. They introduce themselves to each other, and each decides by itself:
//
//  1. A node that has heard of all others, all of them new and with the same list, forms the cluster. The
//     ID of the cluster and the members follow from the introductions, so all nodes form the same one.
//  2. A node that hears of one which has formed the cluster with it under its present ID does the same.
//     Only a node that was new when it introduced itself can be in this state: its ID is as old as its
//     folder.
//  3. A node that hears of one which has formed the cluster with another ID under its name has lost its
//     folder, and is refused. So is one that is not listed. With Config.Replace it takes the place of the
//     former node instead (replacement.go).
//
// Two of three are not enough for rule 1: two nodes that have both lost their folders would form an empty
// cluster and serve, while the third one has all that was acknowledged. The decision is durable in
// node.json before a replica is opened, and a node forms a cluster once in the life of its folder.
//
// An introduction may be old when a node decides by it. Two nodes could have formed a cluster with this
// node since then, and one of them could have lost its folder since: with the new node in its place this one
// would form another cluster. So a node that has formed a cluster opens its replicas only when every other
// node says that it has formed the same one, or when one says that it has opened them (isFormedByAll).
// Every node is part of at most one cluster, so of two clusters from one list at most one ever opens a
// replica.

// introduction is what a node says of itself to another one.
type introduction struct {
	identity
	// Nodes and Partitions are those of the configuration while the cluster is not formed.
	Nodes []NodeAddress `json:"nodes"`
	// Supports is the highest feature level that the node supports.
	Supports int `json:"supports,omitempty"`
	// Hosts says which partitions have replicas on the nodes of a name, if some nodes lack some and this node knows
	// the hosts of all partitions. A node that takes the place of a former one gets the same ones.
	Hosts map[string][]int `json:"hosts,omitempty"`
}

// RefusedError says why a node cannot be part of the cluster that its configuration lists. It does not
// pass by itself.
type RefusedError struct{ Reason string }

// Error returns the reason.
func (e *RefusedError) Error() string { return "this node cannot be part of the cluster: " + e.Reason }

func refusedBecause(format string, args ...any) error {
	return &RefusedError{fmt.Sprintf(format, args...)}
}

// decideFormation returns the formed identity of a node that has heard others, by their names. It returns
// nil when the node has to hear more of them.
func decideFormation(self *introduction, others map[string]*introduction) (*identity, error) {
	for _, node := range self.Nodes {
		other := others[node.Name]
		if other == nil {
			continue
		}
		if err := compareIntroductions(self, other, node); err != nil {
			return nil, err
		}
		if other.isFormed() {
			return joinFormed(self, other)
		}
	}
	formed := self.identity
	formed.Partitions, formed.Members = self.Partitions, []memberName{{self.Name, self.ID}}
	formed.Level = self.Supports
	for _, node := range self.Nodes {
		if node.Name == self.Name {
			continue
		}
		other := others[node.Name]
		if other == nil {
			return nil, nil
		}
		formed.Members = append(formed.Members, memberName{other.Name, other.ID})
		formed.Level = min(formed.Level, other.Supports)
	}
	slices.SortFunc(formed.Members, func(a, b memberName) int { return cmp.Compare(a.Name, b.Name) })
	sum := sha256.New()
	fmt.Fprintf(sum, "%d partitions, base %d, seed %s\n", formed.Partitions, formed.Base, formed.Seed)
	for _, m := range formed.Members {
		fmt.Fprintf(sum, "%s %s\n", m.Name, m.ID)
	}
	if formed.Level > 0 { // a program that has no levels must come to the same ID
		fmt.Fprintf(sum, "level %d\n", formed.Level)
	}
	formed.Cluster = ID(sum.Sum(nil)).String()
	return &formed, nil
}

// compareIntroductions refuses another node that does not belong to the same first start.
func compareIntroductions(self, other *introduction, node NodeAddress) error {
	switch {
	case other.Name != node.Name:
		return refusedBecause("node %s answers at %s, the address of node %s", other.Name, node.Address, node.Name)
	case other.ID == self.ID:
		return refusedBecause("node %s has the same ID %s: its folder is a copy", other.Name, other.ID)
	case other.Seed != self.Seed:
		return refusedBecause("it begins with %s, and node %s with %s: all nodes begin with copies of one folder", describeSeed(self.Seed), other.Name, describeSeed(other.Seed))
	case other.Partitions != self.Partitions:
		return refusedBecause("it has %d partitions, and node %s has %d", self.Partitions, other.Name, other.Partitions)
	case other.Base != self.Base:
		return refusedBecause("its rows begin at moment %d, and those of node %s at %d", self.Base, other.Name, other.Base)
	case !other.isFormed() && nameList(other.Nodes) != nameList(self.Nodes):
		return refusedBecause("it lists the nodes %s, and node %s lists %s", nameList(self.Nodes), other.Name, nameList(other.Nodes))
	}
	return nil
}

// isFormedByAll reports whether a node that has formed a cluster may open its replicas for the first time: all
// others have formed the same one. One that has opened its replicas knows that already.
func isFormedByAll(self *introduction, others map[string]*introduction) (bool, error) {
	var different *introduction
	isByAll, isOpened := true, false
	for _, node := range self.Nodes {
		if node.Name == self.Name {
			continue
		}
		other := others[node.Name]
		if other == nil || !other.isFormed() {
			isByAll = false
			continue
		}
		if err := compareIntroductions(self, other, node); err != nil {
			return false, err
		}
		if other.Cluster != self.Cluster {
			different = other
		} else if other.Opened {
			isOpened = true
		}
	}
	if different != nil && !isOpened {
		return false, refusedBecause("it has formed cluster %s, and node %s is in cluster %s: a node was lost at the first start. "+
			"Cluster %s has not begun. Start with an empty folder, as a replacement if the other nodes serve",
			self.Cluster, different.Name, different.Cluster, self.Cluster)
	}
	return isByAll || isOpened, nil
}

// describeSeed names the rows that a node begins with, for errors.
func describeSeed(seed string) string {
	if seed == "" {
		return "an empty folder"
	}
	return "the runs of seed " + seed
}

// nameList returns the names of nodes in one order. Addresses are compared by their use alone: a node
// may be known by different ones in different places.
func nameList(nodes []NodeAddress) string {
	var names []string
	for _, n := range nodes {
		names = append(names, n.Name)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// joinFormed makes a new node part of the cluster that another one has formed with it.
func joinFormed(self, other *introduction) (*identity, error) {
	at := slices.IndexFunc(other.Members, func(m memberName) bool { return m.Name == self.Name })
	switch {
	case at < 0:
		return nil, refusedBecause("node %s is in cluster %s without a node %s", other.Name, other.Cluster, self.Name)
	case other.Members[at].ID != self.ID:
		return nil, refusedBecause("node %s knows %s as %s, and this folder is of %s: the folder of that node was lost. "+
			"Its entries are lost with it, so it must not come back by itself: start it as the replacement of the former node",
			other.Name, self.Name, other.Members[at].ID, self.ID)
	}
	if err := other.compareList(self.Nodes); err != nil {
		return nil, refusedBecause("%v", err)
	}
	if other.Level > self.Supports {
		return nil, refusedBecause("the cluster has feature level %d, and this program supports levels up to %d", other.Level, self.Supports)
	}
	formed := self.identity
	formed.Cluster, formed.Members, formed.Partitions, formed.Level = other.Cluster, other.Members, other.Partitions, other.Level
	formed.IsReplacement = other.IsReplacement // its list has a node that the cluster was not formed with
	return &formed, nil
}

// introducer introduces a node to others, and answers their introductions. It lives as long as the
// member: nodes of a first start may come late, or come back without their folders.
type introducer struct {
	port     *port
	logger   *slog.Logger
	listener net.Listener
	wait     sync.WaitGroup

	// hosts returns introduction.Hosts. Nil before the replicas are open.
	hosts atomic.Pointer[func() map[string][]int]

	mu   sync.Mutex // a leaf
	self introduction
}

func startIntroducer(p *port, self introduction, logger *slog.Logger) (*introducer, error) {
	listener, err := p.openListener(formationProtocol)
	if err != nil {
		return nil, err
	}
	i := &introducer{port: p, logger: logger, listener: listener, self: self}
	i.wait.Go(i.answerAll)
	return i, nil
}

// close ends the answers. The port closes the listener.
func (i *introducer) close() {
	i.listener.Close()
	i.wait.Wait()
}

func (i *introducer) currentIntroduction() introduction {
	i.mu.Lock()
	self := i.self
	i.mu.Unlock()
	if hosts := i.hosts.Load(); hosts != nil {
		self.Hosts = (*hosts)()
	}
	return self
}

// setIdentity says from now on how far the node is.
func (i *introducer) setIdentity(id *identity) {
	i.mu.Lock()
	defer i.mu.Unlock()
	level := max(i.self.Level, id.Level)
	i.self.identity = *id
	i.self.setLevel(level)
}

// raiseLevel says from now on that the cluster has a feature level, if the former one is lower.
func (i *introducer) raiseLevel(level int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.self.setLevel(max(i.self.Level, level))
}

func (i *introducer) answerAll() {
	for {
		conn, err := i.listener.Accept()
		if err != nil {
			return
		}
		// One after the other: introductions are small and rare, and have a time limit.
		_, _ = i.exchangeOver(conn)
	}
}

// exchangeOver sends this node's introduction, returns the other one, and closes the connection.
func (i *introducer) exchangeOver(conn net.Conn) (*introduction, error) {
	defer conn.Close()
	defer context.AfterFunc(i.port.ctx, func() { conn.Close() })()
	if err := conn.SetDeadline(time.Now().Add(greetingLimit)); err != nil {
		return nil, err
	}
	// Both sides write first. A connection in memory has no buffer, so the write needs a goroutine.
	written := make(chan error, 1)
	go func() {
		self := i.currentIntroduction()
		written <- writeJSONLine(conn, &self)
	}()
	var other introduction
	err := readJSONLineUpTo(conn, maxJSONLine+maxTableBytes, &other)
	if err != nil {
		conn.Close()
	}
	if err = errors.Join(err, <-written); err != nil {
		return nil, err
	}
	if other.Format != folderFormat && other.Format != levelFormat {
		return nil, fmt.Errorf("it speaks format %d of introductions, and this program format %d", other.Format, folderFormat)
	}
	return &other, nil
}

// introductionPause is between two rounds of introductions.
const introductionPause = 300 * time.Millisecond

// formCluster returns when decide has an identity: that is to be made durable.
func (i *introducer) formCluster(ctx context.Context, decide func(*introduction, map[string]*introduction) (*identity, error)) (formed *identity, err error) {
	err = i.askUntil(ctx, func(self *introduction, others map[string]*introduction) (bool, error) {
		var err error
		formed, err = decide(self, others)
		return formed != nil, err
	})
	return formed, err
}

// askUntil asks the other nodes again and again until decide is done with what they say.
func (i *introducer) askUntil(ctx context.Context, decide func(*introduction, map[string]*introduction) (done bool, err error)) error {
	self := i.currentIntroduction()
	logged := ""
	for {
		others, missing := i.askAll(ctx, &self)
		if done, err := decide(&self, others); done || err != nil {
			return err
		}
		if text := strings.Join(missing, "; "); text != logged {
			logged = text
			i.logger.Info("waiting for the other nodes of the list", "missing", text)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the other nodes of the list did not all join: %s: %w", strings.Join(missing, "; "), context.Cause(ctx))
		case <-time.After(introductionPause):
		}
	}
}

// askAll asks all other nodes at once who they are. missing says which of them this node waits for.
func (i *introducer) askAll(ctx context.Context, self *introduction) (others map[string]*introduction, missing []string) {
	answers := make([]*introduction, len(self.Nodes))
	errs := make([]error, len(self.Nodes))
	var wait sync.WaitGroup
	for k, node := range self.Nodes {
		if node.Name == self.Name {
			continue
		}
		wait.Go(func() {
			conn, err := i.port.dialNode(ctx, node, formationProtocol, ID{}, "")
			if err == nil {
				answers[k], err = i.exchangeOver(conn)
			}
			errs[k] = err
		})
	}
	wait.Wait()
	others = map[string]*introduction{}
	for k, node := range self.Nodes {
		if answers[k] != nil {
			others[node.Name] = answers[k]
		}
		switch {
		case errs[k] != nil:
			missing = append(missing, fmt.Sprintf("node %s at %s: %v", node.Name, node.Address, errs[k]))
		case answers[k] != nil && self.isFormed() && !answers[k].isFormed():
			missing = append(missing, fmt.Sprintf("node %s at %s: it has not formed the cluster", node.Name, node.Address))
		}
	}
	return others, missing
}
