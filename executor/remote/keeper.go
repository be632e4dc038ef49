package remote

import (
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor/worker"
	"github.com/caravan-dag/caravan/executor/workerpb"
)

// keep is the keeper: it does what the package doc says, whenever something changed.
func (r *Remote) keep() {
	defer r.work.Done()
	defer close(r.over)
	for {
		err := r.discoverStrays()
		if err == nil {
			break
		}
		r.log.Error("nothing is started before it is known which processes there are", "err", err)
		select {
		case <-time.After(time.Second):
		case <-r.ctx.Done():
			return
		}
	}
	for _, p := range r.peers {
		r.work.Add(1)
		go p.run()
	}
	for r.round() {
		select {
		case <-r.look:
		case <-r.ctx.Done():
			return
		}
	}
}

// round goes through the keeper's duties once. It returns false when there are none
// any more.
func (r *Remote) round() bool {
	r.bury()
	r.saveDoubts()
	r.removeEstates()
	r.mu.Lock()
	defer r.unlock()
	switch {
	case r.state == detached:
		return false
	case r.state == closing:
		for _, p := range r.peers {
			if !p.dead {
				return true
			}
		}
		return false
	}
	if !r.everybodySynced() {
		return true
	}
	r.found = true
	if !r.choose() {
		return true
	}
	if r.active == nil {
		r.start()
		return true
	}
	if !r.active.attached {
		return true
	}
	r.share()
	r.assignWaiting()
	return true
}

// everybodySynced tells whether nothing is hidden in a worker, or an estate, that has
// not been heard yet. mu is held.
func (r *Remote) everybodySynced() bool {
	for _, p := range r.peers {
		if !p.dead && (!p.synced || p.gone) {
			return false
		}
	}
	return true
}

// choose makes a worker of this binary and these settings the active one, and drains
// the others. It returns false while one of them has not confirmed that. mu is held.
func (r *Remote) choose() (confirmed bool) {
	confirmed = true
	for _, p := range r.peers {
		if p.dead || p == r.active {
			continue
		}
		if r.active == nil && !p.draining && p.version == r.cfg.Settings.Version {
			r.active = p
			continue
		}
		if !p.draining {
			p.draining = true
			r.log.Info("a worker of another version, or with other settings, is drained", p.names()...)
			p.out.Drain = true
			p.push()
		}
		confirmed = confirmed && p.drained
	}
	return confirmed
}

// share gives the active worker the slots that the others do not use. mu is held.
func (r *Remote) share() {
	free := workerpb.Amount{CPUMillis: r.cfg.CPUMillis, MemoryBytes: r.cfg.MemoryBytes}
	for _, p := range r.peers {
		if p != r.active && !p.dead {
			free.CPUMillis -= p.usage.CPUMillis
			free.MemoryBytes -= p.usage.MemoryBytes
		}
	}
	free.CPUMillis, free.MemoryBytes = max(free.CPUMillis, 0), max(free.MemoryBytes, 0)
	if p := r.active; p.capacity != free {
		p.capacity = free
		p.out.SetCapacity(free)
		p.push()
	}
}

// start starts a worker, not at once when the last ones died before they served.
// mu is held, and given up meanwhile.
func (r *Remote) start() {
	if r.deaths > 0 {
		wait := min(50*time.Millisecond<<min(r.deaths, 10), 5*time.Second)
		deaths := r.deaths
		r.mu.Unlock()
		r.log.Error("the worker does not start; it is tried again", "deaths", deaths, "in", wait)
		select {
		case <-r.ctx.Done():
		case <-time.After(wait):
		}
		r.mu.Lock()
		if r.state != open {
			r.wake()
			return
		}
	}
	r.mu.Unlock()
	p, err := r.spawn()
	r.mu.Lock()
	if err != nil {
		r.deaths++
		r.log.Error("no worker", "err", err)
		r.wake()
		return
	}
	r.peers = append(r.peers, p)
	r.work.Add(1)
	go p.run()
}

// bury takes the estates of the workers that have died.
func (r *Remote) bury() {
	r.mu.Lock()
	var late []*peer
	for _, p := range r.peers {
		if p.gone && !p.dead {
			late = append(late, p)
		}
	}
	r.mu.Unlock()
	for _, p := range late {
		e, err := worker.Bury(r.ctx, worker.Dead{
			Path: p.path, Folder: p.folder, Data: r.cfg.Settings.Folder, Process: p.process, Unborn: p.cmd != nil && !p.synced,
		}, r.cfg.Settings.CloseGrace, r.log)
		if err != nil {
			if r.ctx.Err() == nil {
				r.log.Error("a dead worker's estate cannot be taken; it is tried again", "folder", p.path, "err", err)
				time.AfterFunc(time.Second, r.wake)
			}
			continue
		}
		r.mu.Lock()
		r.inherit(p, e)
		r.unlock()
	}
}

// inherit takes over what a dead worker left. mu is held.
func (r *Remote) inherit(p *peer, e *worker.Estate) {
	p.dead = true
	for _, rep := range e.Ends {
		if rep.Record.Node == "" {
			rep.Record.Node = r.cfg.Settings.Node
		}
		r.heardFinished(p, rep)
	}
	if !e.Certain {
		r.lostMemory()
	}
	p.kept = 0
	for key, x := range r.entries {
		switch {
		case x.peer != p:
		case x.stage == ended:
			p.kept++
		case x.order == nil:
			delete(r.entries, key)
		case x.stage == running || !e.Certain:
			// A journal that does not name what has begun is not to be believed.
			r.doubt(key, x)
			r.loseDoubtful(x, "lost: its worker died, and its journal does not name it")
		case r.state == closing:
			delete(r.entries, key)
			r.report(revoked(key))
		default:
			x.peer = nil
		}
	}
	r.wake()
}

// removeEstates deletes the folders of the dead whose ends are all acknowledged.
func (r *Remote) removeEstates() {
	r.mu.Lock()
	var settled []*peer
	left := r.peers[:0:0]
	for _, p := range r.peers {
		if p.dead && p.kept == 0 {
			settled = append(settled, p)
		} else {
			left = append(left, p)
		}
	}
	r.peers = left
	r.mu.Unlock()
	for _, p := range settled {
		if err := r.registry.strike(filepath.Base(p.path)); err != nil {
			// A folder that the registry names is missed: it stays until that is written.
			r.log.Warn("a dead worker stays in the registry; it is tried again", "folder", p.path, "err", err)
			r.mu.Lock()
			r.peers = append(r.peers, p)
			r.unlock()
			time.AfterFunc(time.Second, r.wake)
			continue
		}
		if p.folder == nil {
			continue
		}
		if err := p.folder.Remove(); err != nil {
			r.log.Warn("a dead worker's folder stays", "err", err)
		}
	}
}

// killWorkers ends workers that do not listen.
func (r *Remote) killWorkers() {
	r.mu.Lock()
	defer r.unlock()
	for _, p := range r.peers {
		if p.gone {
			continue
		}
		r.log.Error("a worker does not end and is killed", p.names()...)
		if p.cmd != nil {
			_ = p.cmd.Process.Kill()
		} else if p.process.Lives() {
			p.process.Signal(unix.SIGKILL)
		} else if p.pid > 0 {
			_ = unix.Kill(p.pid, unix.SIGKILL)
		}
	}
}
