package actors

import (
	"context"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
	"github.com/prometheus/client_golang/prometheus"
)

// machine is clocks that only a test moves.
type machine struct {
	wall, monotonic, boot time.Duration
	id                    string
}

func (m *machine) Now() (wall, monotonic int64) { return int64(m.wall), int64(m.monotonic) }

func (m *machine) SinceBoot() (elapsed int64, boot string) { return int64(m.boot), m.id }

func (m *machine) pass(d time.Duration) {
	m.wall += d
	m.monotonic += d
	m.boot += d
}

// reboot is off for a while, by a wall clock that is wrong by error.
func (m *machine) reboot(off, err time.Duration) {
	m.wall += off + err
	m.monotonic, m.boot, m.id = time.Second, time.Minute, m.id+"'"
}

// TestSteadyClock: what the server's own clock has counted after what has happened.
func TestSteadyClock(t *testing.T) {
	const day = 24 * time.Hour
	var m *machine
	var s *steadyClock
	var mark persistence.ClockMark
	look := func() {
		now, _ := s.compare()
		mark = s.mark(now)
	}
	server := func(marked bool) {
		s = new(steadyClock)
		s.begin(m, slog.New(slog.DiscardHandler), mark, marked)
	}
	restart := func() {
		look()
		server(true)
	}
	for _, c := range []struct {
		what   string
		happen func()
		want   time.Duration
	}{
		{"an hour passes", func() { m.pass(time.Hour) }, time.Hour},
		{"the clock is set forward", func() { m.wall += 40 * day; look() }, 0},
		{"the clock is set back", func() { m.wall -= 40 * day; look() }, 0},
		{"the machine sleeps", func() { m.wall += day; m.boot += day; look(); look() }, day},
		{"it sleeps twice", func() {
			for range 2 {
				m.wall += day
				m.boot += day
				m.pass(time.Minute)
				look()
			}
		}, 2*day + 2*time.Minute},
		{"the server is off", func() { look(); m.pass(40 * day); server(true) }, 40 * day},
		{"the server is killed long after its mark", func() { look(); m.pass(day); server(true) }, day},
		{"the clock is set while the server is off", func() { look(); m.wall += 40 * day; m.pass(time.Hour); server(true) }, time.Hour},
		{"the machine is off: not counted yet", func() { look(); m.reboot(40*day, 0); server(true); m.pass(trustWallClockAfter / 2); look() }, markInterval + trustWallClockAfter/2},
		{"the machine is off", func() {
			look()
			m.reboot(40*day, 0)
			server(true)
			m.pass(trustWallClockAfter)
			look()
			look()
		}, 40*day + trustWallClockAfter},
		{"the machine is off, its clock is wrong and is set right", func() {
			look()
			m.reboot(time.Hour, 10000*day)
			server(true)
			m.pass(time.Minute)
			look()
			m.wall -= 10000 * day
			m.pass(trustWallClockAfter)
			look()
		}, time.Hour + time.Minute + trustWallClockAfter},
		{"the machine is off, and the server is restarted before that is counted", func() {
			look()
			m.reboot(40*day, 0)
			server(true)
			m.pass(time.Minute)
			restart()
			m.pass(time.Minute)
			restart()
			m.pass(trustWallClockAfter)
			look()
		}, 40*day + 2*time.Minute + trustWallClockAfter},
		{"the machine's clock stands in the past after it was off", func() {
			look()
			m.reboot(0, -40*day)
			server(true)
			m.pass(trustWallClockAfter)
			look()
		}, markInterval + trustWallClockAfter},
		{"starts of the machine have no names", func() {
			m.id = ""
			server(true)
			look()
			m.pass(time.Minute)
			server(true)
			m.id = ""
		}, markInterval},
	} {
		m = &machine{wall: 20000 * day, monotonic: time.Second, boot: 3 * day, id: "boot"}
		mark = persistence.ClockMark{}
		server(false)
		steady := func() time.Duration {
			_, monotonic := m.Now()
			return time.Duration(monotonic + s.ahead.Load())
		}
		if steady() != m.wall {
			t.Fatalf("in a new folder it begins at %v, not at the wall clock's %v", steady(), m.wall)
		}
		look()
		before := steady()
		c.happen()
		passed := steady() - before
		if c.what == "starts of the machine have no names" {
			passed %= markInterval // each start adds one
			c.want = 0
		}
		if passed != c.want {
			t.Errorf("%s: %v have passed, want %v", c.what, passed, c.want)
		}
	}
}

// finished makes finished runs without actors.
func (r *rig) finished(n int) (ids []messages.RunID) {
	r.t.Helper()
	r.fake.SetScript(succeed)
	for range n {
		ids = append(ids, r.submit(single))
	}
	for _, id := range ids {
		r.awaitState(id, dag.RunCompleted)
		r.retired(id)
	}
	return ids
}

func (r *rig) left() (ids []messages.RunID) {
	r.t.Helper()
	err := r.node.Summaries(context.Background(), messages.ListQuery{All: true}, func(s *messages.Summary) bool { ids = append(ids, s.ID); return true })
	if err != nil {
		r.t.Fatal(err)
	}
	return ids
}

// A run is as old as the server's own clock says, whatever happens to the machine's.
func TestRetentionCountsWhatHasPassed(t *testing.T) {
	const month = 30 * 24 * time.Hour
	r := newRig(t)
	ids := r.finished(3)
	sweep := func(what string, want []messages.RunID) {
		t.Helper()
		j := &janitor{n: r.node, age: month, stop: make(chan struct{})}
		if err := j.sweep(); err != nil {
			t.Fatal(err)
		}
		if got := r.left(); !slices.Equal(got, want) {
			t.Errorf("%s: left %v, want %v", what, got, want)
		}
	}
	r.step(2 * month)
	sweep("the clock was set forward", ids)
	r.step(-4 * month)
	r.crash()
	sweep("it was set back while the server was off", ids)
	r.step(8 * month)
	r.crash()
	sweep("and forward", ids)
	young := r.finished(1)
	r.stop()
	r.reboot(2 * month)
	r.start()
	sweep("the machine was off", append(ids, young...))
	r.pass(trustWallClockAfter)
	r.node.env.steadyClock.compare()
	sweep("and a while later", nil)
}

// However old runs are, a sweep deletes only so many for their age.
func TestRetentionDeletesAShareAtOnce(t *testing.T) {
	r := newRig(t)
	ids := r.finished(sweepStep + 100)
	r.pass(1000 * time.Hour)
	j := &janitor{n: r.node, age: time.Hour, stop: make(chan struct{})}
	for _, want := range [][]messages.RunID{ids[sweepStep:], nil} {
		if err := j.sweep(); err != nil {
			t.Fatal(err)
		}
		if got := r.left(); !slices.Equal(got, want) {
			t.Fatalf("%d runs are left, want %d", len(got), len(want))
		}
	}
	for _, c := range []struct {
		age      time.Duration
		finished int
		want     int
	}{
		{30 * 24 * time.Hour, 1_000_000, 10_000},
		{time.Hour, 1_000_000, 4 * 1_000_000 / 360},
		{time.Second, 1_000_000, 1_000_000},
		{time.Hour, 1000, sweepStep},
	} {
		if got := (&janitor{age: c.age}).share(c.finished); got != c.want {
			t.Errorf("of %d runs that are kept for %v: %d at once, want %d", c.finished, c.age, got, c.want)
		}
	}
}

// A repeated submission gets the first one's id when that run is deleted already; the
// key is free when its time is over.
func TestIdempotencyKeyOutlivesItsRun(t *testing.T) {
	r := newRig(t)
	r.fake.SetScript(succeed)
	keyed := func(key, spec string) *messages.Submission {
		sub := r.plan(spec)
		sub.IdempotencyKey = key
		return sub
	}
	one := func(sub *messages.Submission) (messages.RunID, error) { return r.node.Submit(t.Context(), sub) }
	batch := func(sub *messages.Submission) (messages.RunID, error) {
		results, err := r.node.SubmitAll(t.Context(), []*messages.Submission{sub})
		if err != nil {
			return 0, err
		}
		return results[0].Value, results[0].Err
	}
	id, err := r.node.Submit(t.Context(), keyed("night", single))
	if err != nil {
		t.Fatal(err)
	}
	r.awaitState(id, dag.RunCompleted)
	r.retired(id)
	last := r.finished(1)[0]
	j := &janitor{n: r.node, keep: 1, keysFor: 24 * time.Hour, mostKeys: mostKeys, stop: make(chan struct{})}
	sweep := func() {
		t.Helper()
		if err := j.sweep(); err != nil {
			t.Fatal(err)
		}
	}
	sweep()
	if got := r.left(); !slices.Equal(got, []messages.RunID{last}) {
		t.Fatalf("left %v", got)
	}
	again := func(what string) {
		t.Helper()
		for name, submit := range map[string]func(*messages.Submission) (messages.RunID, error){"alone": one, "in a batch": batch} {
			if got, err := submit(keyed("night", single)); got != id || err != nil {
				t.Errorf("%s, %s: run %d, %v; want %d", what, name, got, err, id)
			}
			if _, err := submit(keyed("night", chain)); code(err) != messages.KeyReused {
				t.Errorf("%s, %s: another body: %v", what, name, err)
			}
		}
	}
	again("deleted")
	if _, err := r.node.Summary(t.Context(), id); code(err) != messages.NotFound {
		t.Errorf("the deleted run: %v", err)
	}
	r.crash()
	j.n = r.node
	r.step(1000 * time.Hour)
	r.pass(23 * time.Hour)
	sweep()
	again("after 23 hours")
	r.pass(2 * time.Hour)
	sweep()
	next, err := r.node.Submit(t.Context(), keyed("night", chain))
	if err != nil || next <= last {
		t.Errorf("after 25 hours: run %d, %v", next, err)
	}
}

// counted is what a counter has come to.
func counted(t *testing.T, c prometheus.Counter) float64 {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(c)
	all, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return all[0].Metric[0].Counter.GetValue()
}

// Of too many keys the oldest go before their time, and are counted.
func TestIdempotencyKeysAreBounded(t *testing.T) {
	r := newRig(t)
	r.fake.SetScript(succeed)
	j := &janitor{n: r.node, keep: 1, keysFor: time.Hour, mostKeys: 2, stop: make(chan struct{})}
	sub := func(key string) *messages.Submission {
		s := r.plan(single)
		s.IdempotencyKey = key
		return s
	}
	ids := make(map[string]messages.RunID)
	for _, key := range []string{"a", "b", "c", "d"} {
		id, err := r.node.Submit(t.Context(), sub(key))
		if err != nil {
			t.Fatal(err)
		}
		ids[key] = id
		r.awaitState(id, dag.RunCompleted)
		r.retired(id)
		r.pass(time.Minute)
		if err := j.sweep(); err != nil {
			t.Fatal(err)
		}
	}
	if n := r.node.env.store.KeptKeyCount(); n != 2 {
		t.Errorf("%d keys are kept", n)
	}
	if n := counted(t, r.node.env.metrics.keysDropped); n != 1 {
		t.Errorf("%v keys were dropped", n)
	}
	for key, known := range map[string]bool{"a": false, "b": true, "c": true, "d": true} {
		if id, err := r.node.Submit(t.Context(), sub(key)); err != nil || (id == ids[key]) != known {
			t.Errorf("key %s of run %d: run %d, %v", key, ids[key], id, err)
		}
	}
}

// Who listens again by the id that it was told last hears of all that has changed since,
// though the machine's clock was set back and the server restarted.
func TestListenersResumeThoughTheClockIsSet(t *testing.T) {
	r := newRig(t)
	r.fake.SetScript(func(executor.Order) executortest.Step { return executortest.Step{Begin: true} })
	old, loud := r.submit(single), r.submit(single)
	r.awaitTasks(loud, dag.TaskRunning, 1)
	r.awaitTasks(old, dag.TaskRunning, 1)
	r.pass(time.Minute)
	first, err := r.node.Listen(t.Context(), messages.ListQuery{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	news, err := first.Next(context.Background())
	if err != nil || news.ResumeAt == 0 {
		t.Fatalf("%+v, %v", news, err)
	}
	first.Close()
	r.pass(time.Minute)
	at := news.ResumeAt
	for _, restart := range []bool{false, true} {
		r.step(-time.Hour)
		if restart {
			r.crash()
		}
		for _, to := range []dag.RunState{dag.RunPaused, dag.RunRunning} {
			if err := r.node.SetState(t.Context(), loud, to); err != nil {
				t.Fatal(err)
			}
		}
		fresh := r.submit(single)
		again, err := r.node.Listen(t.Context(), messages.ListQuery{}, at)
		if err != nil {
			t.Fatal(err)
		}
		told := map[messages.RunID]bool{}
		for !told[loud] || !told[fresh] {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			news, err := again.Next(ctx)
			cancel()
			if err != nil {
				t.Fatalf("told %v, not runs %d and %d: %v", told, loud, fresh, err)
			}
			for _, s := range news.Summaries {
				told[s.ID] = true
			}
			if news.ResumeAt > 0 && (!told[loud] || !told[fresh]) {
				t.Fatalf("restart %v: told %v, not runs %d and %d", restart, told, loud, fresh)
			}
		}
		if !restart && told[old] {
			t.Errorf("run %d has not changed", old)
		}
		again.Close()
		r.pass(time.Minute)
	}
}
