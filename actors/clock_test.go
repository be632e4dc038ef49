package actors

import (
	"slices"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// A retry waits for its interval as it passes, whichever way the wall clock is set.
func TestRetryIntervalIgnoresTheWallClock(t *testing.T) {
	for name, step := range map[string]time.Duration{"back": -time.Hour, "forward": time.Hour} {
		for how, disturb := range map[string]func(*rig, messages.RunID){
			"running": func(*rig, messages.RunID) {},
			"paused": func(r *rig, id messages.RunID) {
				for _, to := range []dag.RunState{dag.RunPaused, dag.RunRunning} {
					if err := r.node.SetState(t.Context(), id, to); err != nil {
						t.Fatal(err)
					}
				}
			},
			"server restarted": func(r *rig, _ messages.RunID) { r.crash() },
			"actor restarted": func(r *rig, id messages.RunID) {
				r.node.env.root.Send(r.node.shard(id), &bomb{})
			},
		} {
			t.Run(name+"/"+how, func(t *testing.T) {
				r := newRig(t)
				spec := func(seconds string) string {
					return `{"tasks":{"a":{"job":{"command":["a"]},"maxRetries":1,"retryIntervalSeconds":` + seconds + `}}}`
				}
				fail := func(spec string, order int) messages.RunID {
					id := r.submit(spec)
					r.fake.End(r.order(order), messages.AttemptFailed, 1)
					r.awaitTasks(id, dag.TaskRetry, 1)
					return id
				}
				id := fail(spec("100"), 1)
				r.step(step)
				disturb(r, id)
				witness := fail(spec("50"), 2)
				r.pass(60 * time.Second)
				if k := r.order(3); k.Run != witness { // an alarm before that would have been sent before it
					t.Fatalf("order of run %d", k.Run)
				}
				if s := r.state(id, "a"); s != dag.TaskRetry {
					t.Fatalf("after 60 of 100 seconds: %v", s)
				}
				r.pass(41 * time.Second)
				k := r.order(4)
				r.fake.End(k, messages.AttemptSucceeded, 0)
				r.awaitState(id, dag.RunCompleted)
			})
		}
	}
}

// What has passed of an interval has passed, also when the run's actor begins again.
func TestIntervalOutlivesAPanic(t *testing.T) {
	r := newRig(t)
	id := r.submit(`{"tasks":{"a":{"job":{"command":["a"]},"maxRetries":1,"retryIntervalSeconds":100}}}`)
	k := r.order(1)
	r.step(time.Hour) // which the run follows
	r.fake.End(k, messages.AttemptFailed, 1)
	r.awaitTasks(id, dag.TaskRetry, 1)
	r.pass(60 * time.Second)
	r.node.env.root.Send(r.node.shard(id), &bomb{})
	if s := r.state(id, "a"); s != dag.TaskRetry {
		t.Fatalf("after 60 of 100 seconds: %v", s)
	}
	r.pass(41 * time.Second)
	r.fake.End(r.order(2), messages.AttemptSucceeded, 0)
	r.awaitState(id, dag.RunCompleted)
}

// Times of a run do not go backwards when the wall clock does, nor when the server is
// started again under such a clock.
func TestTimesDoNotGoBackwards(t *testing.T) {
	r, _ := durable(t)
	id := r.submit(single)
	k := r.order(1)
	r.fake.Begin(k)
	last := r.awaitTasks(id, dag.TaskRunning, 1).LastUpdate
	look := func(what string) {
		t.Helper()
		v, err := r.node.View(t.Context(), id, 0, 1)
		if err != nil {
			t.Fatal(err)
		}
		if v.LastUpdate < last {
			t.Errorf("%s: the last update falls by %v", what, time.Duration(last-v.LastUpdate))
		}
		last = v.LastUpdate
		for i := range v.Changes[1:] {
			if v.Changes[i+1].At <= v.Changes[i].At {
				t.Errorf("%s: changes %v", what, v.Changes)
			}
		}
	}
	set := func(to dag.RunState) {
		t.Helper()
		r.step(-time.Hour)
		if err := r.node.SetState(t.Context(), id, to); err != nil {
			t.Fatal(err)
		}
		look(to.String())
	}
	set(dag.RunPaused)
	set(dag.RunQueued)
	r.step(-time.Hour)
	r.crash()
	look("after a crash")
	set(dag.RunPaused)
	set(dag.RunRunning)
	r.pass(time.Minute)
	before := last
	set(dag.RunPaused)
	if passed := time.Duration(last - before); passed < time.Minute || passed > 2*time.Minute {
		t.Errorf("a minute has passed: the run's clock says %v", passed)
	}
	set(dag.RunRunning)
	r.fake.End(k, messages.AttemptSucceeded, 0)
	r.awaitState(id, dag.RunCompleted)
	look("at the end")
}

// An order's time of grant is not below that of the run's records, also when the wall clock was set
// back: an executor takes an attempt with an earlier grant for one of another history.
func TestResumedOrderIsNotOfALaterGrant(t *testing.T) {
	r, _ := durable(t)
	id := r.submit(`{"tasks":{"a":{"job":{"command":["a"]}},"b":{"parents":["a"],"job":{"command":["b"]}}}}`)
	first := r.order(1)
	r.step(-time.Hour)
	r.fake.End(first, messages.AttemptSucceeded, 0)
	r.fake.Begin(r.order(2))
	r.awaitTasks(id, dag.TaskRunning, 1)
	granted := r.fake.WaitOrders(t, 2)[1]
	r.crash()
	resumed := r.fake.WaitOrders(t, 3)[2]
	if !resumed.Resume || resumed.Key != granted.Key || resumed.GrantedAt > granted.GrantedAt {
		t.Errorf("ordered %+v, and again %+v", granted, resumed)
	}
}

// A run's clock follows the wall clock forwards when no interval depends on it.
func TestTimesFollowTheClockForwards(t *testing.T) {
	r := newRig(t)
	id := r.submit(single)
	k := r.order(1)
	r.step(time.Hour)
	before := r.now()
	r.fake.End(k, messages.AttemptSucceeded, 0)
	if s := r.awaitState(id, dag.RunCompleted); s.LastUpdate < before {
		t.Errorf("the run ended %v before it did", time.Duration(before-s.LastUpdate))
	}
}

// A run that was paused and is set to QUEUED while a task runs is RUNNING, also for the
// next server, and its state change has the time of the request.
func TestRestartBesideARunningTask(t *testing.T) {
	r, _ := durable(t)
	id := r.submit(`{"tasks":{"a":{"job":{"command":["a"]}},"b":{"job":{"command":["b"]},"parents":["a"]}}}`)
	k := r.order(1)
	r.fake.Begin(k)
	r.awaitTasks(id, dag.TaskRunning, 1)
	for _, to := range []dag.RunState{dag.RunPaused, dag.RunQueued} {
		if err := r.node.SetState(t.Context(), id, to); err != nil {
			t.Fatal(err)
		}
	}
	if s, err := r.node.Summary(t.Context(), id); err != nil || s.State != dag.RunRunning || s.Counts[dag.TaskRunning] != 1 {
		t.Fatalf("%+v, %v", s, err)
	}
	words := []string{"QUEUED", "RUNNING", "PAUSED", "QUEUED", "RUNNING"}
	if got := r.changes(id); !slices.Equal(got, words) {
		t.Errorf("changes %v, want %v", got, words)
	}
	r.crash()
	r.awaitTasks(id, dag.TaskRunning, 1)
	if s, err := r.node.Summary(t.Context(), id); err != nil || s.State != dag.RunRunning {
		t.Fatalf("after a crash: %+v, %v", s, err)
	}
	if got := r.changes(id); !slices.Equal(got, words) {
		t.Errorf("after a crash: changes %v, want %v", got, words)
	}
}
