package fleet

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/messages"
)

// cores returns an amount of whole cores and memory.
func cores(n, memory int64) workerpb.Amount {
	return workerpb.Amount{CPUMillis: 1000 * n, MemoryBytes: memory}
}

func TestChooseNode(t *testing.T) {
	none := workerpb.Amount{}
	for _, c := range []struct {
		what  string
		nodes []candidate
		size  workerpb.Amount
		want  int
	}{
		{"no node", nil, cores(1, 1), -1},
		{"the tightest", []candidate{{cores(4, 9), none, true, false}, {cores(4, 9), cores(2, 0), false, false}, {cores(4, 9), cores(1, 0), false, false}}, cores(1, 1), 1},
		{"the one that fits, not a tighter one that is full", []candidate{{cores(2, 9), cores(2, 2), true, false}, {cores(8, 9), none, false, false}}, cores(1, 1), 1},
		{"memory counts as cores do", []candidate{{cores(2, 9), cores(1, 9), true, false}, {cores(2, 9), none, false, false}}, cores(1, 1), 1},
		{"as many cores, less memory", []candidate{{cores(2, 9), none, true, false}, {cores(2, 9), cores(0, 5), false, false}}, cores(1, 1), 1},
		{"the own one of equals", []candidate{{cores(2, 9), none, false, false}, {cores(2, 9), none, true, false}, {cores(2, 9), none, false, false}}, cores(1, 1), 1},
		{"the first of equals", []candidate{{cores(2, 9), none, false, false}, {cores(2, 9), none, false, false}}, cores(1, 1), 0},
		{"all are full: the one with the least to do", []candidate{{cores(2, 9), cores(4, 0), true, false}, {cores(2, 9), cores(3, 0), false, false}}, cores(1, 1), 1},
		{"all are full: for its size", []candidate{{cores(2, 9), cores(3, 0), true, false}, {cores(8, 9), cores(9, 0), false, false}}, cores(1, 1), 1},
		{"all are full: the memory is the scarce part", []candidate{{cores(4, 10), cores(4, 30), true, false}, {cores(4, 10), cores(8, 0), false, false}}, cores(1, 1), 1},
		{"one that starts what it gets, not a tighter one that does not", []candidate{{cores(2, 9), none, true, true}, {cores(8, 9), none, false, false}}, cores(1, 1), 1},
		{"a full one rather than one that is full and starts nothing", []candidate{{cores(2, 9), cores(2, 0), true, true}, {cores(2, 9), cores(3, 0), false, false}}, cores(1, 1), 1},
		{"one that starts nothing, if all others are full", []candidate{{cores(2, 9), none, true, true}, {cores(2, 9), cores(2, 0), false, false}}, cores(1, 1), 0},
		{"too large for all but a full one", []candidate{{cores(2, 9), none, true, false}, {cores(4, 9), cores(4, 0), false, false}}, cores(4, 1), 1},
		{"too large for all", []candidate{{cores(2, 9), cores(2, 0), true, false}, {cores(2, 9), cores(2, 0), false, false}}, cores(4, 1), 0},
	} {
		if got := chooseNode(c.nodes, c.size); got != c.want {
			t.Errorf("%s: %d, want %d", c.what, got, c.want)
		}
	}
}

// grid is some nodes, and the leaders of some partitions on one process each. Links lose nothing and keep the order.
// Nodes start what fits, in the order of their queues.
type grid struct {
	t       *testing.T
	random  *rand.Rand
	nodes   []*gridNode
	engines []*gridEngine
	placed  int
	moved   int
	ahead   int // orders that were placed where they have to wait
	changes int
	lost    int
}

// gridNode is a node, whose agent obeys the newest leader of each partition.
type gridNode struct {
	g        *grid
	name     string
	capacity workerpb.Amount
	draining bool
	sessions []workerpb.Session // by partition
	taken    []workerpb.Taken   // as the leaders have said
	queue    []*executor.Order
	running  map[messages.AttemptKey]*executor.Order
	ended    map[messages.AttemptKey]*executor.Order // not acknowledged
	inbox    []func()
}

// gridEngine is the engine of a partition, whose rows survive a change of leader.
type gridEngine struct {
	g         *grid
	partition int
	epoch     uint64
	table     *Table
	slots     *Slots
	session   uint64
	inbox     []func()
	granted   map[messages.AttemptKey]*executor.Order
	again     []messages.AttemptKey // to grant again: given back, or lost with the next number
	next      uint32
	starts    map[uint32]int // processes by task: attempts must not overlap, and none is started twice
}

// gridLink is the link of a leader to a node.
type gridLink struct {
	e     *gridEngine
	n     *gridNode
	table *Table
}

func newGrid(t *testing.T, seed uint64) *grid {
	g := &grid{t: t, random: rand.New(rand.NewPCG(seed, 3))}
	partitions := 1 + g.random.IntN(3)
	for i := range 2 + g.random.IntN(3) {
		g.nodes = append(g.nodes, &gridNode{g: g, name: fmt.Sprint("n", i), capacity: cores(1+g.random.Int64N(4), 8+g.random.Int64N(8)),
			sessions: make([]workerpb.Session, partitions), taken: make([]workerpb.Taken, partitions),
			running: map[messages.AttemptKey]*executor.Order{}, ended: map[messages.AttemptKey]*executor.Order{}})
	}
	for p := range partitions {
		e := &gridEngine{g: g, partition: p, granted: map[messages.AttemptKey]*executor.Order{}, starts: map[uint32]int{}}
		g.engines = append(g.engines, e)
		e.begin()
	}
	return g
}

// begin begins an engine of the next epoch, on a process that knows nothing yet.
func (e *gridEngine) begin() {
	if e.table != nil {
		e.table.Close()
	}
	e.epoch++
	e.inbox, e.slots = nil, NewSlots(e.g.nodes[e.g.random.IntN(len(e.g.nodes))].name, len(e.g.nodes[0].sessions))
	e.table = NewTable(TableConfig{Partition: uint32(e.partition), Epoch: e.epoch, LastSession: &e.session, SilenceTicks: 1 << 30,
		Slots: e.slots, Report: e.takeReport, Complain: func(text, worker string, key messages.AttemptKey) {
			e.g.t.Errorf("%s: %v at %s", text, key, worker)
		}})
	e.table.ExpectResume(messages.RunID(e.partition))
	for _, key := range slices.SortedFunc(maps.Keys(e.granted), compareTasks) {
		o := *e.granted[key]
		o.Resume = true
		e.table.Start(&o, Unplaced, 1)
	}
	e.table.ResumeDone(messages.RunID(e.partition))
	for _, n := range e.g.nodes {
		n.tellState(e)
		e.table.Connect(n.name, nil, &gridLink{e, n, e.table})
	}
}

func compareTasks(a, b messages.AttemptKey) int {
	return int(a.Task) - int(b.Task)
}

// takeReport is the engine's sink. It does not call the Table.
func (e *gridEngine) takeReport(r executor.Report) {
	if e.granted[r.Key] == nil || r.Kind == executor.Started {
		return
	}
	delete(e.granted, r.Key)
	switch {
	case r.Kind == executor.Revoked:
		e.again = append(e.again, r.Key)
	case r.Record.Result == messages.AttemptLost:
		e.g.lost++
		r.Key.Attempt++
		e.again = append(e.again, r.Key)
	}
	table := e.table
	e.inbox = append(e.inbox, func() { table.Acknowledge(r.Key) })
}

// grant starts an attempt if the capacity allows it, as a dispatcher does.
func (e *gridEngine) grant() {
	var sum workerpb.Amount
	for _, o := range e.granted {
		sum = sum.Plus(sizeOf(o))
	}
	size := cores(1+e.g.random.Int64N(2), e.g.random.Int64N(4))
	if !sum.Plus(size).FitsInto(e.table.Capacity()) {
		return
	}
	key := messages.AttemptKey{Run: messages.RunID(e.partition), Task: e.next, Attempt: 1}
	if len(e.again) > 0 {
		key, e.again = e.again[0], e.again[1:]
	} else {
		e.next++
	}
	o := &executor.Order{Key: key, GrantedAt: 5, CPUMillis: size.CPUMillis, MemoryBytes: size.MemoryBytes}
	e.granted[key] = o
	e.table.Start(o, Unplaced, 1)
}

func (l *gridLink) send(do func()) { l.n.inbox = append(l.n.inbox, do) }

// tell lets the node report in a session.
func (l *gridLink) tell(s workerpb.Session, fill func(*workerpb.PartitionReport)) {
	r := &workerpb.PartitionReport{Partition: s.Partition, Epoch: s.Epoch, Session: s.Number}
	fill(r)
	l.e.inbox = append(l.e.inbox, func() {
		if l.e.table != l.table {
			return
		}
		if err := l.table.Hear(l.n.name, l, r, 1); err != nil {
			l.e.g.t.Error(err)
		}
		if r.Synced && !slices.ContainsFunc(l.e.g.nodes, func(n *gridNode) bool { return !l.table.HasHeard(n.name) }) {
			l.table.ConcludeUnplaced(1)
		}
	})
}

func (l *gridLink) AddLead(s workerpb.Session) {
	l.send(func() {
		n := l.n
		if former := n.sessions[s.Partition]; s.Epoch < former.Epoch || s.Epoch == former.Epoch && s.Number <= former.Number {
			return
		}
		n.sessions[s.Partition] = s
		l.tell(s, func(r *workerpb.PartitionReport) {
			for _, o := range n.queue {
				if int(o.Key.Run) == l.e.partition {
					r.AddQueued(o.Key, 5)
				}
			}
			for _, key := range slices.SortedFunc(maps.Keys(n.running), compareTasks) {
				if int(key.Run) == l.e.partition {
					r.AddStarted(key, 1, 0, 5)
				}
			}
			for _, key := range slices.SortedFunc(maps.Keys(n.ended), compareTasks) {
				if int(key.Run) == l.e.partition {
					r.AddFinished(gridEnd(key))
				}
			}
			r.Synced = true
		})
		l.e.inbox = append(l.e.inbox, func() { l.heartbeat() })
	})
}

// heartbeat renews the lease.
func (l *gridLink) heartbeat() {
	if l.e.table == l.table {
		l.table.Heartbeat(l.n.name)
		l.table.Renew(l.n.name, 1, 1)
	}
}

func gridEnd(key messages.AttemptKey) []byte {
	return workerpb.AppendFinished(nil, &executor.Report{Key: key, Kind: executor.Finished, GrantedAt: 5, At: 2,
		Record: messages.AttemptRecord{Task: key.Task, Attempt: key.Attempt, Start: 1, Stop: 2}})
}

func (l *gridLink) AddRenewal(uint32, uint64, uint64) {}

// AddOrder checks that the node has room, or that no node has.
func (l *gridLink) AddOrder(s workerpb.Session, o *executor.Order) {
	g := l.e.g
	g.placed++
	if l.n.draining && l.e.slots.Node(l.n.name).Draining {
		g.t.Errorf("%v goes to %s, which is draining", o.Key, l.n.name)
	}
	if state := l.e.slots.Node(l.n.name); !state.Taken.Amount.FitsInto(state.Capacity) {
		g.ahead++
		workers, others := l.e.table.candidates()
		for i := range others {
			if c := others[i]; workers[i].name != l.n.name && c.fits(sizeOf(o)) {
				g.t.Errorf("%v waits at %s while %s has room", o.Key, l.n.name, workers[i].name)
			}
		}
	}
	copied := *o
	l.send(func() {
		n := l.n
		if n.sessions[s.Partition] != s {
			return // ignored
		}
		if n.draining {
			l.tell(s, func(r *workerpb.PartitionReport) { r.AddRevoked(o.Key, 1) })
			return
		}
		n.queue = append(n.queue, &copied)
		n.startQueued()
	})
}

// startQueued starts what fits, in the order of the queue.
func (n *gridNode) startQueued() {
	for len(n.queue) > 0 {
		o := n.queue[0]
		used := sizeOf(o)
		for _, other := range n.running {
			used = used.Plus(sizeOf(other))
		}
		if len(n.running) > 0 && !used.FitsInto(n.capacity) {
			return
		}
		n.queue = n.queue[1:]
		n.running[o.Key] = o
		e := n.g.engines[o.Key.Run]
		if e.starts[o.Key.Task]++; e.starts[o.Key.Task] > 1 {
			n.g.t.Errorf("%v begins while an attempt of its task runs, or has ended", o.Key)
		}
		n.tell(e, func(r *workerpb.PartitionReport) { r.AddStarted(o.Key, 1, 0, 5) })
	}
}

// tell reports in the present session of a partition.
func (n *gridNode) tell(e *gridEngine, fill func(*workerpb.PartitionReport)) {
	if s := n.sessions[e.partition]; s.Epoch == e.epoch {
		w := e.table.workers[n.name]
		w.link.(*gridLink).tell(s, fill)
	}
}

func (l *gridLink) AddKill(s workerpb.Session, key messages.AttemptKey, _ time.Duration) {
	l.e.g.t.Errorf("%v is killed", key)
}

func (l *gridLink) AddRevocation(s workerpb.Session, key messages.AttemptKey) {
	l.e.g.moved++
	l.send(func() {
		n := l.n
		i := slices.IndexFunc(n.queue, func(o *executor.Order) bool { return o.Key == key })
		if n.sessions[s.Partition] != s || i < 0 {
			return
		}
		n.queue = slices.Delete(n.queue, i, i+1)
		l.tell(s, func(r *workerpb.PartitionReport) { r.AddRevoked(key, 1) })
		n.startQueued()
	})
}

func (l *gridLink) AddAcknowledgement(_ workerpb.Session, key messages.AttemptKey) {
	l.send(func() { delete(l.n.ended, key) })
}

// endOne ends an attempt that runs.
func (n *gridNode) endOne() {
	for _, key := range slices.SortedFunc(maps.Keys(n.running), compareTasks) {
		o := n.running[key]
		delete(n.running, key)
		n.ended[key] = o
		e := n.g.engines[key.Run]
		n.tell(e, func(r *workerpb.PartitionReport) { r.AddFinished(gridEnd(key)) })
		n.startQueued()
		return
	}
}

// tellState tells a leader the state of the node.
func (n *gridNode) tellState(e *gridEngine) {
	e.slots.SetNode(n.name, workerpb.NodeStatus{Capacity: n.capacity, Draining: n.draining, Taken: n.taken})
	if e.table != nil {
		e.table.PlaceWaiting(1)
	}
}

// exchange lets the leaders tell the nodes what their attempts take, and the nodes all leaders.
func (g *grid) exchange() {
	for _, e := range g.engines {
		for _, n := range g.nodes {
			if e.table.SessionOf(n.name).Number != 0 {
				n.taken[e.partition] = e.table.TakenAt(n.name)
			}
		}
	}
	for _, n := range g.nodes {
		for _, e := range g.engines {
			n.tellState(e)
		}
	}
}

// deliver takes the first thing of an inbox, and reports whether there was one.
func deliver(inbox *[]func()) bool {
	if len(*inbox) == 0 {
		return false
	}
	do := (*inbox)[0]
	*inbox = (*inbox)[1:]
	do()
	return true
}

func (g *grid) tick() {
	for _, e := range g.engines {
		e.table.Tick(1)
		for _, n := range g.nodes {
			link := e.table.workers[n.name].link.(*gridLink)
			e.inbox = append(e.inbox, link.heartbeat)
		}
	}
	g.exchange()
}

func (g *grid) step() {
	e, n := g.engines[g.random.IntN(len(g.engines))], g.nodes[g.random.IntN(len(g.nodes))]
	switch roll := g.random.IntN(100); {
	case roll < 35:
		deliver(&n.inbox)
	case roll < 70:
		deliver(&e.inbox)
	case roll < 82:
		e.grant()
	case roll < 90:
		n.endOne()
	case roll < 94:
		g.tick()
	case roll < 97:
		g.exchange()
	case roll == 97 && g.random.IntN(4) == 0:
		n.draining = !n.draining
	case roll == 98 && g.random.IntN(4) == 0:
		g.changes++
		e.begin()
	}
	for _, e := range g.engines {
		e.check()
	}
}

// check compares the books of the workers with the attempts.
func (e *gridEngine) check() {
	want := map[*knownWorker]workerpb.Taken{}
	for _, a := range e.table.attempts {
		if a.order != nil && a.end == nil {
			taken := workerpb.Taken{Amount: sizeOf(a.order), Waiting: 1}
			if a.StartedAt != 0 {
				taken.Waiting, taken.Running = 0, 1
			}
			want[a.worker] = want[a.worker].Plus(taken)
		}
	}
	for _, w := range e.table.inOrder {
		if w.taken != want[w] {
			e.g.t.Errorf("the books of %q have %+v, its attempts take %+v", w.name, w.taken, want[w])
		}
	}
}

// settle lets all that is under way arrive, and time pass.
func (g *grid) settle() {
	for range 12 + longestPause {
		g.tick()
		for again := true; again; {
			again = false
			for _, n := range g.nodes {
				again = deliver(&n.inbox) || again
			}
			for _, e := range g.engines {
				again = deliver(&e.inbox) || again
			}
		}
	}
}

// checkIdle fails if an order waits while a node has room for it.
func (g *grid) checkIdle() {
	for _, n := range g.nodes {
		for _, o := range n.queue {
			for _, other := range g.nodes {
				free := other.capacity
				for _, x := range other.running {
					free = free.Minus(sizeOf(x))
				}
				for _, x := range other.queue {
					free = free.Minus(sizeOf(x))
				}
				if other != n && !other.draining && sizeOf(o).FitsInto(free) {
					g.t.Errorf("%v waits at %s while %s has %v free", o.Key, n.name, other.name, free)
				}
			}
		}
	}
	for _, e := range g.engines {
		for a := range e.table.waiting.attempts.all() {
			size := sizeOf(a.order)
			if slices.ContainsFunc(g.nodes, func(n *gridNode) bool { return !n.draining && size.FitsInto(n.capacity) }) {
				g.t.Errorf("partition %d: %v waits without a node", e.partition, a.key)
			}
		}
	}
}

// TestPlacementInRandomGrids lets leaders place attempts at random nodes, with changes of leaders and nodes that drain
// in the middle. An order goes where it may start at once, as far as its leader knows, if there is such a node. Once
// the leaders have heard all, no order waits while a node has room. No task is begun twice, and each one ends.
func TestPlacementInRandomGrids(t *testing.T) {
	total := &grid{}
	for seed := range uint64(100) {
		g := newGrid(t, seed)
		for range 1500 {
			g.step()
		}
		g.settle()
		g.checkIdle()
		for _, n := range g.nodes {
			n.draining = false
		}
		for range 2000 {
			g.settle()
			left := 0
			for _, e := range g.engines {
				left += len(e.granted) + len(e.again)
				if len(e.again) > 0 {
					e.grant()
				}
			}
			if left == 0 {
				break
			}
			for _, n := range g.nodes {
				n.endOne()
			}
		}
		for _, e := range g.engines {
			if len(e.granted)+len(e.again) > 0 || len(e.starts) != int(e.next) {
				t.Errorf("partition %d: %d tasks of %d are left, %d were begun", e.partition, len(e.granted)+len(e.again), e.next, len(e.starts))
			}
		}
		total.placed, total.moved, total.ahead = total.placed+g.placed, total.moved+g.moved, total.ahead+g.ahead
		total.changes, total.lost = total.changes+g.changes, total.lost+g.lost
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	t.Logf("placed %d, of them %d to wait, moved %d; %d changes of leaders, %d attempts lost", total.placed, total.ahead, total.moved, total.changes, total.lost)
	if total.placed == 0 || total.moved == 0 || total.ahead == 0 || total.changes == 0 || total.lost == 0 {
		t.Error("the histories lack something")
	}
}
