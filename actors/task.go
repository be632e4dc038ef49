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
// its run, or fails to it, when the attempt has ended. It has no say in what
// follows. After a restart it is a fresh struct: the run sends it a new Begin.
type task struct {
	env       *env
	exec      executor.Executor
	key       messages.AttemptKey
	generator bool
	early     []any // came before this incarnation knew its attempt
	live      bool  // its attempt was given to the executor and has not ended: it waits among env.attempts
}

// adopt gives a task actor that was restarted after a panic back to its attempt.
// last is the message it panicked on.
type adopt struct {
	key  messages.AttemptKey
	plan *dag.Plan
	last any
}

func (t *task) Receive(ctx actor.Context) {
	defer t.env.guard(ctx)
	switch m := ctx.Message().(type) {
	case *messages.Begin:
		t.begin(ctx, m)
		t.early = nil
	case *adopt:
		t.adopt(ctx, m)
	case *actor.Stopping:
		if t.live {
			t.env.attempts.remove(t.key, ctx.Self())
		}
		if t.live && !t.env.closing.Load() { // its run has failed, or begins anew: nobody will hear of it
			t.exec.Kill(t.key, t.env.killGrace)
		}
	case *messages.KillAttempt, *messages.RevokeAttempt, *executor.Report:
		if t.exec == nil { // it has panicked: what was behind that is still to be done
			t.early = append(t.early, m)
			return
		}
		t.handle(ctx, m)
	}
}

func (t *task) handle(ctx actor.Context, m any) {
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
			t.report(ctx, m)
		}
	}
}

func (t *task) begin(ctx actor.Context, m *messages.Begin) {
	t.key = messages.AttemptKey{Run: m.Run, Task: m.Task, Attempt: m.Attempt}
	tmpl := t.know(m.Plan)
	if instant, ok := t.exec.(executor.Instant); ok {
		r := instant.Do(executor.Order{Key: t.key})
		t.report(ctx, &r)
		return
	}
	t.env.attempts.add(t.key, ctx.Self())
	t.live = true
	class := m.Plan.Classes[tmpl.Class]
	x := m.Plan.Task(m.Task)
	t.exec.Start(executor.Order{
		Key:         t.key,
		Name:        x.Name,
		Command:     x.Command,
		Shell:       x.CommandString,
		UseShell:    x.Command == nil,
		Environment: x.Environment,
		Dir:         x.WorkDir,
		Timeout:     x.Timeout,
		CoresMilli:  class.CoresMilli,
		MemoryMilli: class.MemoryMilli,
		Capture:     tmpl.Generator,
		Other:       tmpl.Job.Other,
	})
}

// know sets what follows from the task's template, and returns it.
func (t *task) know(plan *dag.Plan) *dag.Template {
	tmpl := plan.TemplateOf(t.key.Task)
	t.exec = t.env.executors[plan.Classes[tmpl.Class].Executor]
	t.generator = tmpl.Generator
	return tmpl
}

func (t *task) adopt(ctx actor.Context, m *adopt) {
	t.key = m.key
	t.know(m.plan)
	t.live = true
	t.env.attempts.add(t.key, ctx.Self())
	switch last := m.last.(type) {
	case *executor.Report:
		t.report(ctx, last)
	case *messages.Begin:
		if last.Attempt == t.key.Attempt {
			t.begin(ctx, last)
		}
	case *messages.KillAttempt, *messages.RevokeAttempt:
		t.handle(ctx, last)
	}
	early := t.early
	t.early = nil
	for _, m := range early {
		t.handle(ctx, m)
	}
}

func (t *task) report(ctx actor.Context, r *executor.Report) {
	switch r.Kind {
	case executor.Started:
		ctx.Send(ctx.Parent(), &messages.AttemptStarted{Task: r.Key.Task, Attempt: r.Key.Attempt, At: r.At})
	case executor.Revoked:
		t.over(ctx)
		ctx.Send(ctx.Parent(), &messages.AttemptRevoked{Task: r.Key.Task, Attempt: r.Key.Attempt, At: r.At})
	case executor.Finished:
		t.over(ctx)
		rec := r.Record
		rec.Task, rec.Attempt = r.Key.Task, r.Key.Attempt
		switch rec.Result {
		case messages.AttemptSucceeded:
			end := &messages.AttemptEnded{Record: rec}
			if t.generator {
				generated, err := decodeGenerated(r.Stdout)
				if err != nil {
					reject(&rec, err)
					t.fail(ctx, rec)
					return
				}
				end.Generated, end.Output = generated, r.Stdout
			}
			ctx.Send(ctx.Parent(), end)
		case messages.AttemptKilled, messages.AttemptLost:
			ctx.Send(ctx.Parent(), &messages.AttemptEnded{Record: rec})
		default:
			t.fail(ctx, rec)
		}
	}
}

// over notes that the attempt has ended.
func (t *task) over(ctx actor.Context) {
	if t.live {
		t.env.attempts.remove(t.key, ctx.Self())
		t.live = false
	}
}

// fail is the failure of this actor: its mailbox is suspended until the run
// restarts or stops it.
func (t *task) fail(ctx actor.Context, rec messages.AttemptRecord) {
	ctx.(actor.Supervisor).EscalateFailure(&messages.Failure{Record: rec}, nil)
}

// reject turns a successful attempt into one whose output was refused.
func reject(rec *messages.AttemptRecord, why error) {
	rec.Result = messages.AttemptRejected
	rec.ExecutorLog = clip(fmt.Sprintf("generated tasks refused: %v", why))
}

// maxExecutorLog is how much is kept of what the engine says of an attempt, in
// bytes: it may quote what a generator printed, which may be megabytes.
const maxExecutorLog = 16 << 10

func clip(s string) string {
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
