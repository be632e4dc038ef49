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

// PlayLog describes what a script did. The counts let a test prove that its scripts cover what they
// should: a check that is never reached does not fail either.
type PlayLog struct {
	Lines  []string      // the spec, then each event with its effects
	Events int           // applied events
	Kinds  [numKinds]int // operations by kind, skipped ones included
	Sets   int           // accepted generated sets
	Final  dag.RunState  // the zero value when the spec was refused
}

// player plays one script. It is the driver of the run: it has the clock, the slots and the disk, and
// sends only events that a correct driver may send, including late, early and repeated ones. An event
// that a driver must not send makes package dag panic, which would hide what the script is about.
//
//	script -> playOp -> event -> dag.Run -> effects, records -> disk
//	                         \-> Oracle  -> effects -> compare
type player struct {
	PlayLog
	config      dag.Config
	limits      dag.Limits
	spec        *dag.Spec
	run         *dag.Run
	oracle      *Oracle
	disk        *simulatedDisk
	now         int64           // the driver's clock, ns; each operation advances it by at least 1, unless OpTick sets it back
	last        int64           // the run's newest LastUpdate
	revocable   map[uint32]bool // live attempts that may answer Revoked: those with a Signal or a Cancel
	held        map[int]int     // slots by class
	past        []dag.Event     // that were applied and are durable, for OpStale
	checkpoints []checkpoint    // before the newest events, oldest first; kept if the script has a crash
	quiet       bool
}

// checkpoint is a state to which a crash may return: what was durable before an operation, and what the
// oracle had then. A dag.Run cannot be copied, so it is always recovered from the disk.
type checkpoint struct {
	oracle *Oracle
	disk   *simulatedDisk
	past   int // length of player.past
}

// PlayScript plays a script against dag.Run and the oracle, and compares them after each event. With
// quiet set the log has no lines. The error describes the first difference, or the panic
// of either side. The log is returned with an error, too, up to the event
// that caused it.
func PlayScript(s Script, quiet bool) (l *PlayLog, err error) {
	p := &player{quiet: quiet, now: 1_000_000 * second, revocable: map[uint32]bool{}, held: map[int]int{}}
	defer func() {
		l = &p.PlayLog
		if e := recover(); e != nil {
			err = fmt.Errorf("panic: %v\n%s", e, panicTrace())
		}
	}()
	src := &ChoiceSource{s.Spec}
	p.spec = RandomSpec(src)
	p.config = dag.Config{LostLimit: uint32(src.Choose(2)) * 2}
	p.limits = dag.Limits{MaxDepth: 1 + src.Choose(3)}
	return l, p.playOps(s.Ops)
}

// playOps plays the operations and then the run to its end. A spec that both sides refuse is a script
// that passes.
func (p *player) playOps(ops []Op) error {
	graph, refused := NewGraph(p.spec, p.limits)
	plan, problems := dag.NewPlan(p.spec, p.limits)
	p.addLine("%s", describeSpec(p.spec, p.config, p.limits))
	if (refused != nil) != (len(problems) > 0) {
		return fmt.Errorf("the oracle says of the spec: %v, NewPlan: %v", refused, problems)
	}
	if refused != nil {
		return nil
	}
	p.oracle = NewOracle(graph, plan.Classes, cmp.Or(p.config.LostLimit, 5), p.now)
	p.run = dag.NewRun(plan, p.config, p.now)
	p.disk = &simulatedDisk{spec: p.spec, limits: p.limits, config: p.config, chunks: map[uint32][]byte{}}
	p.disk.writeNewRun(p.run)
	if err := p.compareWithOracle(p.oracle.Init(), slices.Clone(p.run.Init())); err != nil {
		return fmt.Errorf("Init: %w", err)
	}
	if err := p.comparePlans(); err != nil {
		return err
	}
	// Checkpoints are deep copies, so only scripts with a crash make them.
	crashes := slices.ContainsFunc(ops, func(op Op) bool { return op.Kind == OpCrash })
	for _, op := range ops {
		if crashes && op.Kind != OpCut && op.Kind != OpTick {
			p.checkpoints = append(p.checkpoints, checkpoint{p.oracle.Clone(), p.disk.clone(), len(p.past)})
			p.checkpoints = p.checkpoints[max(0, len(p.checkpoints)-3):]
		}
		p.Kinds[op.Kind]++
		if err := p.playOp(op); err != nil {
			return err
		}
	}
	return p.playToEnd()
}

// addLine adds a line to the log, unless the script is played quietly.
func (p *player) addLine(format string, args ...any) {
	if !p.quiet {
		p.Lines = append(p.Lines, fmt.Sprintf(format, args...))
	}
}

// playOp does one operation, or skips it if it is not possible. Skipping keeps every script valid, so
// that shrinking can remove any operation.
func (p *player) playOp(op Op) error {
	p.now++
	o, now := p.oracle, p.now
	switch op.Kind {
	case OpGrant: // also more slots than are wanted; to an ended run seldom, as a grant that crosses the end
		if class := int(op.A) % len(o.classes); !o.IsFinal() || op.B < 16 {
			return p.applyEvent(dag.Grant{Class: class, N: 1 + int(op.B)%6, At: now})
		}
	case OpStarted:
		if t := pickByIndex(o.SelectTasks(func(t *OracleTask) bool { return t.State == dag.TaskGranted }), op.A); t != nil {
			return p.applyEvent(dag.Started{Task: o.indexOf(t), Attempt: t.Attempt, At: now, Start: o.now * int64(op.B%2)})
		}
	case OpOK:
		return p.succeedAttempt(pickByIndex(o.LiveTasks(), op.A), op)
	case OpFail:
		if t := pickByIndex(o.LiveTasks(), op.A); t != nil {
			return p.applyEvent(dag.Finished{Task: o.indexOf(t), Attempt: t.Attempt, At: now, Start: p.reportedStart(t), Stop: now - 1})
		}
	case OpLost:
		if t := pickByIndex(o.LiveTasks(), op.A); t != nil {
			return p.applyEvent(dag.Lost{Task: o.indexOf(t), Attempt: t.Attempt, At: now, Start: p.reportedStart(t), Stop: now})
		}
	case OpRevoked: // only where an executor may revoke: asked to, and its process does not exist
		may := func(t *OracleTask) bool {
			return t.State == dag.TaskGranted && p.revocable[o.indexOf(t)] && t.Start == 0
		}
		if t := pickByIndex(o.SelectTasks(may), op.A); t != nil {
			return p.applyEvent(dag.Revoked{Task: o.indexOf(t), Attempt: t.Attempt, At: now})
		}
	case OpDue:
		if t := pickByIndex(o.SelectTasks(func(t *OracleTask) bool { return t.State == dag.TaskRetry && !t.AtOnce }), op.A); t != nil {
			p.now = max(now, t.Due)
			return p.applyEvent(dag.RetryDue{Task: o.indexOf(t), Attempt: t.Attempt, At: p.now})
		}
	case OpEarly: // the timer of this or the former attempt, mostly before its time
		if t := pickByIndex(o.SelectTasks(func(t *OracleTask) bool { return t.Attempt > 0 }), op.A); t != nil {
			return p.applyEvent(dag.RetryDue{Task: o.indexOf(t), Attempt: max(1, t.Attempt-uint32(op.B%2)), At: now})
		}
	case OpStale:
		if e := pickByIndex(p.past, op.A); e != nil {
			return p.repeatEvent(e)
		}
	case OpTick:
		if op.B%4 == 3 { // the clock is set back
			p.now -= int64(op.A) * second / 16
			break
		}
		p.now += int64(op.A) * second / 64
	case OpKillTask:
		return p.applyEvent(dag.KillTask{Task: uint32(int(op.A) % len(o.Order)), At: now})
	case OpPause:
		if o.IsAllowed(dag.RunPaused) {
			return p.applyEvent(dag.Pause{At: now})
		}
	case OpResume:
		if o.IsAllowed(dag.RunRunning) {
			return p.applyEvent(dag.Resume{At: now})
		}
	case OpRestart:
		if o.IsAllowed(dag.RunQueued) {
			return p.applyEvent(dag.Restart{At: now})
		}
	case OpKill:
		return p.applyEvent(dag.Kill{At: now})
	case OpCut:
		p.disk.beginSnapshot(p.run, 1+int(op.A)%4, op.B%2 == 1)
	case OpCrash:
		return p.crashAndRecover(op)
	}
	return nil
}

// panicTrace returns the lines of package dag in the stack of a panic, so that a report shows where an
// invariant broke without the frames of the test.
func panicTrace() string {
	var lines []string
	for line := range strings.Lines(string(debug.Stack())) {
		if strings.Contains(line, "/dag/") && !strings.Contains(line, "/dagtest") && strings.HasPrefix(line, "\t") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}

// reportedStart is the start of an attempt as its executor reports it with the end. Sometimes the
// executor cannot tell.
func (p *player) reportedStart(t *OracleTask) int64 {
	if t.Start == 0 && p.now%3 > 0 {
		return p.now - 2
	}
	return t.Start
}

// pickByIndex returns the element that byte a chooses, modulo the length; the zero value of an empty
// list.
func pickByIndex[T any](from []T, a uint8) (t T) {
	if len(from) == 0 {
		return t
	}
	return from[int(a)%len(from)]
}

// succeedAttempt ends an attempt with rc 0. If the task is a generator, it adds generated tasks. A
// generator that is being killed may end in either way, because the driver need not read its output.
// Runs of 150 tasks or six sets get only empty sets, so that they end.
func (p *player) succeedAttempt(t *OracleTask, op Op) error {
	if t == nil {
		return nil
	}
	o, i := p.oracle, p.oracle.indexOf(t)
	if !t.Generator || (o.Killing || t.Killing) && op.B%2 == 0 {
		return p.applyEvent(dag.Finished{Task: i, Attempt: t.Attempt, OK: true, At: p.now, Start: p.reportedStart(t), Stop: p.now - 1})
	}
	plan := p.run.Plan()
	for template := range plan.Templates {
		name, is := plan.Templates[template].Name, p.run.Started(template)
		if started, never := o.HasStarted(name); is && never || !is && started {
			return fmt.Errorf("Started(%s) is %v", name, is)
		}
	}
	var tasks []dag.TaskSpec
	if len(o.Order) < 150 && plan.Sets < 6 {
		// The set follows from A and B alone, so that removing other operations does not change it.
		choices := make([]byte, 60)
		for k := range choices {
			choices[k] = byte(k*k*7) ^ op.A*byte(k+3) ^ op.B
		}
		tasks = RandomSet(&ChoiceSource{choices}, o.Graph, p.spec, plan.Sets)
	}
	return p.generateTasks(t, tasks)
}

// generateTasks plans the output of a generator on both sides and applies it. The oracle takes over which
// tasks have started from the run, because package dag may choose there (Oracle.HasStarted); what the
// run says was checked before. Output that is refused makes the attempt fail, as a driver does it.
func (p *player) generateTasks(t *OracleTask, tasks []dag.TaskSpec) error {
	o, i, plan := p.oracle, p.oracle.indexOf(t), p.run.Plan()
	next, problems := plan.Extend(i, tasks, p.run.Started)
	graph, refused := o.Extend(t.Name, tasks, func(def string) bool {
		return p.run.Started(slices.IndexFunc(plan.Templates, func(t *dag.Template) bool { return t.Name == def }))
	})
	if (refused != nil) != (len(problems) > 0) {
		return fmt.Errorf("of what %s made the oracle says %v, Extend %v:\n%s", t.Name, refused, problems, describeTasks(tasks))
	}
	if refused != nil {
		p.addLine("%s made invalid tasks: %v", t.Name, refused)
		return p.applyEvent(dag.Finished{Task: i, Attempt: t.Attempt, At: p.now})
	}
	p.addLine("%s made:\n%s", t.Name, describeTasks(tasks))
	if err := p.applyToBoth(dag.Generated{Task: i, Attempt: t.Attempt, Next: next, At: p.now, Start: p.reportedStart(t), Stop: p.now - 1}, graph, &generatedSet{i, tasks}); err != nil {
		return err
	}
	return p.comparePlans()
}

// repeatEvent sends an event of an attempt once more, if it is stale by now: the attempt has ended, or
// the same has been reported. An event that would count again is not repeated, because a driver sends it
// once. The time is the present one, except for Generated, which keeps its own.
func (p *player) repeatEvent(e dag.Event) error {
	task, attempt := reflect.ValueOf(e).FieldByName("Task"), reflect.ValueOf(e).FieldByName("Attempt")
	if !task.IsValid() || !attempt.IsValid() {
		return nil
	}
	t := p.oracle.taskAt(uint32(task.Uint()))
	if due, is := e.(dag.RetryDue); is {
		due.At = p.now
		return p.applyEvent(due)
	}
	if _, is := e.(dag.Started); t.isLive() && t.Attempt == uint32(attempt.Uint()) && !(is && t.State == dag.TaskRunning) {
		return nil
	}
	if e, is := e.(dag.Generated); is {
		// The plan of a stale event is an old one, and the oracle does not use it.
		return p.applyToBoth(e, nil, nil)
	}
	copied := reflect.New(reflect.TypeOf(e)).Elem()
	copied.Set(reflect.ValueOf(e))
	copied.FieldByName("At").SetInt(p.now)
	return p.applyEvent(copied.Interface().(dag.Event))
}

// applyEvent applies an event that does not change the graph.
func (p *player) applyEvent(e dag.Event) error { return p.applyToBoth(e, nil, nil) }

// applyToBoth applies an event to the run and to the oracle, and compares them. The run goes first,
// because the oracle needs to know which tasks it started. The guarantees are checked before the
// comparison, so that the more serious finding is reported. graph and made are the result of a
// generator, and nil otherwise.
func (p *player) applyToBoth(e dag.Event, graph *Graph, made *generatedSet) error {
	p.Events++
	p.past = append(p.past, e)
	if g, is := e.(dag.Generated); is {
		p.addLine("%s of %s", strings.TrimPrefix(fmt.Sprintf("%T", e), "dag."), p.run.Plan().TaskName(g.Task))
	} else {
		p.addLine("%s%+v", strings.TrimPrefix(fmt.Sprintf("%T", e), "dag."), e)
	}
	before := p.run.States(nil, 0, p.run.Plan().Tasks)
	plan := p.run.Plan()
	got := slices.Clone(p.run.Apply(e))
	p.addLine("   %s", strings.Join(effectTexts(got), "; "))
	if made != nil && p.run.Plan() != plan {
		p.disk.sets = append(p.disk.sets, *made)
		p.Sets++
	}
	p.disk.commitBatch(p.run)
	if err := p.checkGuarantees(e, before, got); err != nil {
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
	return p.compareWithOracle(want, got)
}

// playToEnd lets every attempt succeed until the run has ended. A run that does not end is an error: it
// has lost a slot, a timer or a demand, which no single event shows. The bound on operations is far above
// what the largest run needs, with four for each task and some for the sets that are still generated.
func (p *player) playToEnd() error {
	o := p.oracle
	if o.IsAllowed(dag.RunRunning) {
		if err := p.playOp(Op{Kind: OpResume}); err != nil {
			return err
		}
	}
	for range 4 * (len(o.Order) + 300) {
		o = p.oracle
		if o.IsFinal() {
			p.Final = o.State
			return nil
		}
		op := Op{Kind: OpDue}
		if len(o.LiveTasks()) > 0 {
			op.Kind = OpOK
		}
		for class := range o.classes {
			if n := o.DemandOf(class); n > 0 {
				op = Op{Kind: OpGrant, A: uint8(class), B: uint8(min(n, 6) - 1)}
			}
		}
		if err := p.playOp(op); err != nil {
			return fmt.Errorf("%w (while everything succeeds)", err)
		}
	}
	return fmt.Errorf("the run does not end: %s, %v", o.State, o.Counts())
}

// forgetLostStart removes from the oracle the starts of live attempts that a crash has lost. The
// start of an attempt is not durable by itself, so either outcome is right, and the oracle follows the
// run.
func (p *player) forgetLostStart(def string, got dag.Times) {
	o := p.oracle
	if got != o.ended[def] || got == o.Times(def) {
		return
	}
	for _, t := range o.LiveTasks() {
		if t.Def == def {
			t.Start = 0
		}
	}
}

// crashAndRecover loses the newest events, recovers, and acts as the driver does then: each live
// attempt is adopted or lost. It is the only place where the oracle takes over states from the run:
// whether a live attempt is GRANTED or RUNNING after a crash, and the clock. Everything else must be as
// it was when the surviving event was applied.
func (p *player) crashAndRecover(op Op) error {
	back := len(p.checkpoints) - 1 - int(op.A)%3
	if back < 0 {
		back = 0
	}
	m := p.checkpoints[back]
	p.oracle, p.disk, p.past = m.oracle, m.disk, p.past[:m.past]
	p.checkpoints = nil
	run, err := p.disk.recoverRun()
	if err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	p.run = run
	p.addLine("crash")
	o := p.oracle
	o.now, p.last = run.LastUpdate(), run.LastUpdate()
	clear(p.revocable)
	clear(p.held)
	for _, t := range o.LiveTasks() {
		p.held[o.classOf(t)]++
		// The start of an attempt is not durable.
		if s := run.TaskState(o.indexOf(t)); s == dag.TaskGranted || s == dag.TaskRunning {
			t.State = s
		}
	}
	for i, t := range run.Plan().Templates {
		p.forgetLostStart(t.Name, run.Times(i))
	}
	init := slices.Clone(run.Init())
	p.addLine("   %s", strings.Join(effectTexts(init), "; "))
	if err := p.compareWithOracle(o.RecoveredEffects(), init); err != nil {
		return fmt.Errorf("after Recover: %w", err)
	}
	if err := p.comparePlans(); err != nil {
		return err
	}
	for k, t := range o.LiveTasks() {
		if op.B>>(k%8)&1 == 1 {
			continue
		}
		p.now++
		if err := p.applyEvent(dag.Lost{Task: o.indexOf(t), Attempt: t.Attempt, At: p.now}); err != nil {
			return err
		}
	}
	return nil
}
