package cluster

import (
	"context"
	"time"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/persistence"
)

const (
	// damagedLeadPause is how long a damaged replica leads after its first attempt to give the leadership
	// away, if it fails or the leadership comes back. Each attempt doubles the pause, up to damagedLeadPause
	// times 2 to the power of maxPauseDoublings: 320 s.
	damagedLeadPause  = 10 * time.Second
	maxPauseDoublings = 5
	// betterLeaderWait is how long no engine begins in a term until the other voters have answered.
	betterLeaderWait = 2 * time.Second
)

// damagedLead is what a host remembers of a damage of its rows. The host's goroutine owns it.
//
// Reads of a damaged replica miss the rows of a damaged block, and so do the decisions of its engine. The
// damage stays until a copy of another replica takes the place of the rows. So the replica gives the
// leadership away in each term in which it gets it, and before it starts an engine. It leads where it has to:
// while no other voter is heard that has the log, and for a pause after each attempt, because the other
// replicas may be damaged, too. The attempts go to one voter after the other, so that a healthy one gets its
// turn.
type damagedLead struct {
	db       *persistence.DB // that is damaged; a copy makes another one
	attempts int
	next     time.Time // of the next attempt
	// term is the term that was seen last, and since is when it was seen first.
	term  uint64
	since time.Time
}

// betterLeader returns the voter that shall lead instead of this node, "" if this one shall lead on: its
// rows are not damaged, or it has to. isAwaited says that the other voters may still answer.
func (h *host) betterLeader(term uint64) (to raftlog.NodeID, isAwaited bool) {
	err := h.machine.damage()
	if err == nil {
		return "", false
	}
	d, now := &h.damaged, time.Now()
	if db := h.machine.db.Load(); d.db != db {
		*d = damagedLead{db: db}
		h.logger.Warn("the rows of this replica are damaged: another node shall lead if one can", "err", err)
	}
	if now.Before(d.next) || len(h.group.Members().Voters) < 2 {
		return "", false
	}
	if d.term != term {
		d.term, d.since = term, now
	}
	voters := h.group.CaughtUpVoters()
	if len(voters) == 0 {
		return "", now.Sub(d.since) < betterLeaderWait
	}
	return voters[d.attempts%len(voters)], false
}

// leaveDamagedLead gives the leadership to a voter, and reports whether that one leads.
func (h *host) leaveDamagedLead(term uint64, to raftlog.NodeID) bool {
	d := &h.damaged
	h.logger.Warn("a damaged replica gives its leadership away", "epoch", term, "to", to)
	ctx, cancel := context.WithTimeout(context.Background(), giveAwayLimit)
	defer cancel()
	err := h.group.Transfer(ctx, to)
	d.next = time.Now().Add(h.config.damagedLeadPause() << min(d.attempts, maxPauseDoublings))
	d.attempts++
	if err != nil {
		h.logger.Warn("a damaged replica leads on", "epoch", term, "until", d.next, "err", err)
	}
	return err == nil
}
