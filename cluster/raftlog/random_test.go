package raftlog_test

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/cluster/raftlog/raftlogtest"
	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/internal/testenv"
)

var (
	rounds = flag.Int("rounds", 20, "rounds of TestRandomFaults; a fifth of them with -short")
	seed   = flag.Uint64("seed", 0, "seed of TestRandomFaults; 0: a random one")
)

// place is where clients find a replica while the test closes and opens it.
type place struct {
	mu      sync.RWMutex
	group   *raftlog.Group
	machine *raftlogtest.Machine
	epoch   uint64 // of its last Takeover
}

func (p *place) get() (*raftlog.Group, *raftlogtest.Machine, uint64) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.group, p.machine, p.epoch
}

// history is what clients have seen.
type history struct {
	mu                 sync.Mutex
	acknowledged, lost []string // keys; of lost ones the outcome is known
	unknown            int
	reads              int
}

// TestRandomFaults runs clients against a group whose replicas crash, are cut off, freeze, fail and hand
// over at random. At the end all replicas are equal, hold every acknowledged row, and no row of a
// proposal that was refused. Every read under a lease has seen all that was acknowledged before it.
func TestRandomFaults(t *testing.T) {
	t.Parallel()
	s, all := *seed, *rounds
	if s == 0 {
		s = rand.Uint64()
	}
	t.Logf("go test ./cluster/raftlog -run TestRandomFaults -seed %d -rounds %d", s, all)
	if testing.Short() {
		all /= 5
	}
	// Most of a round is waiting, so several groups have theirs at a time.
	const groups = 4
	for i := range groups {
		t.Run(fmt.Sprint("group", i), func(t *testing.T) {
			t.Parallel()
			disturbGroup(t, s+uint64(i), (all+groups-1)/groups)
		})
	}
}

// disturbGroup is the rounds of one group.
func disturbGroup(t *testing.T, seed uint64, rounds int) {
	rng := rand.New(rand.NewPCG(seed, 1))
	settings := fastSettings()
	settings.TrailingEntries, settings.SnapshotBytes = 50, 16<<10
	c := newCluster(t, 3, settings)
	testenv.RepeatWithin(t, patience, "a leader accepts proposals", func() bool {
		leader, epoch := c.lead()
		_, err := leader.group.Propose(epoch, []byte("register=0\n"))
		return err == nil
	})
	places := map[*replica]*place{}
	for _, r := range c.all {
		places[r] = &place{group: r.group, machine: r.machine}
	}
	h := &history{}
	stop := runClients(places, h)
	for range rounds {
		c.disturb(rng, places)
	}
	c.network.HealAll()
	c.lead()
	time.AfterFunc(300*time.Millisecond, stop.start)
	stop.wait()
	for r, p := range places { // a fault may have ended one
		if p.group.Err() != nil {
			c.restart(r, p)
		}
	}
	c.converge()
	for _, key := range h.acknowledged {
		for _, r := range c.all {
			if r.machine.Row(key) == "" {
				t.Errorf("%s: the acknowledged row %s is missing", r.id, key)
			}
		}
	}
	for _, key := range h.lost {
		for _, r := range c.all {
			if r.machine.Row(key) != "" {
				t.Errorf("%s: the refused row %s is there", r.id, key)
			}
		}
	}
	t.Logf("%d rounds of faults: %d acknowledged, %d refused, %d unknown, %d reads", rounds, len(h.acknowledged), len(h.lost), h.unknown, h.reads)
	for _, r := range c.all {
		t.Logf("%s: %+v", r.id, r.group.Status())
	}
	if len(h.acknowledged) == 0 || h.reads == 0 {
		t.Error("the group did no work")
	}
	for _, problem := range stop.problems() {
		t.Error(problem)
	}
}

// restart closes a replica and opens it again from what was synced.
func (c *cluster) restart(r *replica, p *place) {
	r.files.Reset()
	p.mu.Lock()
	defer p.mu.Unlock()
	c.crash(r)
	c.open(r)
	p.group, p.machine, p.epoch = r.group, r.machine, 0
}

// disturb makes one fault, lets it last, and undoes it.
func (c *cluster) disturb(rng *rand.Rand, places map[*replica]*place) {
	r := c.all[rng.IntN(len(c.all))]
	other := c.all[rng.IntN(len(c.all))]
	if rng.IntN(2) == 0 { // leaders are the interesting ones
		for _, l := range c.all {
			if l.group.Status().Leads {
				r = l
			}
		}
	}
	pause := func(longest time.Duration) {
		timer := time.NewTimer(time.Duration(rng.Int64N(int64(longest))))
		<-timer.C
	}
	switch rng.IntN(8) {
	case 0:
		c.restart(r, places[r])
	case 1:
		c.network.Isolate(r.id, c.ids()...)
		pause(1500 * time.Millisecond)
	case 2: // one way
		c.network.Cut(r.id, other.id)
		pause(1500 * time.Millisecond)
	case 3: // frozen
		release := r.blockSync()
		c.network.Isolate(r.id, c.ids()...)
		pause(1500 * time.Millisecond)
		release()
	case 4:
		_ = r.group.Transfer(c.t.Context(), "") // refused unless it leads
	case 5:
		r.files.Add(faults.Rule{Op: faults.Sync, Path: "*.wal", N: 1, Err: errors.New("injected EIO")})
		pause(500 * time.Millisecond)
		c.restart(r, places[r])
	case 6:
		var calls atomic.Int64
		refuse := func() error {
			if calls.Add(1)%4 == 0 {
				return errors.New("refused by the test")
			}
			return nil
		}
		r.refuse.Store(&refuse)
		pause(500 * time.Millisecond)
		r.refuse.Store(nil)
	case 7: // all power is lost
		for _, r := range c.all {
			places[r].mu.Lock()
			c.crash(r)
		}
		for _, r := range c.all {
			c.open(r)
			p := places[r]
			p.group, p.machine, p.epoch = r.group, r.machine, 0
			p.mu.Unlock()
		}
	}
	pause(600 * time.Millisecond)
	c.network.HealAll()
	pause(300 * time.Millisecond)
}

// clients are running goroutines.
type clients struct {
	done  chan struct{}
	once  sync.Once
	group sync.WaitGroup

	mu    sync.Mutex
	found []string
}

func (c *clients) start() { c.once.Do(func() { close(c.done) }) }

func (c *clients) wait() { c.group.Wait() }

func (c *clients) problems() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.found
}

// runClients starts an engine at every replica, four writers, and one reader at every replica.
func runClients(places map[*replica]*place, h *history) *clients {
	c := &clients{done: make(chan struct{})}
	var number, floor atomic.Int64 // of keys; of the register as acknowledged
	tick := func() bool {
		timer := time.NewTimer(2 * time.Millisecond)
		defer timer.Stop()
		select {
		case <-c.done:
			return false
		case <-timer.C:
			return true
		}
	}
	for _, p := range places {
		c.group.Go(func() { // the host: takes over when its replica leads
			for tick() {
				group, _, epoch := p.get()
				_, term, ok := group.Leader()
				if node, _, _ := group.Leader(); !ok || term == epoch || !group.Status().Leads || node == "" {
					continue
				}
				if epoch, _, err := group.Takeover(); err == nil {
					p.mu.Lock()
					if p.group == group {
						p.epoch = epoch
					}
					p.mu.Unlock()
				}
			}
		})
		for range 2 {
			c.group.Go(func() { // a writer of keys of its own
				for tick() {
					group, _, epoch := p.get()
					if epoch == 0 || !group.Status().Leads {
						continue
					}
					key := fmt.Sprintf("once-%d", number.Add(1))
					_, err := group.Propose(epoch, []byte(key+"=x\n"))
					h.note(key, err)
				}
			})
		}
		c.group.Go(func() { // a reader of the register
			for tick() {
				group, machine, epoch := p.get()
				if epoch == 0 {
					continue
				}
				least := floor.Load()
				value, _ := strconv.ParseInt(machine.Row("register"), 10, 64)
				if !group.Lease(epoch) {
					continue
				}
				h.mu.Lock()
				h.reads++
				h.mu.Unlock()
				if value < least {
					c.mu.Lock()
					c.found = append(c.found, fmt.Sprintf("a read of epoch %d saw %d, and %d was acknowledged before", epoch, value, least))
					c.mu.Unlock()
				}
			}
		})
	}
	c.group.Go(func() { // the writer of the register
		next := int64(1)
		for tick() {
			for _, p := range places {
				group, _, epoch := p.get()
				if epoch == 0 || !group.Status().Leads {
					continue
				}
				if _, err := group.Propose(epoch, fmt.Appendf(nil, "register=%d\n", next)); err == nil {
					floor.Store(next)
				}
				next++ // whatever became of it: each value is written at most once
			}
		}
	})
	return c
}

func (h *history) note(key string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch lost, unknown := isLost(err); {
	case err == nil:
		h.acknowledged = append(h.acknowledged, key)
	case lost && !unknown:
		h.lost = append(h.lost, key)
	default:
		h.unknown++
	}
}
