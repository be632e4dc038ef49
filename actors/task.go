package actors

import (
	"fmt"
	"strings"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/dag/specjson"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/messages"
)

// task is the actor of one task: it gives its attempt to the executor and tells
// its run, or fails to it, when the attempt has ended. The run
// decides on the next step. After a restart it is a fresh struct: the run sends it a new
// BeginAttempt.
type task struct {
	env       *nodeContext
	exec      executor.Executor
	key       messages.AttemptKey
	generator bool
	stashed   []any // came before this incarnation knew its attempt
	live      bool  // its attempt was given to the executor and has not ended: it waits among env.attempts
}

// attachAttempt gives a task actor an attempt that its executor has already: to an actor
// that was restarted after a panic its own attempt, with the message (last) that it
// panicked on; to a new actor an attempt that was under way when its run was loaded.
type attachAttempt struct {
	key  messages.AttemptKey
	plan *dag.Plan
	last any
}

func (t *task) Receive(ctx actor.Context) {
	defer t.env.logPanic(ctx)
	switch m := ctx.Message().(type) {
	case *messages.BeginAttempt:
		t.beginAttempt(ctx, m)
		t.stashed = nil
	case *attachAttempt:
		t.attachToAttempt(ctx, m)
	case *actor.Stopping:
		if t.live {
			t.env.attempts.remove(t.key, ctx.Self())
		}
		// Its run has failed or restarts: the attempt is ended, unless its executor is durable.
		if _, outlives := t.exec.(executor.Durable); t.live && !outlives && !t.env.closing.Load() {
			t.exec.Kill(t.key, t.env.killGrace)
		}
	case *messages.KillAttempt, *messages.RevokeAttempt, *executor.Report:
		if t.exec == nil { // it has panicked: the messages after the panic are still to be handled
			t.stashed = append(t.stashed, m)
			return
		}
		t.handleMessage(ctx, m)
	}
}

func (t *task) handleMessage(ctx actor.Context, m any) {
	switch m := m.(type) {
	case *messages.KillAttempt:
		if t.exec != nil && m.Attempt == t.key.Attempt {
			t.exec.Kill(t.key, t.env.killGrace)
		}
	case *messages.RevokeAttempt:
		if t.exec != nil && m.Attempt == t.key.Attempt {
			t.exec.Revoke(t.key)
		}
	case *executor.Report:
		if m.Key == t.key {
			t.forwardReport(ctx, m)
		}
	}
}

func (t *task) beginAttempt(ctx actor.Context, m *messages.BeginAttempt) {
	t.key = messages.AttemptKey{Run: m.Run, Task: m.Task, Attempt: m.Attempt}
	t.setTemplate(m.Plan)
	if instant, ok := t.exec.(executor.Synchronous); ok {
		r := instant.Execute(executor.Order{Key: t.key})
		t.forwardReport(ctx, &r)
		return
	}
	t.env.attempts.add(t.key, ctx.Self(), ctx.Parent())
	t.live = true
	t.exec.Start(orderFor(m.Plan, t.key, m.GrantedAt))
}

// orderFor is an attempt as its executor is given it.
func orderFor(plan *dag.Plan, key messages.AttemptKey, grantedAt int64) executor.Order {
	tmpl := plan.TemplateOf(key.Task)
	class := plan.Classes[tmpl.Class]
	x := plan.Task(key.Task)
	return executor.Order{
		Key:          key,
		Name:         x.Name,
		Command:      x.Command,
		Shell:        x.CommandString,
		UseShell:     x.Command == nil,
		Environment:  x.Environment,
		Dir:          x.WorkDir,
		Timeout:      x.Timeout,
		CPUMillis:    class.CPUMillis,
		MemoryBytes:  class.MemoryBytes,
		Capture:      tmpl.Generator,
		ExtraMembers: plan.Job(tmpl, new(dag.JobBuffer)).Other,
		GrantedAt:    grantedAt,
	}
}

// setTemplate sets what follows from the task's template.
func (t *task) setTemplate(plan *dag.Plan) {
	tmpl := plan.TemplateOf(t.key.Task)
	t.exec = t.env.executors[plan.Classes[tmpl.Class].Executor]
	t.generator = tmpl.Generator
}

func (t *task) attachToAttempt(ctx actor.Context, m *attachAttempt) {
	t.key = m.key
	t.setTemplate(m.plan)
	t.live = true
	t.env.attempts.add(t.key, ctx.Self(), ctx.Parent())
	switch last := m.last.(type) {
	case *executor.Report:
		t.forwardReport(ctx, last)
	case *messages.BeginAttempt:
		if last.Attempt == t.key.Attempt {
			t.beginAttempt(ctx, last)
		}
	case *messages.KillAttempt, *messages.RevokeAttempt:
		t.handleMessage(ctx, last)
	}
	early := t.stashed
	t.stashed = nil
	for _, m := range early {
		t.handleMessage(ctx, m)
	}
}

func (t *task) forwardReport(ctx actor.Context, r *executor.Report) {
	switch r.Kind {
	case executor.Started:
		ctx.Send(ctx.Parent(), &messages.AttemptStarted{Task: r.Key.Task, Attempt: r.Key.Attempt, At: r.At, Idle: r.StartDelay})
	case executor.Revoked:
		t.attemptOver(ctx)
		ctx.Send(ctx.Parent(), &messages.AttemptRevoked{Task: r.Key.Task, Attempt: r.Key.Attempt, At: r.At})
	case executor.Finished:
		t.attemptOver(ctx)
		rec := r.Record
		rec.Task, rec.Attempt = r.Key.Task, r.Key.Attempt
		switch rec.Result {
		case messages.AttemptSucceeded:
			end := &messages.AttemptEnded{Record: rec, Idle: r.StartDelay}
			if t.generator {
				generated, err := decodeGenerated(r.Stdout)
				if err != nil {
					rejectOutput(&rec, err)
					t.failAttempt(ctx, rec, r.StartDelay)
					return
				}
				end.Generated, end.Output = generated, r.Stdout
			}
			ctx.Send(ctx.Parent(), end)
		case messages.AttemptKilled, messages.AttemptLost:
			ctx.Send(ctx.Parent(), &messages.AttemptEnded{Record: rec, Idle: r.StartDelay})
		default:
			t.failAttempt(ctx, rec, r.StartDelay)
		}
	}
}

// attemptOver notes that the attempt has ended.
func (t *task) attemptOver(ctx actor.Context) {
	if t.live {
		t.env.attempts.remove(t.key, ctx.Self())
		t.live = false
	}
}

// rejectOutput turns a successful attempt into one whose output was refused.
func rejectOutput(rec *messages.AttemptRecord, why error) {
	rec.Result = messages.AttemptRejected
	rec.ExecutorLog = truncateLog(fmt.Sprintf("generated tasks refused: %v", why))
}

// maxExecutorLog is how much is kept of what the engine says of an attempt, in
// bytes: it may quote what a generator printed, which may be megabytes.
const maxExecutorLog = 16 << 10

func truncateLog(s string) string {
	if len(s) <= maxExecutorLog {
		return s
	}
	return strings.ToValidUTF8(s[:maxExecutorLog], "") + " …"
}

// decodeGenerated reads what a generator printed. The error is nil or dag.Problems.
func decodeGenerated(out []byte) ([]dag.TaskSpec, error) {
	tasks, problems := specjson.DecodeTasks(out)
	if len(problems) > 0 {
		return nil, problems
	}
	return tasks, nil
}
