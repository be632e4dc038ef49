package remote

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/worker"
	"github.com/caravan-dag/caravan/executor/workerpb"
)

// Each worker gets a ping per heartbeatInterval. After unresponsiveBeats intervals without a frame from
// it, it counts as not responding. Intervals are counted rather than measured by a clock: the
// count stands while this process itself is stopped or starved.
const (
	heartbeatInterval = time.Second
	unresponsiveBeats = 7
)

// unreachableBeats is for how many intervals a worker may lack its socket before it is ended. A server
// makes the socket before it starts the worker, so a missing one was removed.
const unreachableBeats = 10

var _ executor.HealthReporter = (*Remote)(nil)

// monitorWorkers sends pings to the workers, until ctx ends. Except for a worker without a socket it only
// reports what it finds, in Healthy and in the log: a worker that hangs, or is stopped by SIGSTOP, still has its attempts, and
// may go on at any time. The lock of its folder alone proves that a worker is dead.
func (r *Remote) monitorWorkers() {
	ticks := time.NewTicker(heartbeatInterval)
	defer ticks.Stop()
	for {
		select {
		case <-ticks.C:
		case <-r.ctx.Done():
			return
		}
		r.mu.Lock()
		for _, p := range r.peers {
			if !p.workerGone && !p.recovered {
				p.checkHeartbeat()
			}
		}
		r.unlockAndDeliver()
	}
}

// checkHeartbeat counts an interval, and sends a ping unless one is under way. Any frame counts as an answer,
// so a worker that is busy with ends needs no pong. mu is held.
func (p *peer) checkHeartbeat() {
	log := p.r.log
	if p.heard {
		if p.unresponsive {
			log.Warn("a worker answers again", append(p.logFields(), "after", (time.Duration(p.silentBeats)*heartbeatInterval).String())...)
		}
		p.heard, p.pinged, p.unresponsive, p.silentBeats = false, false, false, 0
	} else {
		p.silentBeats++
	}
	if !p.unresponsive && p.silentBeats >= unresponsiveBeats {
		p.unresponsive = true
		log.Error("a worker does not answer; attempts start when it does, or has ended", p.logFields()...)
	}
	if p.attached && !p.pinged {
		p.pinged = true
		p.outgoing.Ping = true
		p.requestSend()
	}
	if !p.attached && p.silentBeats >= unreachableBeats && p.r.phase == phaseOpen {
		p.endUnreachable()
	}
}

// knownPID returns the worker's process; 0 when it is not known. The registry has the identity of the
// process that was started. The pid of the hello is second best, because another process may answer on
// the socket. SO_PEERCRED does not help: a server made the socket, so the kernel names the server. mu
// is held.
func (p *peer) knownPID() int {
	if p.process.IsAlive() {
		return p.process.PID
	}
	return p.pid
}

// logFields returns the attributes of a log line about the worker. mu is held.
func (p *peer) logFields() []any {
	names := []any{"folder", p.path}
	if pid := p.knownPID(); pid != 0 {
		names = append(names, "pid", pid)
	}
	return names
}

// endUnreachable ends a worker whose socket was removed by somebody else: servers cannot reach it any
// more. The worker ends its tasks, or its recovery does. It gets SIGTERM after 10 and 20 s of silence, and
// SIGKILL from 30 s on. mu is held, over one look at the file system.
func (p *peer) endUnreachable() {
	if _, err := os.Stat(worker.SocketPath(p.path)); !errors.Is(err, os.ErrNotExist) || p.process.PID == 0 {
		return
	}
	sig := unix.SIGTERM
	if p.silentBeats >= 3*unreachableBeats {
		sig = unix.SIGKILL
	}
	if p.silentBeats%unreachableBeats == 0 {
		p.r.log.Error("ending a worker that cannot be reached: its socket was removed", "folder", p.path, "pid", p.process.PID)
		p.process.Signal(sig)
		p.process.Signal(unix.SIGCONT)
	}
}

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
