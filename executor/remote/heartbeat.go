package remote

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor/worker"
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
