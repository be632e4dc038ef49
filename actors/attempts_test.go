package actors

import (
	"testing"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/messages"
)

// An attempt that was revoked gives its number back: the next one of that number
// has another actor, and may begin before the former one has stopped.
func TestFormerActorDoesNotTakeItsSuccessorsReports(t *testing.T) {
	a := newAttempts()
	key := messages.AttemptKey{Run: 3, Task: 70, Attempt: 1}
	run, former, next := actor.NewPID("x", "run"), actor.NewPID("x", "former"), actor.NewPID("x", "next")
	a.add(key, former, run)
	a.add(key, next, run)
	a.remove(key, former)
	if a.find(key).task != next {
		t.Fatal("the report of the next attempt finds nobody")
	}
	a.remove(key, next)
	if a.find(key).task != nil {
		t.Error("still there")
	}
	a.sink(nil, "x")(executor.Report{Key: key}) // nobody waits: dropped
}
