package fleet

import (
	"cmp"
	"slices"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/lifecycle"
	"github.com/caravan-dag/caravan/executor/workerpb"
)

// Slots is what is known of the slots of all nodes: what they have, and what the attempts of each partition take.
// The Tables of a process share one, under the lock of their caller. The figures of other leaders are as old as the last
// word of a node, and may be wrong: nodes enforce their slots by themselves, so Slots only decides where orders wait.
type Slots struct {
	own    string // the node that orders go to if all fit alike
	nodes  map[string]workerpb.NodeStatus
	tables []*Table // by partition; nil where another node leads
	Moved  uint64   // counts orders that were taken back from a node, since another one had room
}

// NewSlots returns Slots that have yet to hear of nodes. own is the node of this process, which may become known later
// (SetOwn).
func NewSlots(own string, partitions int) *Slots {
	return &Slots{own: own, nodes: map[string]workerpb.NodeStatus{}, tables: make([]*Table, partitions)}
}

// SetOwn says which node is that of this process.
func (s *Slots) SetOwn(node string) { s.own = node }

// SetNode takes in the state of a node. The state belongs to it; Taken has an entry for each partition.
func (s *Slots) SetNode(node string, state workerpb.NodeStatus) {
	state.Taken = slices.Clone(state.Taken)
	s.nodes[node] = state
}

// RemoveNode forgets a node.
func (s *Slots) RemoveNode(node string) { delete(s.nodes, node) }

// setTable makes a table the one that knows what its partition takes.
func (s *Slots) setTable(t *Table) { s.tables[t.config.Partition] = t }

// removeTable says that a partition is not led here any more. Its figures stay until its next leader has told the
// nodes.
func (s *Slots) removeTable(t *Table) {
	p := t.config.Partition
	if s.tables[p] != t {
		return
	}
	for name, state := range s.nodes {
		if int(p) < len(state.Taken) {
			state.Taken[p] = t.TakenAt(name) // SetNode has made the slice ours
		}
	}
	s.tables[p] = nil
}

// taken returns what the attempts of all partitions take of a node.
func (s *Slots) taken(node string) (sum workerpb.Taken) {
	state := s.nodes[node]
	for p, t := range s.tables {
		switch {
		case t != nil:
			sum = sum.Plus(t.TakenAt(node))
		case p < len(state.Taken):
			sum = sum.Plus(state.Taken[p])
		}
	}
	return sum
}

// NodeSlots is the state of a node, with what is taken of it in all.
type NodeSlots struct {
	Capacity workerpb.Amount // zero: not known
	Draining bool
	Taken    workerpb.Taken
}

// Node returns the state of a node.
func (s *Slots) Node(node string) NodeSlots {
	state := s.nodes[node]
	return NodeSlots{Capacity: state.Capacity, Draining: state.Draining, Taken: s.taken(node)}
}

// accepts reports whether a node may be given orders, as far as its state says. A node has to say what it has.
func (s *Slots) accepts(node string) bool {
	state, known := s.nodes[node]
	return known && !state.Draining && state.Capacity.CPUMillis > 0
}

// isKnown reports whether a node has said what it has.
func (s *Slots) isKnown(node string) bool {
	_, known := s.nodes[node]
	return known
}

// hasNodeFor reports whether a node of the cluster is large enough.
func (s *Slots) hasNodeFor(size workerpb.Amount) bool {
	for _, state := range s.nodes {
		if size.FitsInto(state.Capacity) {
			return true
		}
	}
	return false
}

// candidate is a node that accepts orders.
type candidate struct {
	capacity, taken workerpb.Amount
	own             bool
	stalled         bool // see knownWorker
}

// fits reports whether an attempt of this size may start at once.
func (c *candidate) fits(size workerpb.Amount) bool {
	return size.FitsInto(c.capacity.Minus(c.taken))
}

// chooseNode returns the index of the node that an attempt of this size goes to; -1 without a candidate:
//
//  1. Where the attempt may start at once: the node with the least free cores, and then with the least free memory.
//     So the others keep room for large attempts. A node that does not begin what it has (stalled) comes last.
//  2. If it fits nowhere now, the node that has the least to do for its size, where the attempt waits. The queue of a
//     node starts nothing ahead of its first order, so a large attempt gets its room there.
//  3. If no node is large enough, any node, which refuses it and says why.
//
// If nodes are alike, the own one is chosen, or else the first.
func chooseNode(candidates []candidate, size workerpb.Amount) int {
	best := -1
	for i := range candidates {
		if best < 0 || candidates[i].isBetter(&candidates[best], size) {
			best = i
		}
	}
	return best
}

// isBetter reports whether an attempt should go to c rather than to other.
func (c *candidate) isBetter(other *candidate, size workerpb.Amount) bool {
	if a, b := size.FitsInto(c.capacity), size.FitsInto(other.capacity); a != b {
		return a
	}
	switch a, b := c.fits(size), other.fits(size); {
	case a != b:
		return a
	case c.stalled != other.stalled:
		return other.stalled
	case a:
		mine, others := c.capacity.Minus(c.taken), other.capacity.Minus(other.taken)
		if mine != others {
			return mine.CPUMillis < others.CPUMillis || mine.CPUMillis == others.CPUMillis && mine.MemoryBytes < others.MemoryBytes
		}
	default:
		if mine, others := c.load(size), other.load(size); mine != others {
			return mine < others
		}
	}
	return c.own && !other.own
}

// load returns how many times the node is full with the attempt.
func (c *candidate) load(size workerpb.Amount) float64 {
	sum := c.taken.Plus(size)
	load := float64(sum.CPUMillis) / float64(max(c.capacity.CPUMillis, 1))
	if c.capacity.MemoryBytes > 0 {
		load = max(load, float64(sum.MemoryBytes)/float64(c.capacity.MemoryBytes))
	}
	return load
}

// This part has what a Table does with its Slots.

// moveAfterTicks is for how many ticks an order waits at a node that is full before it may move to another one that has
// room.
const moveAfterTicks = 2

// patience returns for how many ticks an order waits at a node that has room for it. The node may not be able to start
// it, or its slots may be in use without this Table knowing it. It doubles with each move.
func (t *Table) patience(a *trackedAttempt) uint64 {
	return uint64(cmp.Or(t.config.PatienceTicks, 10)) << min(a.moves, 6)
}

// TakenAt returns what the attempts of the Table take of a node.
func (t *Table) TakenAt(node string) workerpb.Taken {
	if w := t.workers[node]; w != nil {
		return w.taken
	}
	return workerpb.Taken{}
}

// SessionOf returns the session with a worker; the zero value while it is not led.
func (t *Table) SessionOf(worker string) workerpb.Session {
	if w := t.workers[worker]; w != nil && w.state != sessionNone {
		return w.session
	}
	return workerpb.Session{}
}

// Capacity returns the slots that the engine may grant: those of all nodes that take orders, whoever uses them, and
// what the attempts of other nodes hold, which the engine counts as granted. A node whose session begins again stays
// in the sum, since it accepts orders soon.
func (t *Table) Capacity() (sum workerpb.Amount) {
	for _, w := range t.inOrder {
		switch {
		case w.everRenewed && w.state != sessionNone && t.isUsable(w):
			sum = sum.Plus(t.config.Slots.nodes[w.name].Capacity)
		case w != t.waiting:
			sum = sum.Plus(w.taken.Amount)
		}
	}
	return sum
}

// accepts reports whether attempts may be placed at a worker.
func (t *Table) accepts(w *knownWorker) bool {
	return t.mayOrder(w) && t.isUsable(w) && t.ticks >= w.pausedUntil
}

// longestPause is for how many ticks at most a worker that returns orders gets no further ones.
const longestPause = 8

// pauseOrders lets a worker get no orders for some ticks, since it has returned one unasked: its lease may be over with
// attempts left. It would return the next ones, too, and each return costs a session.
func (t *Table) pauseOrders(w *knownWorker) {
	w.pausedUntil = t.ticks + min(uint64(2)<<w.returns, longestPause)
	w.returns = min(w.returns+1, 4)
}

// hasBegun takes in that an attempt has begun at a worker: it can start what it gets.
func (w *knownWorker) hasBegun() { w.stalled, w.returns, w.pausedUntil = false, 0, 0 }

// isUsable reports whether a worker is heard, and its node has slots and takes orders.
func (t *Table) isUsable(w *knownWorker) bool {
	return t.config.Slots != nil && !w.draining && !w.silent && !w.dead && w.silentTicks <= cmp.Or(t.config.QuietTicks, 3) &&
		t.config.Slots.accepts(w.name)
}

// place gives the order of an attempt to a worker; it is certain that workers do not have it. It waits until a worker
// accepts orders. It costs O(nodes).
func (t *Table) place(a *trackedAttempt) {
	if a.worker != t.waiting { // it does not count at a worker, and keeps its turn
		t.setWorker(a, t.waiting)
	}
	workers, candidates := t.candidates()
	size := sizeOf(a.order)
	i := chooseNode(candidates, size)
	if i < 0 || !size.FitsInto(candidates[i].capacity) && (t.config.Slots.hasNodeFor(size) || t.config.MayGrow != nil && t.config.MayGrow()) {
		return // the node that is large enough is away, or begins a session
	}
	w := workers[i]
	t.setWorker(a, w)
	a.standing, a.placedAt, a.moving = placed, t.ticks, false
	w.link.AddOrder(w.session, a.order)
}

// candidates returns the workers that accept orders. The slices are valid until the next call.
func (t *Table) candidates() ([]*knownWorker, []candidate) {
	t.choice, t.choices = t.choice[:0], t.choices[:0]
	for _, w := range t.inOrder {
		if t.accepts(w) {
			slots := t.config.Slots
			t.choice = append(t.choice, w)
			t.choices = append(t.choices, candidate{capacity: slots.nodes[w.name].Capacity, taken: slots.taken(w.name).Amount, own: w.name == slots.own, stalled: w.stalled})
		}
	}
	return t.choice, t.choices
}

// PlaceWaiting places the orders that wait for a worker. The caller calls it when a node has said what it has.
func (t *Table) PlaceWaiting(at int64) {
	if t.waiting.attempts.first != nil && slices.ContainsFunc(t.inOrder, t.accepts) {
		t.decideFresh(t.waiting, at)
	}
}

// moveWaiting takes orders back that wait at a node while another one has room for them. The first report of the
// next session proves that the node does not have them (isReturned), and then they are placed again.
//
// An order moves from a node where all fits, too, when its patience is over. The patience is long and doubles: on a slow
// machine orders would go round for ever. A node from which an order has moved so is stalled until an attempt begins there.
func (t *Table) moveWaiting() {
	if t.config.Slots == nil {
		return
	}
	workers, candidates := t.candidates()
	for i, w := range workers {
		t.moveFrom(w, candidates, i)
	}
	for _, w := range t.inOrder {
		if t.mayOrder(w) && !t.config.Slots.accepts(w.name) && len(candidates) > 0 { // it is draining
			t.moveFrom(w, candidates, -1)
		}
	}
}

// moveFrom takes those orders back from a worker that another candidate has room for, the last ones first: from a full
// node until the others fit, and else those whose patience is over. self is the worker's index among the candidates, or
// -1 if it is not among them.
func (t *Table) moveFrom(w *knownWorker, candidates []candidate, self int) {
	if w.taken.Waiting == 0 {
		return
	}
	stalled := w.stalled
	for a := w.attempts.last; a != nil; a = a.previous {
		if !a.movable || a.moving || a.killed || a.revoked || a.order == nil || a.standing != placed || a.State() != lifecycle.Queued {
			continue
		}
		size, waited := sizeOf(a.order), t.ticks-a.placedAt
		fits := self >= 0 && candidates[self].taken.FitsInto(candidates[self].capacity)
		isOver := waited >= t.patience(a)
		for i := range candidates {
			c := &candidates[i]
			if i == self || !c.fits(size) || !isOver && (waited < moveAfterTicks || fits && (!stalled || c.stalled)) {
				continue
			}
			c.taken = c.taken.Plus(size)
			if self >= 0 {
				candidates[self].taken = candidates[self].taken.Minus(size)
			}
			if fits {
				w.stalled = true
				a.moves++
			}
			a.moving = true
			t.config.Slots.Moved++
			w.link.AddRevocation(w.session, a.key)
			break
		}
	}
}

// sizeOf returns what an attempt takes of its node.
func sizeOf(o *executor.Order) workerpb.Amount {
	return workerpb.Amount{CPUMillis: max(o.CPUMillis, 0), MemoryBytes: max(o.MemoryBytes, 0)}
}

// account brings the books of the workers in line with an attempt. It is called after each change of the attempt's
// order, state or worker. Attempts whose order is not known are left out: their size is not known either.
func (t *Table) account(a *trackedAttempt) {
	var w *knownWorker
	var taken workerpb.Taken
	if a.order != nil && a.State() != lifecycle.Ended && t.attempts[a.key] == a {
		w, taken.Amount = a.worker, sizeOf(a.order)
		if a.State() == lifecycle.Running {
			taken.Running = 1
		} else {
			taken.Waiting = 1
		}
	}
	if w == a.accountedAt && taken == a.accounted {
		return
	}
	if a.accountedAt != nil {
		a.accountedAt.taken = a.accountedAt.taken.Minus(a.accounted)
	}
	if w != nil {
		w.taken = w.taken.Plus(taken)
	}
	a.accountedAt, a.accounted = w, taken
}

// setWorker moves an attempt to the list of a worker, as the last one.
func (t *Table) setWorker(a *trackedAttempt, w *knownWorker) {
	a.worker.attempts.remove(a)
	w.attempts.push(a)
	a.worker = w
	t.account(a)
}
