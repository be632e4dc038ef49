package remote

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/worker"
	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
)

// Config configures a Remote.
type Config struct {
	Dir         string        // DATA/worker; made if there is none
	Binary      string        // program of the worker; "" = this process's own
	Args        []string      // its arguments, as {"worker", "--data", DATA}; "--name", NAME is added
	Sink        executor.Sink // required
	CPUMillis   int64         // slots, in thousandths of a core
	MemoryBytes int64         // slots
	// Settings are the worker's. Outputs is required. Version is made unique to the binary.
	// Without a Folder the folder Dir has an identity of its own.
	Settings worker.Settings
	Logger   *slog.Logger // default slog.Default()
	FS       vfs.FS       // where the registry is written; nil = the machine's

	leavingWithin time.Duration // tests; see leavingWithin
}

// defaultCloseGrace is from SIGTERM to SIGKILL at Close, and for what a dead worker left.
const defaultCloseGrace = time.Second

// closePatience is how long Close waits beyond the grace for workers to end.
const closePatience = 30 * time.Second

// lockPatience is how long New waits for a lock that another process holds.
const lockPatience = 2 * time.Second

// Remote implements executor.Durable.
type Remote struct {
	cfg      Config
	log      *slog.Logger
	dir      string // where orders run that name no folder, or a relative one
	lock     *os.File
	ctx      context.Context // until Close or Detach are done
	cancel   context.CancelFunc
	work     sync.WaitGroup // the keeper and the peers
	look     chan struct{}  // wakes the keeper
	registry *registry
	over     chan struct{} // closed by the keeper when it has ended

	mu      sync.Mutex
	state   state
	doubts  doubts
	expects map[messages.RunID]struct{} // runs that have not given all their live attempts again; nil until ExpectResume
	found   bool                        // every worker that was there at the beginning has said what it knows
	entries map[messages.AttemptKey]*entry
	seq     uint64
	peers   []*peer
	active  *peer // nil, or synced and taking orders
	reports []executor.Report
	telling bool // somebody delivers the reports
	deaths  int  // of new workers in a row that never served

	deferred   map[string]uint64 // starts that had to wait, by reason
	complained time.Time         // of one
}

// state is how far the Remote is in its life.
type state uint8

const (
	open     state = iota
	closing        // what runs is being ended
	detached       // what runs is left
)

var _ executor.Durable = (*Remote)(nil)

// New finds the workers of the data folder, or starts one. It does not wait for them:
// orders do. There is one Remote per folder at a time.
func New(cfg Config) (*Remote, error) {
	if cfg.Sink == nil || cfg.Settings.Outputs == "" || cfg.Dir == "" {
		return nil, errors.New("remote: a sink, a folder and an output folder are required")
	}
	if cfg.CPUMillis <= 0 || cfg.MemoryBytes < 0 {
		return nil, fmt.Errorf("remote: invalid slots: %d thousandths of a core, %d bytes of memory", cfg.CPUMillis, cfg.MemoryBytes)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.FS == nil {
		cfg.FS = vfs.OS{}
	}
	if cfg.Settings.CloseGrace <= 0 {
		cfg.Settings.CloseGrace = defaultCloseGrace
	}
	if cfg.leavingWithin == 0 {
		cfg.leavingWithin = leavingWithin
	}
	r := &Remote{cfg: cfg, log: cfg.Logger, look: make(chan struct{}, 1), over: make(chan struct{}),
		entries: map[messages.AttemptKey]*entry{}}
	if err := r.prepare(); err != nil {
		return nil, fmt.Errorf("worker folder %s: %w", cfg.Dir, err)
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.work.Add(2)
	go r.keep()
	go r.listen()
	return r, nil
}

// prepare makes paths absolute, takes the folder's lock and finds out which workers there
// must be, and what is in doubt.
func (r *Remote) prepare() (err error) {
	for _, path := range []*string{&r.cfg.Dir, &r.cfg.Settings.Outputs} {
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
	}
	if r.dir, err = os.Getwd(); err != nil {
		r.dir = "/"
	}
	if r.cfg.Binary, err = program(r.cfg.Binary); err != nil {
		return err
	}
	if err := os.MkdirAll(r.cfg.Dir, 0o700); err != nil {
		return err
	}
	// A child of a killed server may hold the lock a little longer, between fork and exec.
	for begin := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		r.lock, err = worker.LockFile(filepath.Join(r.cfg.Dir, "server.lock"), os.O_CREATE)
		if !errors.Is(err, worker.ErrHeld) || time.Since(begin) > lockPatience {
			break
		}
	}
	if err != nil {
		return err
	}
	var fault string
	if r.registry, fault, err = openRegistry(r.cfg.FS, r.cfg.Dir, r.cfg.Settings.Folder); err == nil {
		if fault != "" {
			r.log.Error("the registry of workers is written anew: an attempt that no worker knows is lost, and runs again with a new attempt number",
				"file", r.registry.path, "fault", fault)
		}
		r.cfg.Settings.Folder = r.registry.Folder
		r.doubts.begin(r.registry.DoubtAll, r.registry.Doubts)
		if r.cfg.Settings.Version, err = identity(r.cfg.Binary, r.cfg.Settings); err == nil {
			err = r.discover()
		}
	}
	if err != nil {
		r.lock.Close()
	}
	return err
}

// discover lists the workers that there are, dead or alive, and those that there should
// be: the registry names them.
func (r *Remote) discover() error {
	paths, err := worker.List(r.cfg.Dir)
	if err != nil {
		return err
	}
	for _, w := range r.registry.Workers {
		if path := filepath.Join(r.cfg.Dir, w.Name); !slices.Contains(paths, path) {
			r.log.Error("a worker's folder is missing: what it had begun is ended, and runs again with a new attempt number", "folder", path)
			paths = append(paths, path)
		}
	}
	for _, path := range paths {
		p := newPeer(r, path)
		if i := r.registry.index(filepath.Base(path)); i >= 0 {
			p.process = r.registry.Workers[i].identity()
		}
		r.peers = append(r.peers, p)
	}
	return nil
}

// discoverStrays adds the workers of which there are only processes left: their mark
// names this data folder, and no folder is there for them. They are treated as workers
// that died.
//
// When the registry is whole it names each worker whose folder somebody else removed. A worker
// that it does not name ended in order and removed its own folder: its process is about to end.
func (r *Remote) discoverStrays() error {
	strays, err := r.strays()
	for began := time.Now(); err == nil && len(strays) > 0 && r.registry.whole && time.Since(began) < r.cfg.leavingWithin; {
		select {
		case <-time.After(10 * time.Millisecond):
			strays, err = r.strays()
		case <-r.ctx.Done():
			return nil
		}
	}
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.unlock()
	for _, path := range strays {
		r.log.Error("processes of a worker without a folder are ended", "folder", path)
		r.peers = append(r.peers, newPeer(r, path))
	}
	return nil
}

// leavingWithin is how long the process of a worker that has ended in order may still be there.
const leavingWithin = 5 * time.Second

// strays are the folders that workers should have of which there are processes.
func (r *Remote) strays() (paths []string, err error) {
	names, err := worker.Marked(r.cfg.Settings.Folder)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.unlock()
	for _, name := range names {
		path := filepath.Join(r.cfg.Dir, name)
		if !slices.ContainsFunc(r.peers, func(p *peer) bool { return p.path == path }) {
			paths = append(paths, path)
		}
	}
	return paths, nil
}

// Start implements executor.Executor.
func (r *Remote) Start(o executor.Order) {
	if !filepath.IsAbs(o.Dir) {
		o.Dir = filepath.Join(r.dir, o.Dir) // not below the worker's
	}
	o.CPUMillis, o.MemoryBytes = max(o.CPUMillis, 0), max(o.MemoryBytes, 0)
	r.mu.Lock()
	defer r.unlock()
	e := r.entries[o.Key]
	switch {
	case r.state == detached:
	case r.state == closing && o.Resume:
		r.report(lost(&o, "lost: ended by the executor's shutdown"))
	case r.state == closing:
		r.report(revoked(o.Key))
	case e != nil && e.order != nil:
	case e != nil:
		r.claim(e, &o)
	default:
		if err := o.ExceedsMachine(r.cfg.CPUMillis, r.cfg.MemoryBytes); err != nil {
			if !o.Resume {
				r.report(tooLarge(&o, err))
				return
			}
		}
		r.seq++
		e = &entry{order: &o, seq: r.seq}
		r.entries[o.Key] = e
		if o.Resume && r.doubts.has(o.Key.Run) {
			r.doubt(o.Key, e)
		}
		if r.active != nil && r.active.attached {
			r.assign(o.Key, e)
		} else if r.active == nil {
			r.wake()
		}
	}
}

// Kill implements executor.Executor.
func (r *Remote) Kill(key messages.AttemptKey, grace time.Duration) {
	r.mu.Lock()
	defer r.unlock()
	e := r.entries[key]
	if e == nil || e.order == nil || e.stage == ended || r.state == detached {
		return
	}
	if !e.killed || grace < e.grace {
		e.killed, e.grace = true, grace
	}
	if e.peer == nil {
		r.withdraw(key, e)
		return
	}
	e.peer.out.AddKill(key, grace)
	e.peer.push()
}

// Revoke implements executor.Executor.
func (r *Remote) Revoke(key messages.AttemptKey) {
	r.mu.Lock()
	defer r.unlock()
	e := r.entries[key]
	if e == nil || e.order == nil || e.stage >= running || r.state == detached {
		return
	}
	e.revoked = true
	if e.peer == nil {
		r.withdraw(key, e)
		return
	}
	e.peer.out.AddRevocation(key)
	e.peer.push()
}

// withdraw revokes an order that no worker has. One that may have begun before the
// server's restart waits until the workers have said what they know. mu is held.
func (r *Remote) withdraw(key messages.AttemptKey, e *entry) {
	switch {
	case e.order.Resume && !r.found:
	case e.doubtful:
		r.loseDoubtful(e, lostInDoubt)
	default:
		delete(r.entries, key)
		r.report(revoked(key))
	}
}

// Acknowledge implements executor.Durable.
func (r *Remote) Acknowledge(keys ...messages.AttemptKey) {
	r.mu.Lock()
	defer r.unlock()
	for _, key := range keys {
		if e := r.entries[key]; e != nil && e.stage == ended {
			r.forget(key, e)
		}
	}
}

// forget drops an ended attempt and tells who keeps its end. mu is held.
func (r *Remote) forget(key messages.AttemptKey, e *entry) {
	delete(r.entries, key)
	r.undoubt(key, e)
	p := e.peer
	if p == nil {
		return
	}
	if p.dead {
		p.kept--
		if p.kept == 0 {
			r.wake() // the estate is settled
		}
		return
	}
	p.out.AddAcknowledgement(key)
	p.pushWithin(linger)
}

// ExpectResume implements executor.Durable.
func (r *Remote) ExpectResume(runs ...messages.RunID) {
	r.mu.Lock()
	defer r.unlock()
	if r.expects == nil {
		r.expects = map[messages.RunID]struct{}{}
		r.expectInDoubt(runs)
	}
	anew := make(map[messages.RunID]struct{}, len(runs))
	for _, run := range runs {
		anew[run], r.expects[run] = struct{}{}, struct{}{}
	}
	for key, e := range r.entries {
		if _, ok := anew[key.Run]; ok {
			r.unclaim(key, e)
		} else if e.order == nil && r.nobodys(key) {
			r.disown(key, e)
		}
	}
}

// unclaim makes an attempt one that nobody has asked for yet. mu is held.
func (r *Remote) unclaim(key messages.AttemptKey, e *entry) {
	if e.peer == nil && e.stage == unknown {
		delete(r.entries, key)
		r.undoubt(key, e) // its run is expected, and stays in doubt
		return
	}
	e.order, e.told, e.killed, e.revoked = nil, false, false, false
}

// ResumeDone implements executor.Durable.
func (r *Remote) ResumeDone(run messages.RunID) {
	r.mu.Lock()
	defer r.unlock()
	delete(r.expects, run)
	for key, e := range r.entries {
		if key.Run == run && e.order == nil && r.nobodys(key) {
			r.disown(key, e)
		}
	}
	r.trust(run)
}

// nobodys tells whether an attempt that nobody has asked for will never be asked
// for. mu is held.
func (r *Remote) nobodys(key messages.AttemptKey) bool {
	_, expected := r.expects[key.Run]
	return r.expects != nil && !expected
}

// disown ends what nobody asked for. mu is held.
func (r *Remote) disown(key messages.AttemptKey, e *entry) {
	switch {
	case e.stage == ended:
		r.forget(key, e)
	case e.peer != nil && !e.peer.dead:
		e.peer.out.AddKill(key, r.cfg.Settings.CloseGrace)
		e.peer.push()
	}
}

// Detach implements executor.Durable. Nothing is reported from now on. Workers that
// answer have taken in all that was acknowledged when it returns; one that does not has
// it again from the next server. When there is nothing that a next server could want,
// the workers end too.
func (r *Remote) Detach() error {
	var leaving []*peer
	r.mu.Lock()
	if r.state == open {
		r.state = detached
		needless := r.found && len(r.entries) == 0
		for _, p := range r.peers {
			if !p.attached {
				continue
			}
			if needless {
				err := r.registry.strike(filepath.Base(p.path))
				p.out.Release = p.out.Release || err == nil
				p.out.Stop = true
			}
			close(p.leave)
			leaving = append(leaving, p)
		}
	}
	r.unlock()
	patience := time.After(detachPatience)
	for _, p := range leaving {
		select {
		case <-p.over:
			continue
		case <-patience:
		}
		break
	}
	return r.finish()
}

// Close implements executor.Executor. What runs is ended and reported as lost, what
// waits is revoked, and no worker is left. The error names workers that do not end.
func (r *Remote) Close() error {
	r.mu.Lock()
	if r.state != open {
		r.unlock()
		<-r.over
		return nil
	}
	r.state = closing
	for key, e := range r.entries {
		switch {
		case e.peer != nil || e.order == nil || e.stage == ended:
		case e.order.Resume && !r.found:
			delete(r.entries, key)
			r.report(lost(e.order, "lost: ended by the executor's shutdown"))
		default:
			delete(r.entries, key)
			r.report(revoked(key))
		}
	}
	for _, p := range r.peers {
		p.out.Stop = true
		p.push()
	}
	r.wake()
	r.unlock()
	return r.awaitWorkers()
}

// awaitWorkers waits until the keeper has seen every worker end. One that does not
// answer is killed, and what it leaves is ended as an estate.
func (r *Remote) awaitWorkers() error {
	force := time.NewTimer(r.cfg.Settings.CloseGrace + closePatience/3)
	defer force.Stop()
	patience := time.NewTimer(r.cfg.Settings.CloseGrace + closePatience)
	defer patience.Stop()
	for {
		select {
		case <-r.over:
			return r.finish()
		case <-force.C:
			r.killWorkers()
		case <-patience.C:
			r.mu.Lock()
			n := len(r.peers)
			r.mu.Unlock()
			return errors.Join(fmt.Errorf("remote: %d workers do not end", n), r.finish())
		}
	}
}

// finish ends all goroutines and gives the folder free.
func (r *Remote) finish() error {
	r.cancel()
	r.work.Wait()
	r.saveDoubts()
	r.mu.Lock()
	for _, p := range r.peers {
		if p.folder != nil {
			p.folder.Release()
			p.folder = nil
		}
	}
	r.unlock()
	if err := r.lock.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

func (r *Remote) wake() {
	select {
	case r.look <- struct{}{}:
	default:
	}
}

// report takes a report for delivery by unlock. mu is held.
func (r *Remote) report(rep executor.Report) {
	if r.state != detached {
		r.reports = append(r.reports, rep)
	}
}

// unlock gives mu up and delivers the reports that were taken under it, unless
// somebody is delivering already: then they go with those, so that the order stays.
func (r *Remote) unlock() {
	if r.telling {
		r.mu.Unlock()
		return
	}
	r.telling = true
	for len(r.reports) > 0 {
		batch := r.reports
		r.reports = nil
		r.mu.Unlock()
		r.cfg.Sink(batch...)
		r.mu.Lock()
	}
	r.telling = false
	r.mu.Unlock()
}
