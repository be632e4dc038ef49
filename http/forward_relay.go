package http

import "time"

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

const (
	// cutOffTicks is how long no leader is known before this node takes itself for cut off: 0.5 to 0.75 s.
	cutOffTicks = 3
	// firstRelayPause is the interval between the first two attempts of a request to find a relay while no
	// leader is known. It doubles each time, so a request makes five attempts in 4.5 s.
	firstRelayPause = 200 * time.Millisecond
)

// noteLeaders counts for how many ticks each partition has been without a known leader.
func (f *forwarder) noteLeaders() {
	for p := range f.leaderless {
		if leader, _ := f.cluster.Leader(uint64(p)); leader == "" {
			f.leaderless[p].Add(1)
		} else {
			f.leaderless[p].Store(0)
		}
	}
}

// isCutOff tells whether this node alone may be without a leader of the partition.
func (f *forwarder) isCutOff(partition uint64) bool {
	return f.leaderless[partition].Load() >= cutOffTicks
}

// relay returns a node that may reach a leader which this one cannot reach: another one each time, "" if
// when all other nodes were excluded.
func (f *forwarder) relay(leader string) string {
	nodes := f.cluster.Nodes()
	first := f.rotation.Add(1)
	for i := range uint64(len(nodes)) {
		if node := nodes[(first+i)%uint64(len(nodes))]; node != leader && node != f.cluster.Self() {
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

// isRelayDue tells whether the request may ask a relay now, and counts that attempt.
func (r *forwardRetry) isRelayDue() bool {
	now := time.Now()
	if now.Before(r.relay.next) {
		return false
	}
	r.relay.pause = max(2*r.relay.pause, firstRelayPause)
	r.relay.next = now.Add(r.relay.pause)
	return true
}
