package raftlog

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/caravan-dag/caravan/internal/vfs"
)

// Config describes a replica of a group.
type Config struct {
	Group   uint16 // its number among the groups of the cluster
	Node    NodeID
	Dir     string // the replica's folder for log, vote and snapshots; made if missing
	Machine Machine
	Mux     *Mux

	// Bootstrap lists the voters of a new group. Each of them opens its replica with the same list, in
	// an empty folder; an opened group ignores it. A replica that joins a running group has none, and
	// waits for the leader.
	//
	// Two of three nodes that lost their folders would make a new group of the same name, so the caller
	// bootstraps only when all nodes say that they are new.
	Bootstrap []NodeID
	// Seed says that the machines of a new group begin with the same rows, as of entry 1: see seed.go.
	Seed *Seed

	// CheckSpace, if not nil, may refuse a snapshot from another replica while it is received: received is its
	// bytes so far, and the machine needs space for its rows on top of that. The leader sends it again later.
	CheckSpace func(received int64) error
	// ReleaseSpace, if not nil, is called when a snapshot that CheckSpace has allowed so far is given up. The
	// others end with Machine.Restore.
	ReleaseSpace func()

	FS       vfs.FS       // nil: the operating system's
	Settings Settings     // the zero value means DefaultSettings
	Logger   *slog.Logger // nil: slog.Default

	// refuse: see logStore.refuse. Nil but in tests.
	refuse func([]*raft.Log) error
}

// LostError is the outcome of a proposal that this node cannot vouch for. The engine that made it ends:
// a new one begins with a Takeover, and reads what came of it.
type LostError struct {
	// Unknown means that the entry may be in the log, now or later. Otherwise it will never be applied.
	Unknown bool
	Cause   error
}

// Error says what was lost and why.
func (e *LostError) Error() string {
	if e.Unknown {
		return fmt.Sprintf("outcome of the proposal is unknown: %v", e.Cause)
	}
	return fmt.Sprintf("proposal was not accepted: %v", e.Cause)
}

// Unwrap returns the cause.
func (e *LostError) Unwrap() error { return e.Cause }

var (
	// ErrNotLeader means that this node does not lead the group, or no longer in the given epoch.
	ErrNotLeader = errors.New("not the leader in this epoch")
	// ErrFenced means that the entry was appended in a later term than its epoch.
	ErrFenced = errors.New("a later epoch has begun")
	// ErrClosed means that the group was closed or has ended.
	ErrClosed = errors.New("group is closed")
	// ErrDiskStalled is wrapped by the error with which a group ends whose disk does not answer. The
	// process should exit: its other files are on the same disk.
	ErrDiskStalled = errors.New("disk does not answer")

	errStuck = errors.New("the library does not stop")
)

// stopLimit bounds the wait for the library's goroutines. They end at once, unless one of them waits
// for the disk.
const stopLimit = 10 * time.Second

// Group is a replica of a group. All methods may be called at any time from any goroutine; after the
// end of the group they return ErrClosed or what it wraps.
type Group struct {
	config   Config
	settings Settings
	logger   *slog.Logger
	watch    *watch

	logs      *logStore
	votes     *voteStore
	snapshots *snapshotStore
	applier   *applier

	mu       sync.Mutex
	current  *incarnation // nil after the end
	err      error        // why the group has ended; nil while it runs, and after Close
	restarts int64

	held         atomic.Int64 // calls of HoldLog that were not released
	snapshotting sync.Mutex   // held over a periodic snapshot

	hints    chan struct{} // see Hints; holds one
	again    chan error    // asks supervise for a restart of the library, with the reason; holds one
	failing  chan struct{} // closed by fail
	closing  chan struct{} // closed by Close
	ended    chan struct{} // closed when supervise has ended
	closeErr error         // of the library's end; set before ended is closed

	closeOnce, failOnce sync.Once
	background          sync.WaitGroup // snapshots
}

// Open opens a replica and starts it.
//
// It refuses a replica whose parts do not belong together: a vote, a log or rows that were lost or put
// back from a copy. Such a replica could vote twice, or miss entries that it has confirmed. Its node
// gets a new ID, or the group replaces it.
func Open(config Config) (*Group, error) {
	g := &Group{config: config, settings: config.Settings, logger: config.Logger,
		hints: make(chan struct{}, 1), again: make(chan error, 1), failing: make(chan struct{}), closing: make(chan struct{}), ended: make(chan struct{})}
	if g.settings == (Settings{}) {
		g.settings = DefaultSettings()
	}
	if err := g.settings.check(); err != nil {
		return nil, err
	}
	if g.logger == nil {
		g.logger = slog.Default()
	}
	g.logger = g.logger.With("group", config.Group)
	g.watch = newWatch(&g.settings)
	inc, err := g.openStores()
	if err != nil {
		if g.logs != nil {
			g.logs.close()
		}
		return nil, fmt.Errorf("group %d in %s: %w", config.Group, config.Dir, err)
	}
	g.current = inc
	go g.supervise(inc)
	return g, nil
}

func (g *Group) openStores() (*incarnation, error) {
	if err := g.openFiles(); err != nil {
		return nil, err
	}
	if err := g.bootstrap(); err != nil {
		return nil, fmt.Errorf("bootstrap: %w", err)
	}
	return g.startLibrary()
}

// openFiles opens what the replica keeps, and compares the parts.
func (g *Group) openFiles() error {
	files := g.config.FS
	if files == nil {
		files = vfs.OS{}
	}
	dir, logDir := g.config.Dir, filepath.Join(g.config.Dir, "log")
	if err := files.MkdirAll(logDir, 0o700); err != nil {
		return err
	}
	for _, folder := range []string{dir, filepath.Dir(dir)} { // the names of log and of the replica
		if err := files.SyncDir(folder); err != nil {
			return err
		}
	}
	synced, err := g.config.Machine.Sync()
	if err != nil {
		return fmt.Errorf("machine: %w", err)
	}
	if g.votes, err = openVotes(files, dir, g.fail); err != nil {
		return err
	}
	if g.snapshots, err = openSnapshots(files, dir, synced); err != nil {
		return err
	}
	g.snapshots.checkSpace, g.snapshots.releaseSpace = g.config.CheckSpace, g.config.ReleaseSpace
	if g.logs, err = openLog(files, logDir, g.settings.SegmentBytes, newLibraryLogger(g.logger), g.watch.clock, g.fail); err != nil {
		return err
	}
	g.logs.refuse = g.config.refuse
	g.snapshots.termOf = g.logs.termOf
	g.logs.snapshotIndex = func() uint64 {
		own, _ := g.snapshots.ownRecord()
		return own.Index
	}
	g.applier = &applier{machine: g.config.Machine, fail: g.fail, clock: g.watch.clock, snapshots: g.snapshots,
		lastEntry: g.logs.LastIndex, restart: g.stopAndRestart}
	g.snapshots.applier = g.applier
	if err := g.seed(synced); err != nil {
		return fmt.Errorf("seed: %w", err)
	}
	if own, ok := g.snapshots.ownRecord(); ok {
		g.applier.setPosition(own)
	}
	if err := g.checkVote(); err != nil {
		return err
	}
	if err := g.emptyUselessLog(); err != nil {
		return err
	}
	return g.checkParts(synced)
}

// checkVote compares the vote with the snapshot and the log.
func (g *Group) checkVote() error {
	last, err := g.logs.LastIndex()
	if err != nil {
		return err
	}
	own, _ := g.snapshots.ownRecord()
	newest := own.Term
	if last > 0 {
		term, err := g.logs.termOf(last)
		if err != nil {
			return err
		}
		newest = max(newest, term)
	}
	if vote := g.votes.durableVote(); newest > vote.Term {
		return fmt.Errorf("vote is of term %d, and the log has entries of term %d: the vote was lost", vote.Term, newest)
	}
	return nil
}

// emptyUselessLog empties a log that a restored snapshot has replaced, after a crash or a restart
// between the two. The log ends before the snapshot, and raft-wal refuses an entry that does not follow
// the last one; or it has another entry at the snapshot's index (rule 7 of figure 13 of the extended
// Raft paper), and the library would refuse all that the leader sends.
func (g *Group) emptyUselessLog() error {
	own, ok := g.snapshots.ownRecord()
	first, err := g.logs.FirstIndex()
	if err != nil || !ok || first == 0 {
		return err
	}
	last, err := g.logs.LastIndex()
	if err != nil {
		return err
	}
	isUseless := last < own.Index
	if first <= own.Index && own.Index <= last {
		term, err := g.logs.termOf(own.Index)
		if err != nil {
			return err
		}
		isUseless = term != own.Term
	}
	if !isUseless {
		return nil
	}
	return g.logs.DeleteRange(first, last)
}

// checkParts compares the snapshot, the log and the machine.
func (g *Group) checkParts(synced uint64) error {
	first, err := g.logs.FirstIndex()
	if err != nil {
		return err
	}
	last, err := g.logs.LastIndex()
	if err != nil {
		return err
	}
	own, _ := g.snapshots.ownRecord()
	switch {
	case first > own.Index+1:
		return fmt.Errorf("log begins at entry %d, after a snapshot of entry %d: entries were lost", first, own.Index)
	case synced < own.Rows:
		return fmt.Errorf("machine is synced up to entry %d, and the log begins after entry %d: rows were lost", synced, own.Index)
	case synced > max(last, own.Index):
		return fmt.Errorf("machine is synced up to entry %d, and the log ends at entry %d: entries were lost", synced, max(last, own.Index))
	}
	return nil
}

// bootstrap writes the first entry of a new group, the list of its voters. The library's
// BootstrapCluster refuses to continue after a crash between its two writes; here both are repeated
// until the entry is in the log.
func (g *Group) bootstrap() error {
	if len(g.config.Bootstrap) == 0 || g.config.Seed != nil {
		return nil
	}
	last, err := g.logs.LastIndex()
	if err != nil {
		return err
	}
	vote := g.votes.durableVote()
	if _, ok := g.snapshots.ownRecord(); ok || last > 0 || vote.Term > 1 || vote.VoteTerm > 0 {
		return nil
	}
	if err := g.votes.SetUint64([]byte(keyCurrentTerm), 1); err != nil {
		return err
	}
	return g.logs.StoreLog(&raft.Log{Index: 1, Term: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(firstConfiguration(g.config.Bootstrap))})
}

// firstConfiguration returns the list of voters of a new group.
func firstConfiguration(voters []NodeID) (c raft.Configuration) {
	for _, node := range voters {
		c.Servers = append(c.Servers, raft.Server{Suffrage: raft.Voter, ID: raft.ServerID(node), Address: raft.ServerAddress(node)})
	}
	return c
}

// supervise runs the watch, restarts the library and ends the group.
func (g *Group) supervise(inc *incarnation) {
	defer close(g.ended)
	ticker := time.NewTicker(g.settings.Tick)
	defer ticker.Stop()
	for {
		select {
		case <-g.closing:
			g.stopAndClose(inc)
			return
		case <-g.failing:
			g.logger.Error("group has ended", "err", g.Err())
			g.stopAndClose(inc)
			return
		case <-inc.observations:
			g.sendHint()
		case <-ticker.C:
			g.watch.advanceClock(time.Now())
			v := g.watch.findStall(g, inc)
			switch {
			case v.end != nil:
				g.fail(v.end)
			case v.restart != nil:
				g.askRestart(v.restart)
			default:
				g.watch.snapshotIfDue(g, inc)
			}
		case reason := <-g.again:
			g.logger.Warn("group is restarted", "err", reason)
			next, err := g.restartLibrary(inc)
			if err != nil {
				g.fail(fmt.Errorf("restart: %w", err))
			} else {
				inc = next
			}
		}
	}
}

// stopAndRestart stops the library at once and lets supervise restart it. It may be called by the
// library's goroutines, later than LeaderLease after a start: before that a replica that has entries is
// deaf, and its incarnation may not be known yet.
func (g *Group) stopAndRestart(reason error) {
	if inc := g.incarnation(); inc != nil {
		inc.cutAndStop()
	}
	g.askRestart(reason)
}

// askRestart asks supervise for a restart. It does not block: one request is enough.
func (g *Group) askRestart(reason error) {
	select {
	case g.again <- reason:
	default:
	}
}

// restartLibrary replaces the library. The files stay open, and the machine goes on.
func (g *Group) restartLibrary(inc *incarnation) (*incarnation, error) {
	g.setCurrent(nil)
	select {
	case <-inc.cutAndStop():
	case <-time.After(stopLimit):
		return nil, errStuck
	}
	if err := g.emptyUselessLog(); err != nil {
		return nil, err
	}
	next, err := g.startLibrary()
	if err != nil {
		return nil, err
	}
	select { // what was asked of the former run
	case <-g.again:
	default:
	}
	g.mu.Lock()
	g.restarts++
	g.mu.Unlock()
	g.setCurrent(next)
	return next, nil
}

// stopAndClose stops the library and closes the files. If the library waits for the disk, the files are
// closed when the disk answers, and Close does not wait for that.
func (g *Group) stopAndClose(inc *incarnation) {
	g.setCurrent(nil)
	done := make(chan error, 1)
	go func() {
		<-inc.cutAndStop()
		g.background.Wait()
		done <- g.logs.close()
	}()
	select {
	case g.closeErr = <-done:
	case <-time.After(stopLimit):
		g.closeErr = errStuck
	}
}

// fail ends the group with its first error. It does not block, and may be called with locks held.
func (g *Group) fail(err error) {
	g.failOnce.Do(func() {
		g.mu.Lock()
		g.err = err
		g.mu.Unlock()
		close(g.failing)
	})
}

// Failed is closed when the group ends by itself; Err says why. The owner closes the group. A storage
// error or ErrDiskStalled is a reason to end the process: nothing is retried on a file after an error.
func (g *Group) Failed() <-chan struct{} { return g.failing }

// Err returns why the group has ended by itself, nil while it runs.
func (g *Group) Err() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}

// Close stops the replica. Proposals in flight return a LostError. The machine is not used any more
// when Close returns nil; it stays open.
func (g *Group) Close() error {
	g.closeOnce.Do(func() { close(g.closing) })
	<-g.ended
	return g.closeErr
}

// Hints receives a value when the leader may have changed. It is only a hint: the receiver also looks
// at Leader from time to time.
func (g *Group) Hints() <-chan struct{} { return g.hints }

func (g *Group) sendHint() {
	select {
	case g.hints <- struct{}{}:
	default: // one is waiting
	}
}

func (g *Group) incarnation() *incarnation {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.current
}

func (g *Group) setCurrent(inc *incarnation) {
	g.mu.Lock()
	g.current = inc
	g.mu.Unlock()
	g.sendHint()
}
