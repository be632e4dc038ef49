package raftlogtest

import (
	"time"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// ForThisMachine returns settings for tests that need a steady leader: each limit is as many times longer
// as this machine is late at present. A leader whose heartbeats are late loses its leadership.
func ForThisMachine(s raftlog.Settings) raftlog.Settings {
	return WithLongerTimes(s, testenv.BusyFactor())
}

// WithLongerTimes returns settings whose limits are so many times longer.
func WithLongerTimes(s raftlog.Settings, factor int) raftlog.Settings {
	for _, d := range []*time.Duration{&s.Heartbeat, &s.Election, &s.LeaderLease, &s.ReadLease, &s.Request,
		&s.CommitStall, &s.ReplicationStall, &s.TransferStall} {
		*d *= time.Duration(factor)
	}
	return s
}
