package worker

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

// TestDrainGivesBackWaitingOrders drains a busy worker: it gives back what waits, refuses new
// orders, and ends when its ends are acknowledged.
func TestDrainGivesBackWaitingOrders(t *testing.T) {
	g := newRig(t)
	c, _ := g.attach()
	for i := range uint32(2) { // a kill before the fork would give the order back
		c.send(shell(i, "read x </dev/zero; sleep 1000"))
		c.want("started", key(i))
	}
	c.send(shell(2, "true"))
	c.send(drain)
	usage := func() workerpb.Amount {
		for {
			i := c.next()
			if i.kind == "usage" {
				return i.message.(*workerpb.Resources).Amount()
			}
			if i.kind == "revoked" && i.key != key(2) {
				t.Errorf("revoked: %v", i.key)
			}
		}
	}
	for a := usage(); a.CPUMillis != 2000; a = usage() {
		t.Logf("usage %+v", a)
	}
	c.send(shell(9, "true"))
	c.of("revoked")
	c.send(kill(0, 0), kill(1, 0))
	for a := usage(); a.CPUMillis > 0; a = usage() {
		t.Logf("usage %+v", a)
	}
	// It ends once all is acknowledged, and leaves nothing that it was not told to remove.
	c.send(acknowledge(0), acknowledge(1))
	if err := g.wait(); err != nil || !exists(g.folder.Path) {
		t.Errorf("%v, folder there: %v", err, exists(g.folder.Path))
	}
	if e := recoverState(t, g.folder.Path); len(e.Ends) != 0 || !e.Complete {
		t.Errorf("%+v", e)
	}
}

// TestStopEndsAttempts stops a worker with a running attempt, whose end stays for the next server.
func TestStopEndsAttempts(t *testing.T) {
	g := newRig(t)
	c, _ := g.attach()
	c.send(shell(1, "sleep 1000"))
	c.want("started", key(1))
	c.send(stop)
	rep := c.want("finished", key(1)).report(t)
	if rep.Record.Result != messages.AttemptLost {
		t.Errorf("%+v", rep)
	}
	c.want("stopped", messages.AttemptKey{})
	c.conn.Close()
	if err := g.wait(); err != nil {
		t.Error(err)
	}
	// The end was not acknowledged: it stays for the next server.
	e := recoverState(t, g.folder.Path)
	if len(e.Ends) != 1 || e.Ends[0].Record.Result != messages.AttemptLost || !e.Complete {
		t.Errorf("%+v", e)
	}
}

func recoverState(t *testing.T, path string) *DeadWorkerState {
	t.Helper()
	f, err := LockFolder(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Release)
	e, err := RecoverDeadWorker(context.Background(), dead(f), 100*time.Millisecond, quiet())
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestIdleWorkerEnds(t *testing.T) {
	testenv.WithGrowingTime(t, 200*time.Millisecond, func(idle time.Duration) error { return endIdle(t, idle) })
}

// endIdle returns an error when the worker has been idle for its time before this server comes.
func endIdle(t *testing.T, idle time.Duration) error {
	g := newRig(t, func(s *Settings) { s.Idle = idle })
	conn, ctx, cancel := g.dial()
	stream, err := workerpb.NewWorkerClient(conn).Attach(ctx)
	if err != nil {
		return err
	}
	f := new(workerpb.ServerFrame)
	lead(firstSession)(f)
	if err := stream.Send(f); err != nil {
		return err
	}
	if _, err := stream.Recv(); err != nil {
		return err
	}
	c := &client{t: t, conn: conn, cancel: cancel, stream: stream}
	c.send(func(f *workerpb.ServerFrame) { f.SetCapacity(workerpb.Amount{CPUMillis: 2000, MemoryBytes: 1 << 20}) },
		shell(1, fmt.Sprintf("sleep %f", 1.5*idle.Seconds())))
	c.of("started")
	conn.Close()
	if err := g.wait(); err != nil {
		t.Error(err)
	}
	// It waited for the task, and left its end to the next server.
	e := recoverState(t, g.folder.Path)
	if len(e.Ends) != 1 || e.Ends[0].Record.Result != messages.AttemptSucceeded {
		t.Errorf("%+v", e)
	}
	return nil
}

// TestStoppedWorkerDoesNotAwaitAServerThatIsBack has a server that heard stopped, went, and came
// back before the worker looked. The worker does not wait for it.
func TestStoppedWorkerDoesNotAwaitAServerThatIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		heard := newLink()
		close(heard.left)
		w := &Worker{link: newLink()}
		begin := time.Now()
		w.awaitFarewell(heard)
		if took := time.Since(begin); took > 0 {
			t.Errorf("the worker ended after %v", took)
		}
	})
}

func TestRunRefusesBadFolders(t *testing.T) {
	dir := t.TempDir()
	if err := Run(context.Background(), Config{Dir: filepath.Join(dir, "none")}); err == nil {
		t.Error("a folder that is none")
	}
	if err := Run(context.Background(), Config{Dir: dir, Settings: Settings{Outputs: "/dev/null/x"}, Logger: quiet()}); err == nil {
		t.Error("an output folder that is none")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Run(ctx, Config{Dir: dir, Settings: Settings{Outputs: dir}, Logger: quiet()}); err != nil {
		t.Error(err)
	}
}
