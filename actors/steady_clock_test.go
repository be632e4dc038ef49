package actors

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
	"github.com/caravan-dag/caravan/persistence/journaltest"
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
		now, _ := s.compareClocks()
		mark = s.mark(now)
	}
	server := func(marked bool) {
		s = new(steadyClock)
		s.begin(m, slog.New(slog.DiscardHandler), mark, marked, 0)
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

// TestSteadyClockBeginsAtTheNewestStoredTime: on another machine the mark of the one before may be old. What
// the clock is raised by is time of the gap, and is counted once.
func TestSteadyClockBeginsAtTheNewestStoredTime(t *testing.T) {
	const hour, year = time.Hour, 365 * 24 * time.Hour
	before := &machine{wall: 50 * year, monotonic: hour, boot: 2 * hour, id: "one"}
	first := new(steadyClock)
	first.begin(before, slog.New(slog.DiscardHandler), persistence.ClockMark{}, false, 0)
	now, _ := first.compareClocks()
	mark := first.mark(now)
	newest := mark.Steady + int64(5*time.Minute) // a commit has kept the next mark waiting
	for what, gap := range map[string]time.Duration{"at once": 5 * time.Minute, "an hour later": hour} {
		after := &machine{wall: before.wall + gap, monotonic: time.Second, boot: 7 * hour, id: "other"}
		s := new(steadyClock)
		s.begin(after, slog.New(slog.DiscardHandler), mark, true, newest)
		steady := func() int64 {
			_, monotonic := after.Now()
			return monotonic + s.ahead.Load()
		}
		if got := steady(); got != newest {
			t.Errorf("%s: it begins %v off the newest time", what, time.Duration(got-newest))
		}
		after.pass(trustWallClockAfter)
		s.compareClocks()
		if got, want := steady(), mark.Steady+int64(gap+trustWallClockAfter); got != want {
			t.Errorf("%s: %v too much is counted", what, time.Duration(got-want))
		}
		last := steady()
		s.raise(last - int64(hour))
		if steady() != last {
			t.Errorf("%s: the clock goes back", what)
		}
	}
}

// TestSteadyClockMovesToAnotherMachine: the next machine goes on at once with what has passed, however often
// that happens, and counts nothing twice. A wall clock that is set too early is ignored until it is right.
func TestSteadyClockMovesToAnotherMachine(t *testing.T) {
	const hour, year, gap = time.Hour, 365 * 24 * time.Hour, 3 * time.Second
	m := &machine{wall: 50 * year, monotonic: hour, boot: 2 * hour, id: "one"}
	s := new(steadyClock)
	s.begin(m, slog.New(slog.DiscardHandler), persistence.ClockMark{}, false, 0)
	steady := func() int64 {
		_, monotonic := m.Now()
		return monotonic + s.ahead.Load()
	}
	began, passed := steady(), time.Duration(0)
	move := func(behind time.Duration) {
		now, _ := s.compareClocks()
		mark := s.mark(now)
		m = &machine{wall: m.wall + gap - behind, monotonic: time.Second, boot: 7 * hour, id: m.id + "."}
		s = &steadyClock{moves: true}
		s.begin(m, slog.New(slog.DiscardHandler), mark, true, mark.Steady)
		passed += gap
	}
	for i := range 100 {
		move(0)
		if got := steady() - began; got != int64(passed) {
			t.Fatalf("after %d moves %v have passed, it says %v", i+1, passed, time.Duration(got))
		}
	}
	m.pass(trustWallClockAfter)
	passed += trustWallClockAfter
	s.compareClocks()
	if got := steady() - began; got != int64(passed) {
		t.Errorf("later %v have passed, it says %v", passed, time.Duration(got))
	}
	move(hour)
	if got := steady() - began; got != int64(passed-gap) {
		t.Errorf("a machine an hour behind: %v have passed, it says %v", passed, time.Duration(got))
	}
}

// TestEngineClockIsAboveAllStoredTimes: those of unfinished runs at once, those of finished runs when the
// store knows them. A machine whose clocks are far behind comes after another one.
func TestEngineClockIsAboveAllStoredTimes(t *testing.T) {
	for what, state := range map[string]dag.RunState{"unfinished": dag.RunQueued, "finished": dag.RunCompleted} {
		r := newRig(t)
		r.stop()
		at := r.node.env.steadyTime() + int64(time.Hour)
		sum := journaltest.NewSummary(0, "", state)
		sum.Changed = at
		b := journaltest.NewRun(0, "", single)
		b.Summary, b.Seq = sum, 0
		journaltest.MustAppend(t, r.store, b)
		r.reboot(-time.Hour)
		r.start()
		if got := r.node.env.steadyTime(); got < at {
			t.Errorf("%s: %v below a stored time", what, time.Duration(at-got))
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
		r.passivated(id)
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
