package dagtest

import (
	"cmp"
	"fmt"
	"reflect"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/caravan-dag/caravan/dag"
)

// Log tells what a script did.
type Log struct {
	Lines  []string // the spec, then each event with its effects
	Events int      // how many were applied
	Kinds  [numKinds]int
	Sets   int // generated sets that were taken
	Final  dag.RunState
}

// player plays one script.
type player struct {
	Log
	config dag.Config
	limits dag.Limits
	spec   *dag.Spec
	run    *dag.Run
	oracle *Oracle
	disk   *disk
	now    int64
	last   int64           // the run's newest LastUpdate
	asked  map[uint32]bool // live attempts that may answer Revoked
	held   map[int]int     // slots by class
	past   []dag.Event
	undo   []moment // the newest events, oldest first; kept when the script has a crash
	quiet  bool
}

// moment is what a crash may go back to.
type moment struct {
	oracle *Oracle
	disk   *disk
	past   int
}

// Play plays a script against dag.Run and the oracle, and compares them after
// each event. With quiet set the log holds no lines. An error says how they differ.
func Play(s Script, quiet bool) (l *Log, err error) {
	p := &player{quiet: quiet, now: 1_000_000 * second, asked: map[uint32]bool{}, held: map[int]int{}}
	defer func() {
		l = &p.Log
		if e := recover(); e != nil {
			err = fmt.Errorf("panic: %v\n%s", e, trace())
		}
	}()
	src := &Source{s.Spec}
	p.spec = Spec(src)
	p.config = dag.Config{LostLimit: uint32(src.N(2)) * 2}
	p.limits = dag.Limits{MaxDepth: 1 + src.N(3)}
	return l, p.play(s.Ops)
}

func (p *player) play(ops []Op) error {
	graph, refused := NewGraph(p.spec, p.limits)
	plan, problems := dag.NewPlan(p.spec, p.limits)
	p.note("%s", describe(p.spec, p.config, p.limits))
	if (refused != nil) != (len(problems) > 0) {
		return fmt.Errorf("the oracle's word on the spec is %v, NewPlan's is %v", refused, problems)
	}
	if refused != nil {
		return nil
	}
	p.oracle = NewOracle(graph, plan.Classes, cmp.Or(p.config.LostLimit, 5), p.now)
	p.run = dag.NewRun(plan, p.config, p.now)
	p.disk = &disk{spec: p.spec, limits: p.limits, config: p.config, chunks: map[uint32][]byte{}}
	p.disk.first(p.run)
	if err := p.compare(p.oracle.Init(), slices.Clone(p.run.Init())); err != nil {
		return fmt.Errorf("Init: %w", err)
	}
	if err := p.comparePlans(); err != nil {
		return err
	}
	crashes := slices.ContainsFunc(ops, func(op Op) bool { return op.Kind == OpCrash })
	for _, op := range ops {
		if crashes && op.Kind != OpCut && op.Kind != OpTick {
			p.undo = append(p.undo, moment{p.oracle.Clone(), p.disk.clone(), len(p.past)})
			p.undo = p.undo[max(0, len(p.undo)-3):]
		}
		p.Kinds[op.Kind]++
		if err := p.op(op); err != nil {
			return err
		}
	}
	return p.drain()
}

func (p *player) note(format string, args ...any) {
	if !p.quiet {
		p.Lines = append(p.Lines, fmt.Sprintf(format, args...))
	}
}

// op does one operation, or passes over it.
func (p *player) op(op Op) error {
	p.now++
	o, now := p.oracle, p.now
	switch op.Kind {
	case OpGrant:
		if class := int(op.A) % len(o.classes); !o.Final() || op.B < 16 {
			return p.apply(dag.Grant{Class: class, N: 1 + int(op.B)%6, At: now})
		}
	case OpStarted:
		if t := pick(o.Select(func(t *Task) bool { return t.State == dag.TaskGranted }), op.A); t != nil {
			return p.apply(dag.Started{Task: o.index(t), Attempt: t.Attempt, At: now, Start: o.now * int64(op.B%2)})
		}
	case OpOK:
		return p.succeed(pick(o.Live(), op.A), op)
	case OpFail:
		if t := pick(o.Live(), op.A); t != nil {
			return p.apply(dag.Finished{Task: o.index(t), Attempt: t.Attempt, At: now, Start: p.began(t), Stop: now - 1})
		}
	case OpLost:
		if t := pick(o.Live(), op.A); t != nil {
			return p.apply(dag.Lost{Task: o.index(t), Attempt: t.Attempt, At: now, Start: p.began(t), Stop: now})
		}
	case OpRevoked:
		may := func(t *Task) bool { return t.State == dag.TaskGranted && p.asked[o.index(t)] && t.Start == 0 }
		if t := pick(o.Select(may), op.A); t != nil {
			return p.apply(dag.Revoked{Task: o.index(t), Attempt: t.Attempt, At: now})
		}
	case OpDue:
		if t := pick(o.Select(func(t *Task) bool { return t.State == dag.TaskRetry && !t.AtOnce }), op.A); t != nil {
			p.now = max(now, t.Due)
			return p.apply(dag.RetryDue{Task: o.index(t), Attempt: t.Attempt, At: p.now})
		}
	case OpEarly:
		if t := pick(o.Select(func(t *Task) bool { return t.Attempt > 0 }), op.A); t != nil {
			return p.apply(dag.RetryDue{Task: o.index(t), Attempt: max(1, t.Attempt-uint32(op.B%2)), At: now})
		}
	case OpStale:
		if e := pick(p.past, op.A); e != nil {
			return p.again(e)
		}
	case OpTick:
		if op.B%4 == 3 { // it is set back
			p.now -= int64(op.A) * second / 16
			break
		}
		p.now += int64(op.A) * second / 64
	case OpKillTask:
		return p.apply(dag.KillTask{Task: uint32(int(op.A) % len(o.Order)), At: now})
	case OpPause:
		if o.Allowed(dag.RunPaused) {
			return p.apply(dag.Pause{At: now})
		}
	case OpResume:
		if o.Allowed(dag.RunRunning) {
			return p.apply(dag.Resume{At: now})
		}
	case OpRestart:
		if o.Allowed(dag.RunQueued) {
			return p.apply(dag.Restart{At: now})
		}
	case OpKill:
		return p.apply(dag.Kill{At: now})
	case OpCut:
		p.disk.cut(p.run, 1+int(op.A)%4, op.B%2 == 1)
	case OpCrash:
		return p.crash(op)
	}
	return nil
}

// trace says where in package dag a panic came from.
func trace() string {
	var lines []string
	for line := range strings.Lines(string(debug.Stack())) {
		if strings.Contains(line, "/dag/") && !strings.Contains(line, "/dagtest") && strings.HasPrefix(line, "\t") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}

// began is when an attempt started, as its executor says at its end: now and then
// it was not able to.
func (p *player) began(t *Task) int64 {
	if t.Start == 0 && p.now%3 > 0 {
		return p.now - 2
	}
	return t.Start
}

func pick[T any](from []T, a uint8) (t T) {
	if len(from) == 0 {
		return t
	}
	return from[int(a)%len(from)]
}

// succeed ends an attempt with rc 0; a generator's with what it made.
func (p *player) succeed(t *Task, op Op) error {
	if t == nil {
		return nil
	}
	o, i := p.oracle, p.oracle.index(t)
	if !t.Generator || (o.Killing || t.Killing) && op.B%2 == 0 {
		return p.apply(dag.Finished{Task: i, Attempt: t.Attempt, OK: true, At: p.now, Start: p.began(t), Stop: p.now - 1})
	}
	plan := p.run.Plan()
	for template := range plan.Templates {
		name, is := plan.Templates[template].Name, p.run.Started(template)
		if started, never := o.Started(name); is && never || !is && started {
			return fmt.Errorf("Started(%s) is %v", name, is)
		}
	}
	var tasks []dag.TaskSpec
	if len(o.Order) < 150 && plan.Sets < 6 {
		choices := make([]byte, 60)
		for k := range choices {
			choices[k] = byte(k*k*7) ^ op.A*byte(k+3) ^ op.B
		}
		tasks = Set(&Source{choices}, o.Graph, p.spec, plan.Sets)
	}
	return p.generate(t, tasks)
}

func (p *player) generate(t *Task, tasks []dag.TaskSpec) error {
	o, i, plan := p.oracle, p.oracle.index(t), p.run.Plan()
	next, problems := plan.Extend(i, tasks, p.run.Started)
	graph, refused := o.Extend(t.Name, tasks, func(def string) bool {
		return p.run.Started(slices.IndexFunc(plan.Templates, func(t *dag.Template) bool { return t.Name == def }))
	})
	if (refused != nil) != (len(problems) > 0) {
		return fmt.Errorf("of what %s made the oracle says %v, Extend %v:\n%s", t.Name, refused, problems, describeTasks(tasks))
	}
	if refused != nil {
		p.note("%s made what is refused: %v", t.Name, refused)
		return p.apply(dag.Finished{Task: i, Attempt: t.Attempt, At: p.now})
	}
	p.note("%s made:\n%s", t.Name, describeTasks(tasks))
	if err := p.both(dag.Generated{Task: i, Attempt: t.Attempt, Next: next, At: p.now, Start: p.began(t), Stop: p.now - 1}, graph, &set{i, tasks}); err != nil {
		return err
	}
	return p.comparePlans()
}

// again sends an event of an attempt once more, if that is stale by now.
func (p *player) again(e dag.Event) error {
	task, attempt := reflect.ValueOf(e).FieldByName("Task"), reflect.ValueOf(e).FieldByName("Attempt")
	if !task.IsValid() || !attempt.IsValid() {
		return nil
	}
	t := p.oracle.at(uint32(task.Uint()))
	if due, is := e.(dag.RetryDue); is {
		due.At = p.now
		return p.apply(due)
	}
	if _, is := e.(dag.Started); t.live() && t.Attempt == uint32(attempt.Uint()) && !(is && t.State == dag.TaskRunning) {
		return nil
	}
	if e, is := e.(dag.Generated); is {
		// Its plan is an old one; the oracle needs none for what is stale.
		return p.both(e, nil, nil)
	}
	copied := reflect.New(reflect.TypeOf(e)).Elem()
	copied.Set(reflect.ValueOf(e))
	copied.FieldByName("At").SetInt(p.now)
	return p.apply(copied.Interface().(dag.Event))
}

func (p *player) apply(e dag.Event) error { return p.both(e, nil, nil) }

// both applies an event to the run and to the oracle, and compares.
func (p *player) both(e dag.Event, graph *Graph, made *set) error {
	p.Events++
	p.past = append(p.past, e)
	if g, is := e.(dag.Generated); is {
		p.note("%s of %s", strings.TrimPrefix(fmt.Sprintf("%T", e), "dag."), p.run.Plan().TaskName(g.Task))
	} else {
		p.note("%s%+v", strings.TrimPrefix(fmt.Sprintf("%T", e), "dag."), e)
	}
	before := p.run.States(nil, 0, p.run.Plan().Tasks)
	plan := p.run.Plan()
	got := slices.Clone(p.run.Apply(e))
	p.note("   %s", strings.Join(words(got), "; "))
	if made != nil && p.run.Plan() != plan {
		p.disk.sets = append(p.disk.sets, *made)
		p.Sets++
	}
	p.disk.commit(p.run)
	if err := p.promises(e, before, got); err != nil {
		return err
	}
	var starts []uint32
	for _, effect := range got {
		if s, is := effect.(dag.Start); is {
			starts = append(starts, s.Task)
		}
	}
	want, err := p.oracle.Apply(e, starts, graph)
	if err != nil {
		return err
	}
	return p.compare(want, got)
}

// drain lets everything succeed until the run has ended, which it must.
func (p *player) drain() error {
	o := p.oracle
	if o.Allowed(dag.RunRunning) {
		if err := p.op(Op{Kind: OpResume}); err != nil {
			return err
		}
	}
	for range 4 * (len(o.Order) + 300) {
		o = p.oracle
		if o.Final() {
			p.Final = o.State
			return nil
		}
		op := Op{Kind: OpDue}
		if len(o.Live()) > 0 {
			op.Kind = OpOK
		}
		for class := range o.classes {
			if n := o.Demand(class); n > 0 {
				op = Op{Kind: OpGrant, A: uint8(class), B: uint8(min(n, 6) - 1)}
			}
		}
		if err := p.op(op); err != nil {
			return fmt.Errorf("%w (while everything succeeds)", err)
		}
	}
	return fmt.Errorf("the run does not end: %s, %v", o.State, o.Counts())
}

// forget takes the starts of live attempts that a crash has lost from the oracle.
func (p *player) forget(def string, got dag.Times) {
	o := p.oracle
	if got != o.ended[def] || got == o.Times(def) {
		return
	}
	for _, t := range o.Live() {
		if t.Def == def {
			t.Start = 0
		}
	}
}

// crash loses the newest events, recovers, and does as the driver does then:
// each live attempt is adopted or lost.
func (p *player) crash(op Op) error {
	back := len(p.undo) - 1 - int(op.A)%3
	if back < 0 {
		back = 0
	}
	m := p.undo[back]
	p.oracle, p.disk, p.past = m.oracle, m.disk, p.past[:m.past]
	p.undo = nil
	run, err := p.disk.recover()
	if err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	p.run = run
	p.note("crash")
	o := p.oracle
	o.now, p.last = run.LastUpdate(), run.LastUpdate()
	clear(p.asked)
	clear(p.held)
	for _, t := range o.Live() {
		p.held[o.class(t)]++
		// That an attempt has started is not made durable.
		if s := run.TaskState(o.index(t)); s == dag.TaskGranted || s == dag.TaskRunning {
			t.State = s
		}
	}
	for i, t := range run.Plan().Templates {
		p.forget(t.Name, run.Times(i))
	}
	init := slices.Clone(run.Init())
	p.note("   %s", strings.Join(words(init), "; "))
	if err := p.compare(o.Recovered(), init); err != nil {
		return fmt.Errorf("after Recover: %w", err)
	}
	if err := p.comparePlans(); err != nil {
		return err
	}
	for k, t := range o.Live() {
		if op.B>>(k%8)&1 == 1 {
			continue
		}
		p.now++
		if err := p.apply(dag.Lost{Task: o.index(t), Attempt: t.Attempt, At: p.now}); err != nil {
			return err
		}
	}
	return nil
}
