package actors

import (
	"context"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/dag/specjson"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// The budget of a no-op task, piece by piece: ARCHITECTURE has the figures. Each piece
// is measured alone, on one goroutine after the other, so that they add up to the
// processor time of a task and not to the time that passes.

// perTask reports the time of one of many.
func perTask(b *testing.B, n int) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n)/1e3, "us/task")
}

// wideFan plans one task, n that wait for it, and one that waits for these.
func wideFan(b *testing.B, n int) (*dag.Plan, []byte) {
	spec := []byte(fmt.Sprintf(`{"parameters":{"I":["%s"]},"jobDefaults":{"executor":"noop"},"tasks":{
		"a":{"job":{}},"b":{"job":{"command":["b","{{I}}"]},"parents":["a"]},"c":{"job":{},"parents":["b"]}}}`, numbers(n)))
	plan, problems := specjson.Plan(spec, dag.Limits{})
	if len(problems) > 0 {
		b.Fatal(problems)
	}
	return plan, spec
}

// numbers are 0 to n-1, as the inside of a JSON list of strings.
func numbers(n int) string {
	list := make([]byte, 0, 10*n)
	for i := range n {
		if i > 0 {
			list = append(list, `","`...)
		}
		list = strconv.AppendInt(list, int64(i), 10)
	}
	return string(list)
}

// portion is how many tasks are granted and written together here.
const portion = 1024

// BenchmarkBudgetDecide: a grant and an end of each task, and their records.
func BenchmarkBudgetDecide(b *testing.B) {
	plan, _ := wideFan(b, 64*portion)
	var r *dag.Run
	var records []byte
	left := 0
	for b.Loop() {
		if left == 0 {
			b.StopTimer()
			r = dag.NewRun(plan, dag.Config{}, 1)
			r.Init()
			r.Apply(dag.Grant{Class: 0, N: 1, At: 2})
			r.Apply(dag.Finished{Task: 0, Attempt: 1, OK: true, At: 3})
			left = 64
			b.StartTimer()
		}
		first := 1 + uint32(64-left)*portion
		left--
		r.Apply(dag.Grant{Class: 0, N: portion, At: 4})
		for i := range uint32(portion) {
			r.Apply(dag.Finished{Task: first + i, Attempt: 1, OK: true, At: 5 + int64(i)})
		}
		records = r.TakeRecords(records[:0])
		if counts := r.Counts(); counts[dag.TaskCompleted] != first+portion {
			b.Fatalf("%d tasks are COMPLETED, want %d", counts[dag.TaskCompleted], first+portion)
		}
	}
	perTask(b, portion)
}

// parent spawns tasks' actors and stops them.
type parent struct {
	props *actor.Props
	left  int
	done  chan struct{}
	names uint64
}

func (p *parent) Receive(ctx actor.Context) {
	switch m := ctx.Message().(type) {
	case int:
		p.left = m
		for range m {
			p.names++
			pid, err := ctx.SpawnNamed(p.props, strconv.FormatUint(p.names, 10))
			if err != nil {
				panic(err)
			}
			ctx.Stop(pid)
		}
	case *actor.Terminated:
		if p.left--; p.left == 0 {
			p.done <- struct{}{}
		}
	}
}

// BenchmarkBudgetActor: a task's actor from its birth until its parent knows its end.
func BenchmarkBudgetActor(b *testing.B) {
	n := budgetNode(b)
	p := &parent{props: n.env.taskProps, done: make(chan struct{})}
	pid := n.env.root.Spawn(actor.PropsFromProducer(func() actor.Actor { return p }, actor.WithDispatcher(n.env.pool)))
	for b.Loop() {
		n.env.root.Send(pid, portion)
		<-p.done
	}
	perTask(b, portion)
	if err := n.env.root.StopFuture(pid).Wait(); err != nil {
		b.Error(err)
	}
}

// failing is a task whose attempts fail at once.
type failing struct{}

func (failing) Receive(ctx actor.Context) {
	if _, ok := ctx.Message().(*messages.BeginAttempt); ok {
		ctx.(actor.Supervisor).EscalateFailure(errDisk, nil)
	}
}

// retrying supervises one failing task and gives it its next attempt, either to the restarted
// actor or to a new one.
type retrying struct {
	props   *actor.Props
	restart bool
	left    int
	names   uint64
	done    chan struct{}
}

func (p *retrying) spawn(ctx actor.Context) *actor.PID {
	p.names++
	pid, err := ctx.SpawnNamed(p.props, strconv.FormatUint(p.names, 10))
	if err != nil {
		panic(err)
	}
	return pid
}

func (p *retrying) Receive(ctx actor.Context) {
	if m, ok := ctx.Message().(int); ok {
		p.left = m
		ctx.Send(p.spawn(ctx), &messages.BeginAttempt{})
	}
}

func (p *retrying) HandleFailure(_ *actor.ActorSystem, supervisor actor.Supervisor, pid *actor.PID, _ *actor.RestartStatistics, _, _ any) {
	ctx := supervisor.(actor.Context)
	if p.left--; p.left == 0 {
		ctx.Stop(pid)
		p.done <- struct{}{}
		return
	}
	if p.restart {
		restartTaskActor(ctx, pid, &messages.BeginAttempt{})
		return
	}
	ctx.Stop(pid)
	ctx.Send(p.spawn(ctx), &messages.BeginAttempt{})
}

// BenchmarkBudgetRetry: from a failed attempt to the next one, by a restart of the task's actor
// and by a new actor: the reason for restarts in supervision.go.
func BenchmarkBudgetRetry(b *testing.B) {
	for _, restart := range []bool{true, false} {
		b.Run(map[bool]string{true: "restart", false: "spawn"}[restart], func(b *testing.B) {
			n := budgetNode(b)
			p := &retrying{restart: restart, done: make(chan struct{}), props: actor.PropsFromProducer(func() actor.Actor { return failing{} },
				actor.WithMailbox(actor.UnboundedLockfree()), actor.WithDispatcher(n.env.pool))}
			pid := n.env.root.Spawn(actor.PropsFromProducer(func() actor.Actor { return p }, actor.WithDispatcher(n.env.pool)))
			b.ReportAllocs()
			for b.Loop() {
				n.env.root.Send(pid, portion)
				<-p.done
			}
			perTask(b, portion)
			if err := n.env.root.StopFuture(pid).Wait(); err != nil {
				b.Error(err)
			}
		})
	}
}

// echo sends what it gets to another one, until that has come often enough.
type echo struct {
	other *actor.PID
	left  int
	done  chan struct{}
}

func (e *echo) Receive(ctx actor.Context) {
	if _, ok := ctx.Message().(*messages.BeginAttempt); !ok {
		return
	}
	if e.left--; e.left == 0 {
		e.left = portion
		e.done <- struct{}{}
		return
	}
	ctx.Send(e.other, ctx.Message())
}

// BenchmarkBudgetMessage: one message from one actor to another that has nothing to do,
// which is the dearest: an actor that is busy is not woken.
func BenchmarkBudgetMessage(b *testing.B) {
	n := budgetNode(b)
	done := make(chan struct{})
	spawn := func(e *echo) *actor.PID {
		return n.env.root.Spawn(actor.PropsFromProducer(func() actor.Actor { return e },
			actor.WithMailbox(actor.UnboundedLockfree()), actor.WithDispatcher(n.env.pool)))
	}
	one, two := &echo{left: portion, done: done}, &echo{left: 1 << 60}
	a, c := spawn(one), spawn(two)
	one.other, two.other = c, a
	m := &messages.BeginAttempt{}
	for b.Loop() {
		n.env.root.Send(a, m)
		<-done
	}
	perTask(b, 2*portion) // a message each way
	for _, pid := range []*actor.PID{a, c} {
		if err := n.env.root.StopFuture(pid).Wait(); err != nil {
			b.Error(err)
		}
	}
}

// BenchmarkBudgetJournal: the durable write of what 1,024 tasks did.
func BenchmarkBudgetJournal(b *testing.B) {
	n := budgetNode(b)
	attempts := make([]messages.AttemptRecord, portion)
	durable := make(chan error)
	var seq uint64
	for b.Loop() {
		now := time.Now().UnixNano()
		for i := range attempts {
			attempts[i] = messages.AttemptRecord{Task: uint32(i) + uint32(seq)*portion, Attempt: 1, Start: now, Stop: now + int64(i)}
		}
		seq++
		n.env.store.Append(&persistence.Batch{Run: 1 << 40, Seq: seq, Records: make([]byte, 2*portion), Attempts: attempts,
			Done: func(err error) { durable <- err }})
		if err := <-durable; err != nil {
			b.Fatal(err)
		}
	}
	perTask(b, portion)
}

// BenchmarkBudgetWhole: a run of 64 times 1,024 no-ops, from submission to COMPLETED; the
// pieces overlap on several processors.
func BenchmarkBudgetWhole(b *testing.B) {
	n := budgetNode(b)
	plan, spec := wideFan(b, 64*portion)
	for b.Loop() {
		id, err := n.Submit(b.Context(), &messages.Submission{Plan: plan, Body: spec, At: time.Now().UnixNano()})
		if err != nil {
			b.Fatal(err)
		}
		for {
			changed, leave := n.env.index.Watch(id)
			s, err := n.Summary(b.Context(), id)
			if err != nil {
				b.Fatal(err)
			}
			if s.State.Final() {
				leave()
				break
			}
			<-changed
			leave()
		}
	}
	perTask(b, 64*portion)
}

// budgetNode is a node over Badger, without processes.
func budgetNode(b *testing.B) *Node {
	b.Helper()
	store, err := persistence.OpenStore(persistence.Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	out, err := outputs.Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	n, err := Start(Config{Store: store, Outputs: out, CPUMillis: 2000, MemoryBytes: 1000 << 20,
		Executors: map[string]func(executor.Sink) (executor.Executor, error){
			"noop": func(s executor.Sink) (executor.Executor, error) { return executor.NewNoop(s.Report), nil },
		}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := n.Close(context.Background()); err != nil {
			b.Error(err)
		}
		if err := store.Close(); err != nil {
			b.Error(err)
		}
		if err := out.Close(); err != nil {
			b.Error(err)
		}
	})
	return n
}
