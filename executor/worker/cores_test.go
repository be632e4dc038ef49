package worker

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/fleet"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/messages"
)

// This file has the partition's group and its engines, for both cores in a random network: partition of
// this package and fleet.Table. File cores_network_test.go has the network, the machines and their
// workers.

const (
	coreTasks    = 3
	coreAttempts = 5 // a task gives up after the loss of the last one
	coreLease    = 1000
	coreTick     = coreLease / 20
	// coreSilenceTicks are a lease and a quarter, and one more: the first tick may come at once.
	coreSilenceTicks = coreLease*5/4/coreTick + 1
	coreGuardDelay   = coreLease * 3 / 16 // from the deadline to the last process
)

type corePhase uint8

const (
	coreReady corePhase = iota
	coreGranted
	coreCompleted
	coreGaveUp
)

// coreRow is what the group has stored of a task.
type coreRow struct {
	attempt   uint32
	phase     corePhase
	worker    string // of the grant
	grantedAt int64
}

// hasEnd reports whether the row has the end, or the loss, of an attempt.
func (r coreRow) hasEnd(attempt uint32) bool {
	return r.attempt > attempt || r.attempt == attempt && r.phase >= coreCompleted
}

// coreProposal is an entry under way.
type coreProposal struct {
	engine *coreEngine
	task   uint32
	row    coreRow
}

// coreNode is a node of the group. It may lead, may have led without knowing that it does not any more,
// and keeps its connections.
type coreNode struct {
	c           *cores
	rate        int64 // of its clock, in thousandths of the right one
	lastSession uint64
	engine      *coreEngine // nil without one
	links       []*coreLink // open at this end
	nextTick    int64       // by its clock
	frozen      bool
}

// coreEngine is an engine: its rows, and its table.
type coreEngine struct {
	node    *coreNode
	epoch   uint64
	table   *fleet.Table
	slots   *fleet.Slots // nil unless the table chooses workers
	rows    [coreTasks]coreRow
	pending [coreTasks]bool // a proposal is under way, or its outcome is unknown
	resumed bool
	inbox   []executor.Report
}

// cores is everything: a group of nodes, machines with workers, and the frames between them.
type cores struct {
	random   *rand.Rand
	lease    bool
	places   bool // the leaders' tables choose the workers, and rows do not name them
	now      int64
	term     uint64
	leader   *coreNode // of the term; nil without one
	rows     [coreTasks]coreRow
	log      []coreProposal
	grants   int64
	nodes    []*coreNode
	machines []*coreMachine
	declared []string // workers that the operator calls dead
	losses   int      // of machines
	frames   []coreFrame
	starts   map[messages.AttemptKey]int
	counts   map[string]int // of what happened
	broken   error
}

func newCores(seed uint64, lease, places bool) *cores {
	c := &cores{random: rand.New(rand.NewPCG(seed, 7)), lease: lease, places: places, starts: map[messages.AttemptKey]int{}, counts: map[string]int{}}
	for task := range c.rows {
		c.rows[task].attempt = 1
	}
	for range 2 {
		c.nodes = append(c.nodes, &coreNode{c: c, rate: c.randomRate()})
		c.addMachine()
	}
	return c
}

// randomRate returns the rate of a clock: clocks drift apart by less than the margin allows.
func (c *cores) randomRate() int64 { return 985 + c.random.Int64N(31) }

func (c *cores) chance(oneIn int) bool { return c.random.IntN(oneIn) == 0 }

func (c *cores) fail(format string, args ...any) {
	if c.broken == nil {
		c.broken = fmt.Errorf(format, args...)
	}
}

func coreKey(task, attempt uint32) messages.AttemptKey {
	return messages.AttemptKey{Run: 1, Task: task, Attempt: attempt}
}

// step takes a random step. Faults are rare, so that attempts also end.
func (c *cores) step() {
	n, m := c.nodes[c.random.IntN(len(c.nodes))], c.machines[c.random.IntN(len(c.machines))]
	switch roll := c.random.IntN(1000); {
	case roll < 430:
		c.deliverFrame()
	case roll < 500:
		c.passTime()
	case roll < 560:
		c.commitProposal()
	case roll < 700:
		n.stepEngine()
	case roll < 820:
		m.stepWorker()
	case roll < 850:
		m.sendHeartbeat()
	case roll < 880:
		n.connect(m)
	case roll < 890:
		c.breakLink()
	case roll < 905:
		c.noticeBreak()
	case roll < 915:
		m.restartWorker()
	case roll < 950:
		n.changeEngine()
	default:
		c.injectFault(n, m)
	}
}

// injectFault takes a rare step.
func (c *cores) injectFault(n *coreNode, m *coreMachine) {
	switch c.random.IntN(50) {
	case 0, 1:
		c.electLeader(n)
	case 2:
		c.crashNode(n)
	case 3: // the engine fails, while its node leads on
		if !n.frozen {
			n.engine = nil
		}
	case 4, 5:
		n.frozen = !n.frozen
	case 6, 7, 8:
		n.frozen = false
	case 9, 10:
		m.killWorker()
	case 11:
		m.cutPower()
	case 12:
		m.loseMachine()
	case 13, 14:
		m.frozen = !m.frozen
	case 15, 16, 17:
		m.frozen = false
	case 18:
		m.draining = true
	case 19, 20:
		c.declareDeaths()
	}
}

// electLeader makes a node the leader of the next term. What becomes of the entries under way is
// unknown to the former leader.
func (c *cores) electLeader(n *coreNode) {
	if n.frozen || n == c.leader {
		return
	}
	c.resolveLog()
	c.term++
	c.leader = n
	c.counts["elections"]++
}

// resolveLog ends a term: some of the entries under way are committed, and the others are lost.
func (c *cores) resolveLog() {
	for i := range c.log[:c.random.IntN(len(c.log)+1)] {
		c.applyProposal(&c.log[i])
	}
	c.log = nil
}

func (c *cores) applyProposal(p *coreProposal) {
	if row := &c.rows[p.task]; row.phase >= coreCompleted && p.row != *row {
		c.fail("the durable end of task %d was overwritten", p.task)
	} else {
		*row = p.row
	}
}

// commitProposal commits the first entry under way, and tells its engine.
func (c *cores) commitProposal() {
	if len(c.log) == 0 || c.leader == nil || c.leader.frozen {
		return
	}
	p := c.log[0]
	c.log = c.log[1:]
	c.applyProposal(&p)
	e := p.engine
	if e.node.engine != e {
		return
	}
	former := coreKey(p.task, e.rows[p.task].attempt)
	e.rows[p.task], e.pending[p.task] = p.row, false
	switch {
	case p.row.phase == coreGranted:
		e.order(p.task, false)
	case p.row.hasEnd(former.Attempt):
		e.table.Acknowledge(former)
		c.counts["ends"]++
	default:
		c.counts["revocations"]++
	}
}

// crashNode ends a node's process. It is back at once, with new numbers of sessions.
func (c *cores) crashNode(n *coreNode) {
	if n == c.leader {
		c.resolveLog()
		c.leader = nil
	}
	n.engine, n.lastSession, n.frozen = nil, 0, false
	for _, l := range n.links {
		l.openAtNode = false
	}
	n.links = nil
}

// leads reports whether the node leads in the epoch of its engine, as a check against a majority would
// say.
func (n *coreNode) leads() bool {
	return n.engine != nil && n.c.leader == n && n.engine.epoch == n.c.term
}

// changeEngine ends an engine whose node does not lead any more, or begins one on the node that leads,
// when all entries of the term are resolved.
func (n *coreNode) changeEngine() {
	c := n.c
	switch {
	case n.frozen:
	case c.leader == nil && c.chance(3):
		c.electLeader(n)
	case n.engine != nil:
		if !n.leads() && c.chance(3) {
			n.engine = nil
		}
	case c.leader == n && len(c.log) == 0:
		n.beginEngine()
	}
}

func (n *coreNode) beginEngine() {
	c := n.c
	e := &coreEngine{node: n, epoch: c.term, rows: c.rows}
	config := fleet.TableConfig{Epoch: c.term, LastSession: &n.lastSession, Report: func(r executor.Report) { e.inbox = append(e.inbox, r) },
		Complain: func(text, worker string, key messages.AttemptKey) { c.fail("%s: %v at %s", text, key, worker) }}
	if c.lease {
		config.SilenceTicks = coreSilenceTicks
	}
	if c.places {
		e.slots = fleet.NewSlots("", 1)
		config.Slots = e.slots
	}
	e.table = fleet.NewTable(config)
	n.engine = e
	n.nextTick = n.clock() + c.random.Int64N(coreTick)
	for _, name := range c.declared {
		e.table.Died(name, false, nil, nil, c.now)
	}
	for _, l := range n.links {
		e.connect(l)
	}
}

// connect lets the table use a connection.
func (e *coreEngine) connect(l *coreLink) {
	if e.slots != nil {
		e.slots.SetNode(l.worker.name, workerpb.NodeStatus{Capacity: coreSize, Taken: make([]workerpb.Taken, 1)})
	}
	e.table.Connect(l.worker.name, l.worker.predecessors, l)
}

// coreSize is that of an attempt and of a worker: so attempts wait at workers, and move.
var coreSize = workerpb.Amount{CPUMillis: 1000}

// concludeUnplaced concludes that no worker has the attempts that are unplaced, once those of all machines that there
// were have reported.
func (e *coreEngine) concludeUnplaced() {
	for _, m := range e.node.c.machines {
		if !e.table.HasHeard(m.worker.name) {
			return
		}
	}
	e.node.c.counts["conclusions"]++
	e.table.ConcludeUnplaced(e.node.c.now)
}

func (n *coreNode) clock() int64 { return n.c.now * n.rate / 1000 }

// stepEngine lets an engine do something.
func (n *coreNode) stepEngine() {
	e, c := n.engine, n.c
	if e == nil || n.frozen {
		return
	}
	if e.table.HighestEpoch() > c.term {
		c.fail("a worker speaks of epoch %d in term %d", e.table.HighestEpoch(), c.term)
	}
	task := uint32(c.random.IntN(coreTasks))
	row := e.rows[task]
	switch roll := c.random.IntN(20); {
	case !e.resumed:
		e.resume()
	case len(e.inbox) > 0 && roll < 12:
		r := e.inbox[0]
		e.inbox = e.inbox[1:]
		e.takeReport(&r)
	case row.phase == coreReady && roll < 18:
		if len(n.links) > 0 {
			c.grants++
			granted := coreRow{attempt: row.attempt, phase: coreGranted, grantedAt: c.grants}
			if !c.places {
				granted.worker = n.links[c.random.IntN(len(n.links))].worker.name
			}
			e.propose(task, granted)
		}
	case row.phase == coreGranted && roll == 18 && c.chance(8) && !e.pending[task]:
		if key := coreKey(task, row.attempt); c.chance(2) {
			e.table.Kill(key, 0, c.now)
		} else {
			e.table.Revoke(key, c.now)
		}
	case roll == 19 && c.chance(20) && e.pending == [coreTasks]bool{}: // the actor of the run is rebuilt
		e.inbox = nil
		e.resume()
	}
}

// resume orders all live attempts again.
func (e *coreEngine) resume() {
	e.resumed = true
	e.table.ExpectResume(1)
	for task := range e.rows {
		if e.rows[task].phase == coreGranted {
			e.order(uint32(task), true)
		}
	}
	e.table.ResumeDone(1)
}

func (e *coreEngine) order(task uint32, resume bool) {
	row := e.rows[task]
	e.table.Start(&executor.Order{Key: coreKey(task, row.attempt), GrantedAt: row.grantedAt, Resume: resume, CPUMillis: coreSize.CPUMillis}, row.worker, e.node.c.now)
}

// propose proposes the next row of a task. An engine does no more about the task before it knows the
// outcome. It never does when its node does not lead any more.
func (e *coreEngine) propose(task uint32, row coreRow) {
	if e.pending[task] {
		return
	}
	e.pending[task] = true
	if e.node.leads() {
		e.node.c.log = append(e.node.c.log, coreProposal{engine: e, task: task, row: row})
	}
}

// takeReport proposes what a report says.
func (e *coreEngine) takeReport(r *executor.Report) {
	row := e.rows[r.Key.Task]
	switch {
	case r.Kind == executor.Started:
		return
	case row.phase != coreGranted || row.attempt != r.Key.Attempt:
		return
	case r.Kind == executor.Revoked:
		row = coreRow{attempt: row.attempt}
	case r.Record.Result != messages.AttemptLost:
		row.phase = coreCompleted
	case row.attempt == coreAttempts:
		row.phase = coreGaveUp
	default:
		row = coreRow{attempt: row.attempt + 1}
	}
	e.propose(r.Key.Task, row)
}

// hasEnded reports whether all tasks have.
func (c *cores) hasEnded() bool {
	for _, row := range c.rows {
		if row.phase < coreCompleted {
			return false
		}
	}
	return true
}

// TestCoresObeyTheModel lets partition and fleet.Table meet in a random network, with the faults of
// package internal/model: frames are repeated, reordered and lost, nodes, engines, workers and machines
// fail, power is cut, processes freeze, and clocks drift. It checks the properties of the model at each
// step, in many histories. A failure names the seed.
func TestCoresObeyTheModel(t *testing.T) {
	total := 4_000_000
	if testing.Short() {
		total = 1_000_000
	}
	for name, mode := range map[string]struct{ lease, places bool }{
		"with leases": {true, false}, "without leases": {false, false}, "placed by leaders": {true, true},
	} {
		t.Run(name, func(t *testing.T) {
			counts, ended, seed := map[string]int{}, 0, uint64(0)
			for steps := 0; steps < total; seed++ {
				c := newCores(seed, mode.lease, mode.places)
				for step := 0; step < 100000 && !c.hasEnded(); step++ {
					if c.step(); c.broken != nil {
						t.Fatalf("seed %d, step %d: %v", seed, step, c.broken)
					}
					steps++
				}
				if c.hasEnded() {
					ended++
				}
				for what, n := range c.counts {
					counts[what] += n
				}
			}
			t.Logf("seeds 0 to %d; %d histories have ended; %v", seed-1, ended, counts)
			if ended*2 < int(seed) {
				t.Errorf("%d of %d histories have ended: the steps are too rare, or the cores get stuck", ended, seed)
			}
			for _, what := range []string{"starts", "ends", "revocations", "elections", "orders that came back", "recoveries"} {
				if counts[what] == 0 {
					t.Errorf("the histories lack %s", what)
				}
			}
			for _, what := range []string{"moves", "conclusions"} {
				if mode.places && counts[what] == 0 {
					t.Errorf("the histories lack %s", what)
				}
			}
		})
	}
}
