package raftlogtest

import (
	"time"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// ForThisMachine returns settings for tests that need a steady leader: each limit is as many times longer
// as this machine is late at present. A leader whose heartbeats are late loses its leadership.
func ForThisMachine(s raftlog.Settings) raftlog.Settings {
	factor := time.Duration(testenv.BusyFactor())
	for _, d := range []*time.Duration{&s.Heartbeat, &s.Election, &s.LeaderLease, &s.ReadLease, &s.Request,
		&s.CommitStall, &s.ReplicationStall, &s.TransferStall} {
		*d *= factor
	}
	return s
}
