package fleet

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/messages"
)

const (
	keyUsed      = workerpb.IgnoreReason_IGNORE_REASON_KEY_USED
	staleEpoch   = workerpb.IgnoreReason_IGNORE_REASON_STALE_EPOCH
	staleSession = workerpb.IgnoreReason_IGNORE_REASON_STALE_SESSION
)

// Effects of ends, as the rig records them.
const (
	succeeded = "report: succeeded "
	lost      = "report: lost "
)

// rig is a table whose effects are recorded, as lines in the order in which they came.
type rig struct {
	*Table
	t           *testing.T
	lastSession uint64
	effects     []string
	links       map[string]*recordedLink
}

// newRig returns a table in epoch 4, without leases unless change says otherwise, for an engine that
// has named its runs: run 1 resumes, and others do not exist.
func newRig(t *testing.T, change ...func(*TableConfig)) *rig {
	g := &rig{t: t, links: map[string]*recordedLink{}}
	c := TableConfig{Epoch: 4, LastSession: &g.lastSession, OrphanGrace: time.Second}
	c.Report = func(r executor.Report) {
		kind := [...]string{"started", "succeeded", "revoked"}[r.Kind]
		if r.Record.Result == messages.AttemptLost {
			kind = "lost"
		}
		g.record("report: %s %d", kind, r.Key.Task)
	}
	c.Complain = func(_, worker string, key messages.AttemptKey) { g.record("complaint about %s, %d", worker, key.Task) }
	for _, f := range change {
		f(&c)
	}
	g.Table = NewTable(c)
	g.ExpectResume(1)
	return g
}

// leased gives the workers of a table leases, which end after 3 ticks of silence.
func leased(c *TableConfig) { c.SilenceTicks = 3 }

func (g *rig) record(format string, args ...any) {
	g.effects = append(g.effects, fmt.Sprintf(format, args...))
}

// expect compares the effects since its last call.
func (g *rig) expect(want ...string) {
	g.t.Helper()
	if !slices.Equal(g.effects, want) {
		g.t.Errorf("effects:\n\t%q, want\n\t%q", g.effects, want)
	}
	g.effects = nil
}

// recordedLink is a connection that records what is said on it.
type recordedLink struct {
	g    *rig
	name string
}

func (l *recordedLink) AddLead(s workerpb.Session) {
	l.g.record("%s: lead %d of epoch %d", l.name, s.Number, s.Epoch)
}

func (l *recordedLink) AddRenewal(_ uint32, epoch, heartbeat uint64) {
	l.g.record("%s: renewal %d of epoch %d", l.name, heartbeat, epoch)
}

func (l *recordedLink) AddOrder(s workerpb.Session, o *executor.Order) {
	l.g.record("%s: order %d in %d", l.name, o.Key.Task, s.Number)
}

func (l *recordedLink) AddKill(s workerpb.Session, key messages.AttemptKey, _ time.Duration) {
	l.g.record("%s: kill %d in %d", l.name, key.Task, s.Number)
}

func (l *recordedLink) AddRevocation(s workerpb.Session, key messages.AttemptKey) {
	l.g.record("%s: revocation %d in %d", l.name, key.Task, s.Number)
}

func (l *recordedLink) AddAcknowledgement(_ workerpb.Session, key messages.AttemptKey) {
	l.g.record("%s: acknowledgement %d", l.name, key.Task)
}

func key(task uint32) messages.AttemptKey { return messages.AttemptKey{Run: 1, Task: task, Attempt: 1} }

func (g *rig) connect(worker string, predecessors ...Predecessor) {
	g.links[worker] = &recordedLink{g: g, name: worker}
	g.Connect(worker, predecessors, g.links[worker])
}

func (g *rig) disconnect(worker string) { g.Disconnect(worker, g.links[worker]) }

// start orders an attempt whose grant came at time 5.
func (g *rig) start(worker string, tasks ...uint32) { g.startAt(worker, 5, false, tasks...) }

func (g *rig) resume(worker string, tasks ...uint32) { g.startAt(worker, 5, true, tasks...) }

func (g *rig) startAt(worker string, grantedAt int64, resume bool, tasks ...uint32) {
	for _, task := range tasks {
		g.Start(&executor.Order{Key: key(task), GrantedAt: grantedAt, Resume: resume}, worker, 9)
	}
}

// hear lets a worker report in its present session.
func (g *rig) hear(worker string, fill ...func(*workerpb.PartitionReport)) {
	g.hearIn(worker, g.workers[worker].session, fill...)
}

func (g *rig) hearIn(worker string, s workerpb.Session, fill ...func(*workerpb.PartitionReport)) {
	g.t.Helper()
	report := &workerpb.PartitionReport{Partition: s.Partition, Epoch: s.Epoch, Session: s.Number}
	for _, f := range fill {
		f(report)
	}
	if err := g.Hear(worker, g.links[worker], report, 9); err != nil {
		g.t.Error(err)
	}
}

func synced(r *workerpb.PartitionReport) { r.Synced = true }

func queued(task uint32) func(*workerpb.PartitionReport) {
	return func(r *workerpb.PartitionReport) { r.AddQueued(key(task), 5) }
}

func started(task uint32) func(*workerpb.PartitionReport) {
	return func(r *workerpb.PartitionReport) { r.AddStarted(key(task), 7, 0, 5) }
}

func finished(task uint32) func(*workerpb.PartitionReport) {
	return func(r *workerpb.PartitionReport) {
		end := endOf(task)
		r.AddFinished(workerpb.AppendFinished(nil, &end))
	}
}

func endOf(task uint32) executor.Report {
	return executor.Report{Key: key(task), Kind: executor.Finished, At: 8, GrantedAt: 5, Record: messages.AttemptRecord{Task: task, Attempt: 1, Start: 7, Stop: 8}}
}

func revoked(task uint32) func(*workerpb.PartitionReport) {
	return func(r *workerpb.PartitionReport) { r.AddRevoked(key(task), 8) }
}

func ignored(task uint32, reason workerpb.IgnoreReason) func(*workerpb.PartitionReport) {
	return func(r *workerpb.PartitionReport) { r.AddIgnored(key(task), reason, 6) }
}

// TestEndThatCannotBeRead: an end with a result of a later version counts as lost. It does not end the connection, on which
// the next first report would have it again.
func TestEndThatCannotBeRead(t *testing.T) {
	g := newRig(t)
	g.connect("a")
	g.hear("a", synced)
	g.start("a", 1, 2)
	g.effects = nil
	end := endOf(1)
	end.Record.Result = 100
	g.hear("a", func(r *workerpb.PartitionReport) { r.AddFinished(workerpb.AppendFinished(nil, &end)) }, finished(2))
	g.expect("complaint about a, 1", "report: started 1", lost+"1", "report: started 2", succeeded+"2")
	g.Acknowledge(key(1))
	g.expect("a: acknowledgement 1")
	report := &workerpb.PartitionReport{Epoch: 4, Session: 1, Finished: [][]byte{{0xff}}}
	if g.Hear("a", g.links["a"], report, 9) == nil {
		t.Error("a report without a key is accepted")
	}
}

// TestEveryConnectionIsLed: each Hello is answered by Lead with the next number, whether rows name the
// worker or not. Orders go out in a session that was heard, and attempts stay placed when the link
// breaks.
func TestEveryConnectionIsLed(t *testing.T) {
	g := newRig(t)
	g.connect("a")
	g.connect("b")
	g.expect("a: lead 1 of epoch 4", "b: lead 2 of epoch 4")
	g.start("a", 1)
	g.expect()
	g.hear("a", synced)
	g.expect("a: order 1 in 1")
	g.start("a", 2, 2)
	g.expect("a: order 2 in 1")
	former := g.links["a"]
	g.disconnect("a")
	g.start("a", 3)
	g.connect("a")
	g.Disconnect("a", former)
	g.expect("a: lead 3 of epoch 4")
	g.hearIn("a", workerpb.Session{Epoch: 4, Number: 1}, started(2), synced)
	g.expect()
	g.hear("a", queued(1), started(2), synced)
	g.expect("report: started 2", "a: order 3 in 3")
}

// TestFirstReportDecides about resumed attempts and about those that were ordered before; a later
// report with Synced, as a repeated first report is, does not.
func TestFirstReportDecides(t *testing.T) {
	g := newRig(t)
	g.resume("a", 1, 2, 3, 4)
	g.start("a", 5)
	g.connect("a")
	g.hear("a", queued(2))
	g.hear("a", started(3), finished(4))
	g.expect("a: lead 1 of epoch 4", "report: started 3", "report: started 4", succeeded+"4")
	g.hear("a", synced)
	g.expect("a: order 1 in 1", "a: order 5 in 1")
	g.hear("a", synced)
	g.resume("a", 6) // the worker has reported without it
	g.expect("a: order 6 in 1")
	g.disconnect("a")
	g.connect("a")
	g.hear("a", queued(2), started(3), queued(6), synced)
	g.expect("a: lead 2 of epoch 4", "a: order 1 in 2", "a: order 5 in 2")
}

// TestOrdersWaitForARenewal: with leases, an order waits until a renewal has gone out in its session.
func TestOrdersWaitForARenewal(t *testing.T) {
	g := newRig(t, leased)
	g.connect("a")
	g.start("a", 1)
	g.Heartbeat("a")
	g.Renew("a", 1, 9)
	g.hear("a", synced)
	g.expect("a: lead 1 of epoch 4")
	g.Renew("a", 2, 9)
	g.start("a", 2)
	g.Renew("a", 3, 9)
	g.expect("a: renewal 2 of epoch 4", "a: order 1 in 1", "a: order 2 in 1", "a: renewal 3 of epoch 4")
}

// TestOrderThatComesBackEndsTheSession: the first report of the next session decides, whether the
// engine has asked for the order or not.
func TestOrderThatComesBackEndsTheSession(t *testing.T) {
	g := newRig(t)
	g.connect("a")
	g.hear("a", synced)
	g.start("a", 1)
	g.hear("a", revoked(1))
	g.hearIn("a", workerpb.Session{Epoch: 4, Number: 1}, revoked(1))
	g.expect("a: lead 1 of epoch 4", "a: order 1 in 1", "a: lead 2 of epoch 4")
	g.hear("a", synced)
	g.expect("a: order 1 in 2")
	g.Revoke(key(1), 9)
	g.hear("a", revoked(1))
	g.hear("a", synced)
	g.expect("a: revocation 1 in 2", "a: lead 3 of epoch 4", "report: revoked 1")
	g.start("a", 2)
	g.hear("a", revoked(2))
	g.Drain("a", 9)
	g.expect("a: order 2 in 3", "a: lead 4 of epoch 4")
	g.hear("a", synced)
	g.start("a", 3)
	g.expect("report: revoked 2", "report: revoked 3")
}

// TestSilenceEndsTheSessionFirst: attempts that a silent worker may have are lost, and others are given
// back. A heartbeat leads the worker again, and the lease is renewed only when the new session was
// heard.
func TestSilenceEndsTheSessionFirst(t *testing.T) {
	g := newRig(t, leased)
	g.connect("a")
	g.hear("a", synced)
	g.Renew("a", 1, 9)
	g.start("a", 1, 2)
	g.hear("a", started(2))
	g.disconnect("a")
	g.connect("a")
	g.start("a", 3)
	g.resume("b", 4) // b does not connect
	g.effects = nil
	g.Tick(9)
	g.Tick(9)
	g.Heartbeat("a")
	g.Tick(9)
	g.expect(lost + "4")
	g.Tick(9)
	g.expect()
	g.Tick(9)
	g.expect(lost+"1", lost+"2", "report: revoked 3")
	g.hear("a", queued(1), started(2), synced)
	g.resume("b", 5)
	g.start("b", 6)
	g.expect(lost+"5", "report: revoked 6")
	g.Renew("a", 2, 9)
	g.Heartbeat("a")
	g.Renew("a", 3, 9)
	g.expect("a: lead 3 of epoch 4")
	g.hear("a", started(2), synced)
	g.Renew("a", 4, 9)
	g.Acknowledge(key(1), key(2))
	g.expect("a: kill 2 in 3", "a: renewal 4 of epoch 4", "a: acknowledgement 1", "a: acknowledgement 2")
}

// TestLostAttemptIsEndedWhereItLives: the operator may be wrong about a worker.
func TestLostAttemptIsEndedWhereItLives(t *testing.T) {
	g := newRig(t)
	g.connect("a")
	g.hear("a", synced)
	g.start("a", 1)
	g.Died("a", false, nil, nil, 9)
	g.connect("a")
	g.hear("a", synced)
	g.hear("a", started(1))
	g.expect("a: lead 1 of epoch 4", "a: order 1 in 1", lost+"1", "a: lead 2 of epoch 4", "a: kill 1 in 2")
}

// TestDeathDecides has a line for each standing, and both kinds of journals.
func TestDeathDecides(t *testing.T) {
	for _, c := range []struct {
		complete bool
		want     []string
	}{
		{true, []string{succeeded + "3", "report: revoked 1", lost + "2", "report: revoked 4", "report: revoked 5"}},
		{false, []string{succeeded + "3", lost + "1", lost + "2", lost + "4", "report: revoked 5"}},
	} {
		t.Run(fmt.Sprintf("complete %v", c.complete), func(t *testing.T) {
			g := newRig(t)
			g.connect("a")
			g.hear("a", synced)
			g.start("a", 1, 2, 3)
			g.hear("a", started(2), started(3))
			g.disconnect("a")
			g.resume("a", 4)
			g.start("a", 5)
			g.effects = nil
			journal := &recordedLink{g: g, name: "journal"}
			g.Died("a", c.complete, []executor.Report{endOf(3)}, journal, 9)
			g.expect(c.want...)
			g.Heartbeat("a")
			g.Tick(9)
			g.Acknowledge(key(3))
			g.expect("journal: acknowledgement 3")
			g.resume("a", 6)
			g.start("a", 7)
			want := lost + "6"
			if c.complete {
				want = "report: revoked 6"
			}
			g.expect(want, "report: revoked 7")
		})
	}
}

// TestSuccessorSpeaksForTheDead: its first report decides about the attempts of its predecessors, and
// it gets the acknowledgements of their ends.
func TestSuccessorSpeaksForTheDead(t *testing.T) {
	g := newRig(t)
	g.resume("a", 1, 2)
	g.resume("b", 3)
	g.connect("c", Predecessor{Name: "a", Complete: true}, Predecessor{Name: "b"})
	g.expect("c: lead 1 of epoch 4")
	g.hear("c", finished(2), synced)
	g.expect("report: started 2", succeeded+"2", "report: revoked 1", lost+"3")
	g.Acknowledge(key(2), key(3))
	g.expect("c: acknowledgement 2")
	g.disconnect("c")
	g.connect("c", Predecessor{Name: "a", Complete: true}, Predecessor{Name: "b"})
	g.hear("c", finished(4), synced)
	g.resume("a", 4) // its end came before its order
	g.expect("c: lead 2 of epoch 4", "report: started 4", succeeded+"4")
}

// TestKillsAndRevocations go to the worker that has the attempt, and wait where it is not known to have
// it.
func TestKillsAndRevocations(t *testing.T) {
	g := newRig(t)
	g.resume("a", 1, 2)
	g.start("a", 3, 4)
	g.Kill(key(1), time.Second, 9)
	g.Revoke(key(2), 9)
	g.Kill(key(3), time.Second, 9)
	g.Revoke(key(4), 9)
	g.Kill(key(9), 0, 9)
	g.expect("report: revoked 3", "report: revoked 4")
	g.connect("a")
	g.hear("a", queued(1), synced)
	g.expect("a: lead 1 of epoch 4", "a: kill 1 in 1", "report: revoked 2")
	g.start("a", 5)
	g.Revoke(key(5), 9)
	g.disconnect("a")
	g.connect("a")
	g.hear("a", started(1), queued(5), synced)
	g.expect("a: order 5 in 1", "a: revocation 5 in 1", "a: lead 2 of epoch 4", "report: started 1", "a: kill 1 in 2", "a: revocation 5 in 2")
	g.hear("a", started(5))
	g.Revoke(key(5), 9)
	g.expect("report: started 5")
}

// TestOrphansAreEnded: an attempt that runs do not ask for is kept while its run may resume, then it is
// killed, and its end is forgotten.
func TestOrphansAreEnded(t *testing.T) {
	g := newRig(t)
	g.connect("a")
	g.hear("a", queued(1), started(2), finished(3), finished(4), synced)
	g.expect("a: lead 1 of epoch 4")
	g.resume("a", 3)
	g.expect("report: started 3", succeeded+"3")
	g.ResumeDone(1)
	g.expect("a: kill 1 in 1", "a: kill 2 in 1", "a: acknowledgement 4")
	g.hear("a", finished(2), started(5), finished(6))
	g.expect("a: kill 5 in 1", "a: acknowledgement 2", "a: acknowledgement 6")
	g.disconnect("a")
	g.connect("a")
	g.hear("a", started(5), synced)
	g.expect("a: lead 2 of epoch 4", "a: kill 5 in 2")
}

// TestRunThatResumesAgain: the actor of a run is rebuilt, and orders its live attempts again. What was
// sent stays where it is.
func TestRunThatResumesAgain(t *testing.T) {
	g := newRig(t)
	g.connect("a")
	g.hear("a", synced)
	g.start("a", 1, 2, 3)
	g.start("b", 4)
	g.hear("a", started(2))
	g.Died("c", false, nil, nil, 9)
	g.hear("a", finished(3))
	g.effects = nil
	g.ExpectResume(1)
	g.resume("a", 1, 2, 3)
	g.resume("b", 4)
	g.ResumeDone(1)
	g.expect("report: started 2", "report: started 3", succeeded+"3")
	g.connect("b")
	g.hear("b", synced)
	g.expect("b: lead 2 of epoch 4", "b: order 4 in 2")
}

// TestNumberThatIsTaken: an attempt of another history of the data folder is ended, and the order is
// lost.
func TestNumberThatIsTaken(t *testing.T) {
	g := newRig(t)
	g.ResumeDone(1)
	g.connect("a")
	g.hear("a", synced)
	g.start("a", 1)
	g.hear("a", ignored(1, keyUsed))
	g.expect("a: lead 1 of epoch 4", "a: order 1 in 1", "complaint about a, 1", lost+"1")
	g.disconnect("a")
	g.startAt("a", 6, true, 2) // the worker has one that was granted before
	g.startAt("a", 4, true, 3) // GrantedAt of a resumed order is a lower bound
	g.connect("a")
	g.hear("a", started(2), started(3), synced)
	g.expect("a: lead 2 of epoch 4", "complaint about a, 2", lost+"2", "report: started 3", "a: kill 2 in 2")
}

// TestMisplacedAttemptIsEnded at a worker that its row does not name.
func TestMisplacedAttemptIsEnded(t *testing.T) {
	g := newRig(t)
	g.connect("a")
	g.connect("b")
	g.hear("a", synced)
	g.hear("b", started(2), synced)
	g.start("a", 1)
	g.effects = nil
	g.hear("b", started(1))
	g.resume("a", 2)
	g.expect("complaint about b, 1", "b: kill 1 in 2", "complaint about b, 2", "b: kill 2 in 2", "a: order 2 in 1")
}

// TestStaleIgnoredIsAHint: it says which epoch there is, and changes no attempt.
func TestStaleIgnoredIsAHint(t *testing.T) {
	g := newRig(t)
	g.connect("a")
	g.hear("a", synced)
	g.start("a", 1)
	g.effects = nil
	g.hear("a", ignored(1, staleSession))
	g.hearIn("a", workerpb.Session{Epoch: 4, Number: 99}, ignored(1, staleEpoch), started(1))
	g.expect()
	if g.HighestEpoch() != 6 {
		t.Errorf("highest epoch %d", g.HighestEpoch())
	}
	if err := g.Hear("a", g.links["a"], &workerpb.PartitionReport{Epoch: 4, Session: 1, Finished: [][]byte{{0xff}}}, 9); err == nil {
		t.Error("a malformed end is accepted")
	}
}

// TestUnplacedAttempts belong to the first worker that reports them. Others are lost when all have spoken, or
// when the wait for a silent worker is over; where they live after all they are ended.
func TestUnplacedAttempts(t *testing.T) {
	g := newRig(t)
	g.connect("a")
	g.hear("a", started(1))
	g.resume(Unplaced, 1, 2, 3)
	g.Kill(key(3), 0, 9)
	g.expect("a: lead 1 of epoch 4", "report: started 1")
	g.hear("a", synced)
	g.connect("b")
	g.hear("b", started(2))
	g.expect("b: lead 2 of epoch 4", "report: started 2")
	if !g.HasHeard("a") || g.HasHeard("b") || g.HasHeard("c") {
		t.Error("one has reported")
	}
	if w, running := g.WorkerOf(key(2)); w != "b" || !running {
		t.Errorf("task 2 is at %q, %v", w, running)
	}
	if w, running := g.WorkerOf(key(3)); w != Unplaced || running {
		t.Errorf("task 3 is at %q, %v", w, running)
	}
	g.ConcludeUnplaced(9)
	g.ConcludeUnplaced(9)
	g.expect(lost + "3")
	g.resume(Unplaced, 4)
	g.expect(lost + "4")
	g.hear("b", started(3), synced)
	g.expect("b: kill 3 in 2")

	g = newRig(t, leased)
	g.resume(Unplaced, 1)
	for range 3 {
		g.expect()
		g.Tick(9)
	}
	g.expect(lost + "1")
	g.connect("a")
	g.hear("a", started(1), synced)
	g.Renew("a", 1, 9)
	g.expect("a: lead 1 of epoch 4", "a: kill 1 in 1", "a: renewal 1 of epoch 4")
}
