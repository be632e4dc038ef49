package raftlog_test

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/cluster/raftlog/raftlogtest"
	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/internal/vfs"
)

func TestMain(m *testing.M) { testenv.VerifyNoLeaks(m, raftlogtest.LibraryLeaks()...) }

// patience is the deadline of a step that needs an election, or several on a busy machine.
const patience = 2 * time.Minute

// fastSettings are shorter than the defaults by a factor of two to three. With shorter ones a busy machine
// changes leaders in the middle of tests that need one.
func fastSettings() raftlog.Settings {
	s := raftlog.DefaultSettings()
	s.Heartbeat, s.Election = 400*time.Millisecond, 400*time.Millisecond
	s.LeaderLease, s.ReadLease = 400*time.Millisecond, 250*time.Millisecond
	s.Request = time.Second
	s.CommitStall, s.ReplicationStall, s.TransferStall = 2*time.Second, 3*time.Second, time.Second
	s.Tick = 20 * time.Millisecond
	s.SegmentBytes = 16 << 10
	return s
}

// withoutWatch are settings whose watch finds no stall, for tests of what makes it unnecessary.
func withoutWatch() raftlog.Settings {
	s := fastSettings()
	s.CommitStall, s.ReplicationStall, s.TransferStall = time.Hour, time.Hour, time.Hour
	return s
}

// replica is one node with one group.
type replica struct {
	id     raftlog.NodeID
	dir    string
	files  *faults.FS
	refuse atomic.Pointer[func() error]
	space  atomic.Pointer[func(received int64) error] // see raftlog.Config
	// released counts the calls of ReleaseSpace.
	released atomic.Int64
	mux      *raftlog.Mux
	machine  *raftlogtest.Machine
	group    *raftlog.Group
	before   func(call string, index uint64) error
	lazy     bool // see raftlogtest.Machine
}

// cluster is the replicas of one group on a network in memory.
type cluster struct {
	t        testing.TB
	network  *raftlogtest.Network
	settings raftlog.Settings
	dir      string
	seed     *raftlog.Seed // of groups that are opened with voters
	all      []*replica
	// isRepeatable says that withGroup runs the test.
	isRepeatable bool
}

// tooSlow is the panic that ends an attempt of withGroup.
type tooSlow struct{}

// withGroup runs a test on a new group of n voters. A machine may be too slow for the times of the group: then
// a leader loses its leadership that the test has not touched. put and expectLead end the test there, and it
// begins again on another group, with times that are twice as long.
func withGroup(t *testing.T, n int, settings raftlog.Settings, test func(c *cluster)) {
	t.Helper()
	const attempts = 4
	for range attempts {
		if c := newCluster(t, n, settings); c.tryTest(test) {
			return
		}
		settings = raftlogtest.WithLongerTimes(settings, 2)
	}
	t.Fatalf("a leader has lost its leadership in each of %d attempts, the last one with a heartbeat time-out of %v or more", attempts, settings.Heartbeat/2)
}

// tryTest reports false if the test ended because the machine was too slow.
func (c *cluster) tryTest(test func(c *cluster)) (isDone bool) {
	c.isRepeatable = true
	defer func() {
		switch cause := recover().(type) {
		case nil:
		case tooSlow:
			c.close()
		default:
			panic(cause)
		}
	}()
	test(c)
	return true
}

// tryAgain ends the test, which begins again if withGroup runs it.
func (c *cluster) tryAgain(why string) {
	c.t.Helper()
	if !c.isRepeatable {
		c.t.Fatal(why)
	}
	c.t.Log("the test begins again: ", why)
	panic(tooSlow{})
}

// expectLead ends the test if a leader that the test has not touched leads no longer.
func (c *cluster) expectLead(r *replica, epoch uint64) {
	c.t.Helper()
	if !r.leadsIn(epoch) {
		c.tryAgain(fmt.Sprintf("%s leads in term %d no longer", r.id, epoch))
	}
}

// await waits for a condition that needs a leader.
func (c *cluster) await(r *replica, epoch uint64, what string, condition func() bool) {
	c.t.Helper()
	testenv.EventuallyWithin(c.t, patience, what, func() bool {
		if condition() {
			return true
		}
		c.expectLead(r, epoch)
		return false
	})
}

// awaitLease waits until a leader may answer reads.
func (c *cluster) awaitLease(r *replica, epoch uint64) {
	c.t.Helper()
	c.await(r, epoch, "the leader has its lease", func() bool { return r.group.Lease(epoch) })
}

// newCluster opens a group of n voters, with longer settings on a busy machine. It checks at the end that all
// is closed.
func newCluster(t testing.TB, n int, settings raftlog.Settings) *cluster {
	t.Helper()
	c := &cluster{t: t, network: raftlogtest.NewNetwork(), settings: raftlogtest.ForThisMachine(settings), dir: t.TempDir()}
	var ids []raftlog.NodeID
	for i := range n {
		ids = append(ids, raftlog.NodeID(fmt.Sprintf("n%d", i+1)))
	}
	t.Cleanup(c.close)
	for _, id := range ids {
		c.open(c.add(id), ids...)
	}
	if n > 0 {
		c.all[rand.IntN(n)].group.Nominate() // without the wait for a former leader
	}
	return c
}

func (c *cluster) add(id raftlog.NodeID) *replica {
	r := &replica{id: id, dir: filepath.Join(c.dir, string(id)), files: faults.New(vfs.OS{})}
	c.all = append(c.all, r)
	return r
}

func (c *cluster) ids() (ids []raftlog.NodeID) {
	for _, r := range c.all {
		ids = append(ids, r.id)
	}
	return ids
}

func testLogger() *slog.Logger {
	if testing.Verbose() && os.Getenv("RAFTLOG_TRACE") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.NewTextHandler(io.Discard, nil))
}

// open starts a replica, as after a crash: from what its machine has synced.
func (c *cluster) open(r *replica, bootstrap ...raftlog.NodeID) {
	c.t.Helper()
	if err := c.tryOpen(r, bootstrap...); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) tryOpen(r *replica, bootstrap ...raftlog.NodeID) (err error) {
	if r.machine, err = raftlogtest.OpenMachine(filepath.Join(r.dir, "rows")); err != nil {
		return err
	}
	r.machine.Before, r.machine.Lazy = r.before, r.lazy
	logger := testLogger().With("node", string(r.id))
	r.mux, err = raftlog.NewMux(raftlog.MuxConfig{Listener: c.network.Listen(r.id), Resolve: c.network.Resolve,
		Dial: c.network.Dial(r.id), Logger: logger})
	if err != nil {
		return err
	}
	config := raftlog.Config{Group: 7, Node: r.id, Dir: filepath.Join(r.dir, "group"), Machine: r.machine, Mux: r.mux,
		Bootstrap: bootstrap, Seed: c.seed, Settings: c.settings, Logger: logger,
		CheckSpace: func(received int64) error {
			if f := r.space.Load(); f != nil {
				return (*f)(received)
			}
			return nil
		},
		ReleaseSpace: func() { r.released.Add(1) }}
	r.group, err = raftlog.Open(config.WithFiles(r.files).WithRefusal(func() error {
		if f := r.refuse.Load(); f != nil {
			return (*f)()
		}
		return nil
	}))
	if err != nil {
		r.mux.Close()
	}
	return err
}

// crash closes a replica without a sync of its machine.
func (c *cluster) crash(r *replica) {
	c.t.Helper()
	if r.group == nil {
		return
	}
	if err := r.group.Close(); err != nil {
		c.t.Error(err)
	}
	r.mux.Close()
	r.group = nil
}

func (c *cluster) close() {
	c.network.HealAll()
	for _, r := range c.all {
		r.files.Reset()
	}
	var wait sync.WaitGroup
	for _, r := range c.all {
		if r.group != nil {
			wait.Go(func() { c.crash(r) })
		}
	}
	wait.Wait()
	if doubles := c.doubles(); len(doubles) > 0 {
		c.t.Errorf("rows were written at two indexes: %v", doubles)
	}
}

func (c *cluster) doubles() (all []string) {
	for _, r := range c.all {
		if r.machine != nil {
			all = append(all, r.machine.Doubles()...)
		}
	}
	return all
}

// lead returns the leader after a Takeover, and its epoch. Replicas of except do not count.
func (c *cluster) lead(except ...*replica) (leader *replica, epoch uint64) {
	c.t.Helper()
	var last error
	isLed := testenv.Poll(patience, func() bool {
		for _, r := range c.all {
			if r.group == nil || contains(except, r) {
				continue
			}
			node, _, ok := r.group.Leader()
			if !ok || node != r.id {
				continue
			}
			if epoch, _, last = r.group.Takeover(); last == nil {
				leader = r
				return true
			}
		}
		return false
	})
	if !isLed {
		c.t.Fatalf("no leader within %v: %v", patience, last)
	}
	return leader, epoch
}

// leadsIn reports whether a replica leads in a term.
func (r *replica) leadsIn(epoch uint64) bool {
	node, term, ok := r.group.Leader()
	return ok && node == r.id && term == epoch
}

func contains(all []*replica, r *replica) bool {
	for _, other := range all {
		if other == r {
			return true
		}
	}
	return false
}

func (c *cluster) followers(leader *replica) (all []*replica) {
	for _, r := range c.all {
		if r != leader && r.group != nil {
			all = append(all, r)
		}
	}
	return all
}

// put proposes one row at a leader and ends the test if that fails.
func (c *cluster) put(r *replica, epoch uint64, key, value string) uint64 {
	c.t.Helper()
	index, err := r.group.Propose(epoch, []byte(key+"="+value+"\n"))
	if err != nil {
		c.expectLeadAfter(r, epoch, err)
		c.t.Fatalf("propose %s: %v", key, err)
	}
	return index
}

// expectLeadAfter is expectLead after a call of a leader that has failed. A group that has ended by itself is
// not one whose machine is too slow.
func (c *cluster) expectLeadAfter(r *replica, epoch uint64, err error) {
	c.t.Helper()
	if lost, _ := isLost(err); (lost || errors.Is(err, raftlog.ErrNotLeader)) && r.group.Err() == nil {
		c.expectLead(r, epoch)
	}
}

// change changes the members of a group.
func (c *cluster) change(leader *replica, epoch uint64, members raftlog.Membership) {
	c.t.Helper()
	if err := leader.group.Change(members); err != nil {
		c.expectLead(leader, epoch)
		c.t.Fatal(err)
	}
}

// converge waits until all open replicas have applied what the leader has, and compares their digests.
func (c *cluster) converge() {
	c.t.Helper()
	var leader *replica
	var index uint64
	testenv.RepeatWithin(c.t, patience, "a leader has all verify their rows", func() bool {
		var epoch uint64
		var err error
		leader, epoch = c.lead()
		if index, err = leader.group.Verify(epoch); err != nil {
			c.t.Log(err) // another election
		}
		return err == nil
	})
	for _, r := range c.all {
		if r.group == nil {
			continue
		}
		testenv.EventuallyWithin(c.t, patience, fmt.Sprintf("%s applies entry %d: %+v, leader %+v", r.id, index, r.group.Status(), leader.group.Status()),
			func() bool { return r.group.Status().Applied >= index })
		if r.machine.Digest() != leader.machine.Digest() {
			c.t.Errorf("the rows of %s and %s differ", r.id, leader.id)
		}
	}
}

// isLost reports whether an error is a LostError, and whether its outcome is unknown.
func isLost(err error) (lost, unknown bool) {
	var e *raftlog.LostError
	if !errors.As(err, &e) {
		return false, false
	}
	return true, e.Unknown
}

// blockSync makes the syncs of a replica's log wait until the returned function is called.
func (r *replica) blockSync() (release func()) {
	released := make(chan struct{})
	r.files.Add(faults.Rule{Op: faults.Sync, Path: "*.wal", Do: func(faults.Call) { <-released }})
	var once sync.Once
	return func() { once.Do(func() { r.files.Reset(); close(released) }) }
}
