package remote

import (
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor/lifecycle"
	"github.com/caravan-dag/caravan/executor/procfs"
	"github.com/caravan-dag/caravan/executor/worker"
	"github.com/caravan-dag/caravan/executor/workerpb"
)

// supervise is the supervisor's goroutine: it reconciles again whenever something changed.
//
// First it has to know which processes former workers left without a folder (duty 0). Until that works no
// attempt may start, since it could run a second time beside such a process; Healthy says so.
func (r *Remote) supervise() {
	defer close(r.supervised)
	for {
		err := r.discoverUnlisted()
		r.mu.Lock()
		r.discoveryErr = err
		r.unlockAndDeliver()
		if err == nil {
			break
		}
		r.log.Error("cannot list the processes of former workers; attempts start once that works", "err", err)
		select {
		case <-time.After(time.Second):
		case <-r.ctx.Done():
			return
		}
	}
	for _, p := range r.peers {
		r.goroutines.Go(p.run)
	}
	for r.reconcileOnce() {
		select {
		case <-r.wakeSupervisor:
		case <-r.ctx.Done():
			return
		}
	}
}

// discoverWorkers lists the workers that have a folder, dead or alive, and those that the registry
// names.
func (r *Remote) discoverWorkers() error {
	paths, err := worker.ListFolders(r.cfg.Dir)
	if err != nil {
		return err
	}
	processes := map[string]procfs.Identity{} // by the paths of their workers
	for _, w := range r.registry.Workers {
		path := filepath.Join(r.cfg.Dir, w.Name)
		processes[path] = w.Identity
		if !slices.Contains(paths, path) {
			r.log.Error("the folder of a worker is missing: its attempts are ended, and run again with a new attempt number", "folder", path)
			paths = append(paths, path)
		}
	}
	for _, path := range paths {
		p := newPeer(r, path)
		p.process = processes[path]
		r.peers = append(r.peers, p)
	}
	return nil
}

// discoverUnlisted adds the workers of which only processes are left: their mark names this data
// folder, and their folder is missing. They are treated as workers that died.
//
// A whole registry names each worker whose folder was removed by somebody else. A worker that it does
// not name ended in order and removed its own folder: its process is about to end.
func (r *Remote) discoverUnlisted() error {
	unlisted, err := r.unlistedPaths()
	for began := time.Now(); err == nil && len(unlisted) > 0 && r.registry.whole && time.Since(began) < r.cfg.exitGrace; {
		select {
		case <-time.After(10 * time.Millisecond):
			unlisted, err = r.unlistedPaths()
		case <-r.ctx.Done():
			return nil
		}
	}
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.unlockAndDeliver()
	for _, path := range unlisted {
		r.log.Error("ending the processes of a worker without a folder", "folder", path)
		r.peers = append(r.peers, newPeer(r, path))
	}
	return nil
}

// defaultExitGrace is how long the process of a worker that has ended in order may still be there.
const defaultExitGrace = 5 * time.Second

// unlistedPaths returns the folders of workers that have processes and are not a peer yet. The folders do
// not exist. It reads the environment of each process of the machine.
func (r *Remote) unlistedPaths() (paths []string, err error) {
	names, err := worker.MarkedWorkers(r.cfg.Settings.DataFolderID)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.unlockAndDeliver()
	for _, name := range names {
		path := filepath.Join(r.cfg.Dir, name)
		if !slices.ContainsFunc(r.peers, func(p *peer) bool { return p.path == path }) {
			paths = append(paths, path)
		}
	}
	return paths, nil
}

// reconcileOnce carries out the supervisor's duties of the package doc, as far as it can now. It stops
// at the first duty that has to wait for a worker: the frame or the end of that worker wakes the
// supervisor, which begins again with the first duty. So each duty looks at the present state only, and
// a wake-up that was not needed costs no more than the look. It returns false when all duties are done.
func (r *Remote) reconcileOnce() (goOn bool) {
	r.recoverDeadWorkers()
	r.saveDoubts()
	r.removeRecovered()
	r.mu.Lock()
	defer r.unlockAndDeliver()
	switch {
	case r.phase == phaseDetached:
		return false
	case r.phase == phaseClosing:
		for _, p := range r.peers {
			if !p.recovered {
				return true
			}
		}
		return false
	}
	if !r.allSynced() {
		return true
	}
	r.allFound = true
	if !r.electActive() {
		return true
	}
	if r.active == nil {
		r.startWorker()
		return true
	}
	if !r.active.attached {
		return true
	}
	r.distributeCapacity()
	r.assignWaiting()
	return true
}

// allSynced reports whether every worker has said what it knows, or was recovered. Before that an order
// might be given to one worker while another has its attempt: duty 2. A worker that hangs holds up all
// orders for this reason, which Healthy says. mu is held.
func (r *Remote) allSynced() bool {
	for _, p := range r.peers {
		if !p.recovered && (!p.synced || p.workerGone) {
			return false
		}
	}
	return true
}

// electActive makes a worker of this binary and these settings the active one, and drains the others.
// It returns false while one of them has not confirmed that, because the slots that it still uses are
// not known before, and the active worker would use them a second time. mu is held.
func (r *Remote) electActive() (confirmed bool) {
	confirmed = true
	for _, p := range r.peers {
		if p.recovered || p == r.active {
			continue
		}
		if r.active == nil && !p.draining && p.version == r.cfg.Settings.Version {
			r.active = p
			continue
		}
		if !p.draining {
			p.draining = true
			r.log.Info("draining a worker of another version or with other settings", p.logFields()...)
			p.outgoing.Drain = true
			p.requestSend()
		}
		confirmed = confirmed && p.drained
	}
	return confirmed
}

// distributeCapacity gives the active worker the slots that the others do not use. As attempts of a
// draining worker end, its usage falls and the active one gets more. A dead worker has given
// its slots back: its processes have ended before it counts as recovered. mu is held.
func (r *Remote) distributeCapacity() {
	free := workerpb.Amount{CPUMillis: r.cfg.CPUMillis, MemoryBytes: r.cfg.MemoryBytes}
	for _, p := range r.peers {
		if p != r.active && !p.recovered {
			free.CPUMillis -= p.usage.CPUMillis
			free.MemoryBytes -= p.usage.MemoryBytes
		}
	}
	free.CPUMillis, free.MemoryBytes = max(free.CPUMillis, 0), max(free.MemoryBytes, 0)
	if p := r.active; p.capacity != free {
		p.capacity = free
		p.outgoing.SetCapacity(free)
		p.requestSend()
	}
}

// startWorker starts a worker, in the supervisor's goroutine, whose other duties wait. If the last workers
// died before they served it waits first: 100 ms after the first death, twice as long after each further
// one, at most 5 s. So a binary that cannot run does not occupy the machine with its starts. mu is held,
// but released during the wait and the start.
func (r *Remote) startWorker() {
	if r.earlyDeaths > 0 {
		wait := min(50*time.Millisecond<<min(r.earlyDeaths, 10), 5*time.Second)
		deaths := r.earlyDeaths
		r.mu.Unlock()
		r.log.Error("new workers die before they serve; starting another one", "deaths", deaths, "delay", wait)
		select {
		case <-r.ctx.Done():
		case <-time.After(wait):
		}
		r.mu.Lock()
		if r.phase != phaseOpen {
			r.requestReconcile()
			return
		}
	}
	r.mu.Unlock()
	p, err := r.spawnWorker()
	r.mu.Lock()
	if err != nil {
		r.earlyDeaths++
		r.log.Error("worker not started", "err", err)
		r.requestReconcile()
		return
	}
	r.peers = append(r.peers, p)
	r.goroutines.Go(p.run)
}

// recoverDeadWorkers recovers the state of the workers that have died. mu is not held: their processes
// have the grace to end. After an error, for instance of the disk, it is tried again after a second, and
// until then allSynced keeps all orders back, which Healthy tells (peer.recoveryErr).
func (r *Remote) recoverDeadWorkers() {
	r.mu.Lock()
	var dead []*peer
	for _, p := range r.peers {
		if p.workerGone && !p.recovered {
			dead = append(dead, p)
		}
	}
	r.mu.Unlock()
	for _, p := range dead {
		r.mu.Lock()
		r.recovering, r.recoveryAt = p, time.Now()
		r.mu.Unlock()
		state, err := worker.RecoverDeadWorker(r.ctx, worker.DeadWorker{
			Path: p.path, Folder: p.folder, DataFolderID: r.cfg.Settings.DataFolderID, Process: p.process, NeverServed: p.cmd != nil && !p.synced,
		}, r.cfg.Settings.CloseGrace, r.log)
		if err != nil && r.ctx.Err() == nil {
			r.log.Error("cannot recover the state of the dead worker; retrying", "folder", p.path, "err", err)
			time.AfterFunc(time.Second, r.requestReconcile)
		}
		r.mu.Lock()
		r.recovering = nil
		if p.recoveryErr = err; err == nil {
			r.adoptState(p, state)
		}
		r.unlockAndDeliver()
	}
}

// adoptState takes over what a dead worker left. Ends of its journal are reported as if the worker had
// said them. An attempt without an end is lost if it may have begun, else its order waits for another
// worker. mu is held.
//
// The intent of each attempt is in the journal before its fork, and the processes of the dead worker
// have ended. So an attempt that a complete journal does not name has never run, and its order may be
// given to another worker under the same number. Where the journal is not complete, nothing that the
// worker had is run again under the same number, and attempts that were not heard of are in doubt.
func (r *Remote) adoptState(p *peer, state *worker.DeadWorkerState) {
	p.recovered = true
	for _, end := range state.Ends {
		if end.Record.Node == "" {
			end.Record.Node = r.cfg.Settings.Node
		}
		r.onFinished(p, end)
	}
	if !state.Complete {
		r.doubtUnheard()
	}
	p.unacknowledged = 0
	for key, a := range r.attempts {
		switch {
		case a.peer != p:
		case a.State() == lifecycle.Ended:
			p.unacknowledged++
		case a.order == nil:
			r.dropUnordered(key, a, state.Complete)
		case a.State() == lifecycle.Running || !state.Complete:
			// A journal that does not name an attempt which began is not trusted.
			r.markDoubtful(key, a)
			r.loseAttempt(a, "lost: its worker died, and its journal does not name it")
		case r.phase == phaseClosing:
			delete(r.attempts, key)
			r.queueReport(revokedReport(key))
		default:
			a.peer = nil
		}
	}
	r.requestReconcile()
}

// removeRecovered deletes the folders of dead workers whose ends are all acknowledged. The registry
// forgets a worker before its folder is removed: the other way round, a crash in between would look as
// if somebody else had removed the folder, and put all runs in doubt.
func (r *Remote) removeRecovered() {
	r.mu.Lock()
	var finished []*peer
	left := r.peers[:0:0]
	for _, p := range r.peers {
		if p.recovered && p.unacknowledged == 0 {
			finished = append(finished, p)
		} else {
			left = append(left, p)
		}
	}
	r.peers = left
	r.mu.Unlock()
	for _, p := range finished {
		if err := r.registry.removeWorker(filepath.Base(p.path)); err != nil {
			// The folder of a worker that the registry names must stay.
			r.log.Warn("dead worker not removed from the registry; retrying", "folder", p.path, "err", err)
			r.mu.Lock()
			r.peers = append(r.peers, p)
			r.unlockAndDeliver()
			time.AfterFunc(time.Second, r.requestReconcile)
			continue
		}
		if p.folder == nil {
			continue
		}
		if err := p.folder.Remove(); err != nil {
			r.log.Warn("folder of a dead worker not removed", "err", err)
		}
	}
}

// killWorkers kills the workers that live, for Close. The process is known best from its start; of a worker
// that was found, the registry has the identity; the pid of the hello is the last resort.
func (r *Remote) killWorkers() {
	r.mu.Lock()
	defer r.unlockAndDeliver()
	for _, p := range r.peers {
		if p.workerGone {
			continue
		}
		r.log.Error("killing a worker that does not end", p.logFields()...)
		if p.cmd != nil {
			_ = p.cmd.Process.Kill()
		} else if p.process.IsAlive() {
			p.process.Signal(unix.SIGKILL)
		} else if p.pid > 0 {
			_ = unix.Kill(p.pid, unix.SIGKILL)
		}
	}
}
