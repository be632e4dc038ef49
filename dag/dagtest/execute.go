package dagtest

import (
	"fmt"
	"math/rand/v2"

	"github.com/caravan-dag/caravan/dag"
)

// Execute runs a spec to its end with a simulated executor: up to slots
// attempts at a time, which end in random order, one in failing of them with an
// error (0 = none). It checks at each start that the parents are COMPLETED and
// the attempt is the next one, and at the end that nothing was left that could
// have moved. It needs O(tasks) memory, so it is for large graphs too.
func Execute(s *dag.Spec, seed uint64, slots, failing int) (*dag.Run, error) {
	plan, problems := dag.NewPlan(s, dag.Limits{})
	if len(problems) > 0 {
		return nil, problems
	}
	rules, err := newRules(s, plan)
	if err != nil {
		return nil, err
	}
	x := &execution{run: dag.NewRun(plan, dag.Config{}, 1), rules: rules, now: 1, free: slots, want: map[int]int{}}
	x.attempts = make([]uint32, plan.Tasks)
	x.done = make([]bool, plan.Tasks)
	r := rand.New(rand.NewPCG(seed, 3))
	if err := x.take(x.run.Init()); err != nil {
		return nil, err
	}
	for x.final == 0 {
		x.now++
		event, err := x.next(r, failing)
		if err != nil {
			return nil, err
		}
		if err := x.take(x.run.Apply(event)); err != nil {
			return nil, err
		}
	}
	x.run.Check()
	return x.run, x.ended(slots)
}

// execution is the driver's side of one run.
type execution struct {
	run      *dag.Run
	rules    *rules
	now      int64
	free     int
	want     map[int]int
	live     []dag.Start
	retries  []dag.RetryAt
	attempts []uint32
	done     []bool
	finished []dag.Finished // the newest event, when it was one
	final    dag.RunState
}

// next chooses what happens next.
func (x *execution) next(r *rand.Rand, failing int) (dag.Event, error) {
	x.finished = x.finished[:0]
	for class := range len(x.run.Plan().Classes) {
		if n := min(x.want[class], x.free); n > 0 && (len(x.live) == 0 || r.IntN(2) == 0) {
			n = 1 + r.IntN(n)
			x.free -= n
			return dag.Grant{Class: class, N: n, At: x.now}, nil
		}
	}
	if n := len(x.retries); n > 0 && (len(x.live) == 0 || r.IntN(8) == 0) {
		due := x.retries[n-1]
		x.retries = x.retries[:n-1]
		x.now = max(x.now, due.Due)
		return dag.RetryDue{Task: due.Task, Attempt: due.Attempt, At: x.now}, nil
	}
	if len(x.live) == 0 {
		return nil, fmt.Errorf("nothing can move and the run is %s: %v", x.run.State(), x.run.Counts())
	}
	i := r.IntN(len(x.live))
	a := x.live[i]
	x.live[i] = x.live[len(x.live)-1]
	x.live = x.live[:len(x.live)-1]
	f := dag.Finished{Task: a.Task, Attempt: a.Attempt, OK: failing == 0 || r.IntN(failing) > 0, At: x.now}
	x.finished = append(x.finished, f)
	return f, nil
}

// take carries effects out.
func (x *execution) take(effects []dag.Effect) error {
	for _, f := range x.finished {
		if f.OK {
			x.done[f.Task] = true
			x.rules.completed(f.Task)
		}
	}
	for _, e := range effects {
		switch e := e.(type) {
		case dag.Demand:
			x.want[e.Class] = e.Want
		case dag.Release:
			x.free += e.N
		case dag.Start:
			if x.done[e.Task] || e.Attempt != x.attempts[e.Task]+1 {
				return fmt.Errorf("%s: attempt %d starts after %d, completed: %v", x.run.Plan().TaskName(e.Task), e.Attempt, x.attempts[e.Task], x.done[e.Task])
			}
			x.attempts[e.Task]++
			if !x.rules.mayStart(e.Task) {
				return fmt.Errorf("%s starts before its parents are COMPLETED", x.run.Plan().TaskName(e.Task))
			}
			x.live = append(x.live, e)
		case dag.RetryAt:
			x.retries = append(x.retries, e)
		case dag.RunChanged:
			if e.State >= dag.RunCompleted {
				x.final = e.State
			}
		}
	}
	return nil
}

// ended checks what is left at the end.
func (x *execution) ended(slots int) error {
	if x.free != slots || len(x.live) > 0 {
		return fmt.Errorf("%d of %d slots came back, %d attempts are live", x.free, slots, len(x.live))
	}
	want := dag.RunCompleted
	for i := range x.run.Plan().Tasks {
		switch s := x.run.TaskState(i); {
		case x.attempts[i] != x.run.Attempt(i) || x.done[i] != (s == dag.TaskCompleted):
			return fmt.Errorf("task %d is %s after %d of %d attempts", i, s, x.run.Attempt(i), x.attempts[i])
		case s == dag.TaskErrored && x.attempts[i] == 1+x.run.Plan().TemplateOf(i).Retry.MaxRetries:
			want = dag.RunErrored
		case s == dag.TaskQueued && !x.rules.mayStart(i), s == dag.TaskCompleted:
		default:
			return fmt.Errorf("task %d is left %s", i, s)
		}
	}
	if x.final != want || x.run.State() != want {
		return fmt.Errorf("the run ends %s, want %s", x.final, want)
	}
	return nil
}

// rules know the edges of a large graph: of each edge between two definitions,
// how many parents have completed, by the values that both ends must share.
type rules struct {
	owner []int   // definition of a task
	in    [][]int // edges into a definition
	out   [][]int
	group []map[string]*progress // by edge
	nodes []*Node
	edges []defEdge
}

type progress struct{ parents, completed int }

func newRules(s *dag.Spec, plan *dag.Plan) (*rules, error) {
	g := &Graph{params: s.Parameters, defaults: s.Defaults, Tasks: map[string]*Node{}}
	if err := g.add(s.Tasks, 0); err != nil {
		return nil, err
	}
	r := &rules{edges: g.edges, in: make([][]int, len(g.defs)), out: make([][]int, len(g.defs))}
	index := map[string]int{}
	for i, d := range g.defs {
		index[d.name] = i
		if err := g.expand(d); err != nil {
			return nil, err
		}
		for range d.tasks {
			r.owner = append(r.owner, i)
		}
	}
	for i, e := range g.edges {
		r.in[index[e.child]] = append(r.in[index[e.child]], i)
		r.out[index[e.parent]] = append(r.out[index[e.parent]], i)
		r.group = append(r.group, map[string]*progress{})
	}
	for i, name := range g.Order {
		r.nodes = append(r.nodes, g.Tasks[name])
		if got := plan.TaskName(uint32(i)); got != name {
			return nil, fmt.Errorf("task %d is called %q, want %q", i, got, name)
		}
		for _, e := range r.out[r.owner[i]] {
			key := r.key(e, uint32(i))
			if r.group[e][key] == nil {
				r.group[e][key] = &progress{}
			}
			r.group[e][key].parents++
		}
	}
	return r, nil
}

func (r *rules) key(edge int, task uint32) string {
	key := ""
	for _, m := range r.edges[edge].match {
		key += r.nodes[task].Values[m] + " "
	}
	return key
}

func (r *rules) completed(task uint32) {
	for _, e := range r.out[r.owner[task]] {
		r.group[e][r.key(e, task)].completed++
	}
}

func (r *rules) mayStart(task uint32) bool {
	for _, e := range r.in[r.owner[task]] {
		if p := r.group[e][r.key(e, task)]; p != nil && p.completed < p.parents {
			return false
		}
	}
	return true
}
