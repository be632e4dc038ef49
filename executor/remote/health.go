package remote

import (
	"fmt"
	"maps"
	"path/filepath"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/workerpb"
)

// This file tells operators of causes that keep all attempts from starting, or those of one worker.
// attempts.go has the causes that concern a single attempt.

var _ executor.HealthReporter = (*Remote)(nil)

// unhealthyDeaths is how many new workers in a row must have died before Healthy says so. A single
// death, such as one by the OOM killer, is made good within 100 ms.
const unhealthyDeaths = 3

// defaultSlowRecovery is how long, beyond the grace of its processes, the recovery of a dead worker may
// take before Healthy tells of it. RecoverDeadWorker logs at the same age that processes survive
// SIGKILL.
const defaultSlowRecovery = 10 * time.Second

// Healthy implements executor.HealthReporter. It tells of what keeps all attempts from starting: the
// list of former processes cannot be read, the state of a dead worker cannot be recovered or its
// recovery takes long, workers die at their start, or a worker hangs.
func (r *Remote) Healthy() error {
	r.mu.Lock()
	defer r.unlockAndDeliver()
	if r.discoveryErr != nil {
		return fmt.Errorf("attempts wait: cannot list the processes of former workers: %w", r.discoveryErr)
	}
	for _, p := range r.peers {
		if p.recoveryErr != nil {
			return fmt.Errorf("attempts wait: cannot recover the state of a dead worker: %w", p.recoveryErr)
		}
	}
	switch {
	case r.recovering != nil && time.Since(r.recoveryAt) > r.cfg.slowRecovery:
		return fmt.Errorf("attempts wait: the recovery of dead worker %s has not ended for %s: its processes or the disk hang",
			filepath.Base(r.recovering.path), time.Since(r.recoveryAt).Round(time.Second))
	case r.earlyDeaths >= unhealthyDeaths:
		return fmt.Errorf("attempts wait: the last %d workers died before they served", r.earlyDeaths)
	}
	for _, p := range r.peers {
		if p.unresponsive && !p.workerGone {
			pid := "pid not known"
			if n := p.knownPID(); n != 0 {
				pid = fmt.Sprint("pid ", n)
			}
			return fmt.Errorf("worker %s (%s) has not answered for %s: its attempts go on or stand, and others wait",
				filepath.Base(p.path), pid, time.Duration(p.silentBeats)*heartbeatInterval)
		}
	}
	return nil
}

// PostponedStarts implements executor.HealthReporter. It counts what all workers have said to this server,
// and has every reason, also those with the count 0.
func (r *Remote) PostponedStarts() map[string]uint64 {
	r.mu.Lock()
	defer r.unlockAndDeliver()
	return maps.Clone(r.postponedStarts)
}

// onPostponed counts the starts that had to wait, and logs that once a minute. mu is held.
func (r *Remote) onPostponed(p *peer, m *workerpb.Postponed) {
	r.postponedStarts[m.Reason] += m.Count
	if now := time.Now(); now.Sub(r.lastComplaint) > time.Minute {
		r.lastComplaint = now
		r.log.Warn("tasks wait: the machine is short of what a process needs; they start when others have ended",
			"reason", m.Reason, "err", string(m.Error), "folder", p.path)
	}
}
