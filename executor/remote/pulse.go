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

// pulse is how often each worker is asked for a sign of life, and silentPulses is after how
// many of them without one it counts as not responding. Pulses are counted, and no clock
// is asked: while this process is stopped itself, or starved, there are none.
const (
	pulse        = time.Second
	silentPulses = 7
)

// patience is for how many pulses a worker may be out of reach for good before it is ended.
const unreachablePulses = 10

var _ executor.HealthReporter = (*Remote)(nil)

// listen asks the workers for signs of life, until ctx ends.
func (r *Remote) listen() {
	defer r.work.Done()
	ticks := time.NewTicker(pulse)
	defer ticks.Stop()
	for {
		select {
		case <-ticks.C:
		case <-r.ctx.Done():
			return
		}
		r.mu.Lock()
		for _, p := range r.peers {
			if !p.gone && !p.dead {
				p.beat()
			}
		}
		r.unlock()
	}
}

// beat counts a pulse, and asks for the next sign of life when there was one. mu is held.
func (p *peer) beat() {
	log := p.r.log
	if p.heard {
		if p.mute {
			log.Warn("a worker answers again", append(p.names(), "after", (time.Duration(p.silent)*pulse).String())...)
		}
		p.heard, p.asked, p.mute, p.silent = false, false, false, 0
	} else {
		p.silent++
	}
	if !p.mute && p.silent >= silentPulses {
		p.mute = true
		log.Error("a worker does not answer; nothing is started until it does, or ends", p.names()...)
	}
	if p.attached && !p.asked {
		p.asked = true
		p.out.Ping = true
		p.push()
	}
	if !p.attached && p.silent >= unreachablePulses && p.r.state == open {
		p.endUnreachable()
	}
}

// knownPID is the worker's process; 0 when it is not known. The registry says which process
// was started, and that one is told from another one that has its number. A process that
// answers on the socket may be another one. SO_PEERCRED does not tell: a server made the
// socket, so the kernel names the server. mu is held.
func (p *peer) knownPID() int {
	if p.process.Lives() {
		return p.process.PID
	}
	return p.pid
}

// names are the attributes of a line in the log about the worker. mu is held.
func (p *peer) names() []any {
	names := []any{"folder", p.path}
	if pid := p.knownPID(); pid != 0 {
		names = append(names, "pid", pid)
	}
	return names
}

// endUnreachable ends a worker whose socket somebody has removed: no server can ever reach
// it again. It ends its tasks, or what it leaves is ended. mu is held.
func (p *peer) endUnreachable() {
	if _, err := os.Stat(worker.SocketPath(p.path)); !errors.Is(err, os.ErrNotExist) || p.process.PID == 0 {
		return
	}
	sig := unix.SIGTERM
	if p.silent >= 3*unreachablePulses {
		sig = unix.SIGKILL
	}
	if p.silent%unreachablePulses == 0 {
		p.r.log.Error("a worker's socket was removed: it cannot be reached any more, and is ended", "folder", p.path, "pid", p.process.PID)
		p.process.Signal(sig)
		p.process.Signal(unix.SIGCONT)
	}
}

// Healthy implements executor.HealthReporter.
func (r *Remote) Healthy() error {
	r.mu.Lock()
	defer r.unlock()
	for _, p := range r.peers {
		if p.mute && !p.gone {
			pid := "pid not known"
			if n := p.knownPID(); n != 0 {
				pid = fmt.Sprint("pid ", n)
			}
			return fmt.Errorf("worker %s (%s) has not answered for %s: what it runs goes on or stands, and nothing is started",
				filepath.Base(p.path), pid, time.Duration(p.silent)*pulse)
		}
	}
	return nil
}

// DeferredStarts implements executor.HealthReporter.
func (r *Remote) DeferredStarts() map[string]uint64 {
	r.mu.Lock()
	defer r.unlock()
	all := make(map[string]uint64, len(executor.ShortageReasons))
	for _, reason := range executor.ShortageReasons {
		all[reason] = 0
	}
	maps.Copy(all, r.deferred)
	return all
}

// heardPostponed counts the starts that had to wait. mu is held.
func (r *Remote) heardPostponed(p *peer, m *workerpb.Postponed) {
	if r.deferred == nil {
		r.deferred = map[string]uint64{}
	}
	r.deferred[m.Reason] += m.Count
	if now := time.Now(); now.Sub(r.complained) > time.Minute {
		r.complained = now
		r.log.Warn("tasks wait: the machine is short of what a process needs; they start when others have ended",
			"reason", m.Reason, "err", string(m.Error), "folder", p.path)
	}
}
