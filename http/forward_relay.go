package http

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync/atomic"
	"time"
)

// Requests by way of a third node, the relay. A node that is cut off from the leader alone still reaches
// the others, and one of them reaches the leader. The cut shows in two ways:
//
//	at first      the leader is known, and cannot be reached
//	after about   no leader is known: the node hears no heartbeat, and the others do not elect one with
//	a second      it, because they have a leader
//
// An election looks like the second one, and every node that is asked then refuses the request. So the
// relay is asked only when the partition has been without a known leader for longer than an election
// usually takes, and by one request a few times.
//
// A request that waits for a relay ends when this node hears of another leader (watchRequests). That does not show the
// loss of a relay whose machine is dead: TCP notices it after minutes. So a relay is dialled at intervals
// while requests wait for its answer.

const (
	// cutOffTicks is how long no leader is known before this node takes itself for cut off: 0.5 to 0.75 s.
	cutOffTicks = 3
	// firstRelayPause is the interval between the first two attempts of a request to find a relay while no
	// leader is known. It doubles each time, so a request makes five attempts in 4.5 s.
	firstRelayPause = 200 * time.Millisecond
	// probeTicks is the interval at which a relay is dialled, and how long a request waits before that: 1 s.
	probeTicks = 4
	// maxFailedProbes is how many attempts in a row fail until a relay counts as lost. A node under load
	// may refuse one.
	maxFailedProbes = 3
)

// knownLeader is what watchRequests has seen of the leader of a partition.
type knownLeader struct {
	ticksWithout atomic.Int64           // since a leader was known
	last         atomic.Pointer[string] // nil = none was known yet
}

// noteLeaders looks at the leaders of all partitions, once a tick.
func (f *forwarder) noteLeaders() {
	for p := range f.leaders {
		known := &f.leaders[p]
		leader, isHere := f.cluster.Leader(uint64(p))
		if leader == "" && !isHere {
			known.ticksWithout.Add(1)
			continue
		}
		known.ticksWithout.Store(0)
		if last := known.last.Load(); last == nil || *last != leader {
			node := leader // leader itself stays off the heap
			known.last.Store(&node)
		}
	}
}

// isCutOff tells whether this node alone may be without a leader of the partition.
func (f *forwarder) isCutOff(partition uint64) bool {
	return f.leaders[partition].ticksWithout.Load() >= cutOffTicks
}

// relay returns a node that may reach a leader which this one cannot reach: another one each time. It is
// neither this node nor the avoided one; "" = all were excluded.
func (f *forwarder) relay(avoided string) string {
	nodes := f.cluster.Nodes()
	first := f.rotation.Add(1)
	for i := range uint64(len(nodes)) {
		if node := nodes[(first+i)%uint64(len(nodes))]; node != avoided && node != f.cluster.Self() {
			return node
		}
	}
	return ""
}

// relayPace bounds how often one request looks for a relay while no leader is known. The zero value
// permits the first attempt.
type relayPace struct {
	next  time.Time
	pause time.Duration
}

// relayWithoutLeader returns a relay for a request whose partition has no known leader; "" = it waits. The
// first attempt leaves the last leader out: if its machine is dead, the request would wait for Config.dialLimit,
// while another node may already lead. Later attempts do not, because it may follow a leader that this node
// has not heard of.
func (f *forwarder) relayWithoutLeader(partition uint64, pace *relayPace) string {
	now := time.Now()
	if !f.isCutOff(partition) || now.Before(pace.next) {
		return ""
	}
	avoided := ""
	if last := f.leaders[partition].last.Load(); last != nil && pace.pause == 0 {
		avoided = *last
	}
	pace.pause = max(2*pace.pause, firstRelayPause)
	pace.next = now.Add(pace.pause)
	return f.relay(avoided)
}

// errRelayLost ends the wait for a relay that cannot be reached any more.
var errRelayLost = errors.New("the node that has forwarded the request cannot be reached")

// relayProbe is the check of one relay, under forwarder.mu.
type relayProbe struct {
	isRunning bool
	failures  int // in a row
}

// probeRelays dials the relays of requests that wait for long, and ends the requests of those that are lost:
// their answers count as lost. Only watchRequests calls it.
func (f *forwarder) probeRelays(waiting []*forwardedRequest, now int64) {
	if now%probeTicks != 0 {
		return
	}
	relays := make(map[string][]*forwardedRequest)
	for _, r := range waiting {
		if since := r.waitsFrom.Load(); r.node != r.leader && since != notWaiting && now-since >= probeTicks {
			relays[r.node] = append(relays[r.node], r)
		}
	}
	for _, node := range f.startProbes(relays) {
		f.s.log.Info("http: a node that forwards requests to the leader cannot be reached", "node", node, "requests", len(relays[node]))
		for _, r := range relays[node] {
			r.cancel(errRelayLost)
		}
	}
}

// startProbes begins a probe of each relay unless one runs, and returns the relays that are lost. It
// forgets the nodes that are no longer relays.
func (f *forwarder) startProbes(relays map[string][]*forwardedRequest) (lost []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for node, probe := range f.probes {
		if relays[node] == nil && !probe.isRunning {
			delete(f.probes, node)
		}
	}
	for _, node := range slices.Sorted(maps.Keys(relays)) {
		probe := f.probes[node]
		if probe == nil {
			probe = new(relayProbe)
			f.probes[node] = probe
		}
		switch {
		case probe.failures >= maxFailedProbes:
			probe.failures = 0
			lost = append(lost, node)
		case !probe.isRunning:
			probe.isRunning = true
			f.background.Go(func() { f.probeRelay(node, probe) })
		}
	}
	return lost
}

// probeRelay dials a node once.
func (f *forwarder) probeRelay(node string, probe *relayProbe) {
	ctx, cancel := context.WithTimeout(f.ctx, f.s.cfg.dialLimit)
	defer cancel()
	conn, err := f.cluster.Dial(ctx, node)
	if err == nil {
		_ = conn.Close()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	probe.isRunning = false
	if probe.failures++; err == nil {
		probe.failures = 0
	}
}
