package remote_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/executor/remote"
	"github.com/caravan-dag/caravan/executor/worker"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/messages"
)

// until is a script that waits for a file of the data folder.
func until(file string) string {
	return fmt.Sprintf("while [ ! -e %s ] && %s; do sleep 0.01; done", file, tested())
}

// tested is a shell condition: the test still runs. No loop outlives one that was
// interrupted.
func tested() string { return fmt.Sprintf("kill -0 %d 2>/dev/null", os.Getpid()) }

func (g *rig) touch(name string) {
	g.t.Helper()
	if err := os.WriteFile(filepath.Join(g.data, name), nil, 0o600); err != nil {
		g.t.Fatal(err)
	}
}

// TestAdoption: a task goes on without a server, the next one hears its start, reads
// and follows its output, kills it; what ended meanwhile is told; nothing starts twice.
func TestAdoption(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	r := g.open(rec)
	orders := []executor.Order{
		g.order(0, "echo x >>ran0; echo before; exec sleep 1000"),
		g.order(1, "echo x >>ran1; "+until("go")+"; seq 3000; touch ended; exit 3"),
		g.order(2, "echo x >>ran2"),
	}
	for _, o := range orders {
		r.Start(o)
	}
	began := rec.WaitStarted(key(0)).At
	rec.WaitStarted(key(1))
	if err := r.Detach(); err != nil {
		t.Fatal(err)
	}
	before := g.worker()
	g.touch("go")
	poll(t, "the task to end", func() bool { _, err := os.Stat(filepath.Join(g.data, "ended")); return err == nil })
	poll(t, "the waiting task to run", func() bool { return read(filepath.Join(g.data, "ran2")) != "" })

	rec = executortest.NewRecorder(t)
	r = g.open(rec)
	for _, o := range orders {
		r.Start(resumed(o))
	}
	if again := rec.WaitStarted(key(0)); again.At != began {
		t.Errorf("started at %d, before the restart %d", again.At, began)
	}
	failed := rec.WaitFinal(key(1)).Record
	if failed.RC != 3 || failed.Stdout.Size != 13893 || failed.Stdout.Inline != nil {
		t.Errorf("%+v", failed)
	}
	store, err := outputs.Open(filepath.Join(g.data, "output"))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	kept, err := store.Log(outputs.ID{Key: key(1)}, failed.Stdout)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, failed.Stdout.Size)
	if n, err := kept.ReadAt(buf, 0); n != len(buf) || err != nil && err != io.EOF || !strings.HasSuffix(string(buf), "\n3000\n") {
		t.Errorf("%d bytes, %v", n, err)
	}
	kept.Close()
	if rep := rec.WaitFinal(key(2)); rep.Record.Result != messages.AttemptSucceeded {
		t.Errorf("%+v", rep)
	}

	log, err := r.OpenLog(key(0), messages.Stdout)
	if err != nil {
		t.Fatal(err)
	}
	poll(t, "output", func() bool { return log.Size() == 7 })
	n, err := log.ReadAt(buf[:100], 0)
	if string(buf[:n]) != "before\n" || err != io.EOF || !log.Live() || log.Kept(3) != 3 {
		t.Errorf("%q, %v, live %v", buf[:n], err, log.Live())
	}
	r.Kill(key(0), time.Second)
	if rep := rec.WaitFinal(key(0)); rep.Record.Result != messages.AttemptKilled {
		t.Errorf("%+v", rep)
	}
	if log.Live() || log.Size() != 7 {
		t.Errorf("after the end: live %v, %d bytes", log.Live(), log.Size())
	}
	log.Close()
	if _, err := r.OpenLog(key(0), messages.Stdout); !errors.Is(err, executor.ErrNotRunning) {
		t.Errorf("%v", err)
	}
	if g.worker() != before {
		t.Error("another worker was started")
	}
	for i := range 3 {
		if text := read(filepath.Join(g.data, fmt.Sprint("ran", i))); text != "x\n" {
			t.Errorf("task %d ran %q", i, text)
		}
	}
}

// TestShortAttempts: whether a start is reported, or left to an end that comes with it, how
// long the slot was idle is told once.
func TestShortAttempts(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	r := g.open(rec)
	const n = 100
	for i := range uint32(n) {
		r.Start(g.order(i, "exit 3"))
	}
	alone := 0
	for i := range uint32(n) {
		end := rec.WaitFinal(key(i))
		reports := rec.Reports(key(i))
		told := 0
		for _, rep := range reports {
			if rep.StartDelay > 0 {
				told++
			}
		}
		if told != 1 || end.Record.Start == 0 || end.Record.RC != 3 {
			t.Errorf("%+v", reports)
		}
		if len(reports) == 1 {
			alone++
		}
		r.Acknowledge(key(i))
	}
	t.Logf("%d of %d starts were left to the end", alone, n)
}

// TestSettled: what nobody asks for is ended and forgotten.
func TestSettled(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	r := g.open(rec, shortlyIdle)
	r.Start(g.order(0, "exec sleep 1000"))
	r.Start(g.order(1, "true"))
	rec.WaitFinal(key(1))
	rec.WaitStarted(key(0))
	r.Detach()
	rec = executortest.NewRecorder(t)
	r = g.open(rec, shortlyIdle)
	r.ExpectResume()
	r.Start(g.order(2, "true"))
	rec.WaitFinal(key(2))
	r.Acknowledge(key(2))
	poll(t, "the task that nobody asked for to end", func() bool { return len(g.processes()) == 1 })
	// Its process is gone before the worker says so: until then there is no end to forget.
	poll(t, "its end to be forgotten", func() bool { return r.Known() == 0 })
	r.Detach()
	g.idled()
	if left, _ := worker.ListFolders(g.dir()); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	for _, rep := range rec.All() {
		if rep.Key != key(2) {
			t.Errorf("reported: %+v", rep)
		}
	}
}

// TestWorkerDies: its attempts are lost and their processes gone, wherever they went;
// an end that was not acknowledged is told again; what waited is run by the next one.
func TestWorkerDies(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	r := g.open(rec)
	r.Start(g.order(0, "true"))
	rec.WaitFinal(key(0)) // and not acknowledged
	r.Start(g.order(1, `trap "" TERM; setsid sleep 1000 & env -i sleep 1000 & touch there; while `+tested()+`; do sleep 1000; done`))
	r.Start(g.order(2, "exec sleep 1000"))
	r.Start(g.order(3, "echo x >>ran3"))
	poll(t, "task 1", func() bool { _, err := os.Stat(filepath.Join(g.data, "there")); return err == nil })
	rec.WaitStarted(key(1))
	rec.WaitStarted(key(2))
	log, err := r.OpenLog(key(1), messages.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	first := g.worker()
	_ = unix.Kill(first, unix.SIGKILL)
	for _, k := range []messages.AttemptKey{key(1), key(2)} {
		rep := rec.WaitFinal(k)
		if rec := rep.Record; rec.Result != messages.AttemptLost || rec.RC != -1 || rec.Node != "here" || rec.Start == 0 ||
			!strings.Contains(rec.ExecutorLog, fmt.Sprintf("pid %d", first)) {
			t.Errorf("%+v", rep)
		}
	}
	if log.Live() {
		t.Error("the log of a lost attempt is live")
	}
	if _, err := log.ReadAt(make([]byte, 1), 0); err == nil {
		t.Error("read from a dead worker")
	}
	if rep := rec.WaitFinal(key(3)); rep.Record.Result != messages.AttemptSucceeded || read(filepath.Join(g.data, "ran3")) != "x\n" {
		t.Errorf("%+v", rep)
	}
	if left := g.processes(); len(left) != 1 {
		t.Errorf("processes %v, want the new worker alone", left)
	}
	if n := len(rec.Reports(key(0))); n > 2 || rec.Starts(key(0)) != 1 {
		t.Errorf("%d reports of the attempt that had ended", n)
	}
	// The estate stays until every end in it is acknowledged, over a restart too.
	r.Acknowledge(key(3))
	r.Detach()
	rec = executortest.NewRecorder(t)
	r = g.open(rec)
	r.Start(resumed(g.order(0, "false")))
	if rep := rec.WaitFinal(key(0)); rep.Record.Result != messages.AttemptSucceeded {
		t.Errorf("%+v", rep)
	}
	r.Acknowledge(key(0))
	r.ExpectResume()
	poll(t, "the estate to be settled", func() bool { left, _ := worker.ListFolders(g.dir()); return len(left) == 1 })
}

// TestWorkerTerminated: a worker that is told to end by a signal ends what runs.
func TestWorkerTerminated(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	r := g.open(rec)
	r.Start(g.order(1, "exec sleep 1000"))
	rec.WaitStarted(key(1))
	_ = unix.Kill(g.worker(), unix.SIGTERM)
	if rep := rec.WaitFinal(key(1)); rep.Record.Result != messages.AttemptLost {
		t.Errorf("%+v", rep)
	}
	r.Start(g.order(2, "true"))
	rec.WaitFinal(key(2))
}

// TestUpgrade: the old worker finishes what it runs and gives back what waits; the new
// one uses the slots that are left and no others; the old one ends.
func TestUpgrade(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	r := g.open(rec)
	// A task notes how many run beside it.
	script := func(gate string) string {
		return `touch running.$CARAVAN_TASK; ls running.* | wc -l >>beside; ` + until(gate) + `; rm running.$CARAVAN_TASK`
	}
	for i := range uint32(4) {
		o := g.order(i, script(fmt.Sprint("go", i)))
		r.Start(o)
	}
	rec.WaitStarted(key(0))
	rec.WaitStarted(key(1))
	r.Detach()
	old := g.worker()

	rec = executortest.NewRecorder(t)
	newer := func(c *remote.Config) { c.Settings.Version = "newer" }
	r = g.open(rec, newer)
	for i := range uint32(4) {
		r.Start(resumed(g.order(i, script(fmt.Sprint("go", i)))))
	}
	r.ExpectResume()
	rec.WaitStarted(key(0))
	poll(t, "the new worker", func() bool { return len(g.workers()) == 2 })
	if rec.Starts(key(2)) != 0 {
		t.Error("task 2 runs beside two others in two slots")
	}
	g.touch("go0")
	rec.WaitFinal(key(0))
	rec.WaitStarted(key(2)) // in the slot that the old one left
	log, err := r.OpenLog(key(1), messages.Stdout)
	if err != nil {
		t.Errorf("log of a task of the old worker: %v", err)
	} else {
		log.Close()
	}
	for i := 1; i < 4; i++ {
		g.touch(fmt.Sprint("go", i))
	}
	for i := range uint32(4) {
		if rep := rec.WaitFinal(key(i)); rep.Record.Result != messages.AttemptSucceeded {
			t.Errorf("%+v", rep)
		}
		r.Acknowledge(key(i))
	}
	poll(t, "the old worker to end", func() bool { return unix.Kill(old, 0) != nil || len(g.workers()) == 1 })
	for line := range strings.Lines(read(filepath.Join(g.data, "beside"))) {
		if n := strings.TrimSpace(line); n != "1" && n != "2" {
			t.Errorf("%s tasks in two slots", n)
		}
	}
	poll(t, "its folder to go", func() bool { left, _ := worker.ListFolders(g.dir()); return len(left) == 1 })
}

// TestStoppedWorker: a worker that does not answer holds everything up, and nothing is
// started in its place; Close ends it all the same.
func TestStoppedWorker(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	r := g.open(rec)
	o := g.order(1, "echo x >>ran; exec sleep 1000")
	r.Start(o)
	rec.WaitStarted(key(1))
	r.Detach()
	pid := g.worker()
	_ = unix.Kill(pid, unix.SIGSTOP)
	rec = executortest.NewRecorder(t)
	r = g.open(rec)
	r.Start(resumed(o))
	r.Start(g.order(2, "true"))
	r.Kill(key(1), 100*time.Millisecond)
	r.Revoke(key(2))
	if rep := rec.WaitFinal(key(2)); rep.Kind != executor.Revoked {
		t.Errorf("%+v", rep)
	}
	if n := len(g.workers()); n != 1 || len(rec.Reports(key(1))) != 0 {
		t.Errorf("%d workers, reports %+v", n, rec.Reports(key(1)))
	}
	_ = unix.Kill(pid, unix.SIGCONT)
	if rep := rec.WaitFinal(key(1)); rep.Record.Result != messages.AttemptKilled || read(filepath.Join(g.data, "ran")) != "x\n" {
		t.Errorf("%+v", rep)
	}
}

func TestIdleWorker(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	r := g.open(rec, shortlyIdle)
	for i := range uint32(200) {
		r.Start(g.order(i, "true"))
	}
	for i := range uint32(200) {
		rec.WaitFinal(key(i))
		r.Acknowledge(key(i))
	}
	status := read(fmt.Sprintf("/proc/%d/status", g.worker()))
	var kb int
	for line := range strings.Lines(status) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			fmt.Sscan(rest, &kb)
		}
	}
	if limit := 40 << 10; kb == 0 || kb > limit && !race || kb > 3*limit {
		t.Errorf("resident: %d KB", kb)
	}
	t.Logf("resident: %d KB", kb)
	r.Detach()
	g.idled()
	if left, _ := worker.ListFolders(g.dir()); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestDeepFolder: the address of a socket has room for 108 bytes.
func TestDeepFolder(t *testing.T) {
	g := newRig(t)
	g.data = filepath.Join(g.data, strings.Repeat("a-folder-that-lies-deep/", 12))
	if err := os.MkdirAll(g.data, 0o700); err != nil {
		t.Fatal(err)
	}
	rec := executortest.NewRecorder(t)
	r := g.open(rec)
	r.Start(g.order(1, "true"))
	if rep := rec.WaitFinal(key(1)); rep.Record.Result != messages.AttemptSucceeded {
		t.Errorf("%+v", rep)
	}
}

func TestNewRefuses(t *testing.T) {
	g := newRig(t)
	sink := func(...executor.Report) {}
	for name, change := range map[string]func(*remote.Config){
		"sink":    func(c *remote.Config) { c.Sink = nil },
		"outputs": func(c *remote.Config) { c.Settings.Outputs = "" },
		"cores":   func(c *remote.Config) { c.CPUMillis = 0 },
		"folder":  func(c *remote.Config) { c.Dir = "/dev/null/x" },
		"program": func(c *remote.Config) { c.Binary = "/nowhere/caravan" },
	} {
		cfg := g.config(sink)
		change(&cfg)
		if r, err := remote.New(cfg); err == nil {
			r.Close()
			t.Errorf("%s: accepted", name)
		}
	}
	g.open(executortest.NewRecorder(t))
	if _, err := remote.New(g.config(sink)); !errors.Is(err, worker.ErrLocked) {
		t.Errorf("two servers: %v", err)
	}
}

// TestBadProgram: orders wait for a worker, and are revoked when there is none.
func TestBadProgram(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	r := g.open(rec, func(c *remote.Config) { c.Binary = "/bin/false" })
	r.Start(g.order(1, "true"))
	poll(t, "the log to say so", func() bool { return strings.Contains(g.log.String(), "new workers die before they serve") })
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if rep := rec.WaitFinal(key(1)); rep.Kind != executor.Revoked {
		t.Errorf("%+v", rep)
	}
}

func TestTooLarge(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	r := g.open(rec)
	r.ExpectResume()
	o := g.order(1, "true")
	o.CPUMillis = 2500
	r.Start(o)
	if rep := rec.WaitFinal(key(1)).Record; rep.Result != messages.AttemptNotStarted || rep.ExecutorLog != "needs 2.5 cores, the machine has 2" {
		t.Errorf("%+v", rep)
	}
	o = resumed(g.order(2, "true"))
	o.MemoryBytes = 200 << 20
	r.Start(o)
	if rep := rec.WaitFinal(key(2)).Record; rep.Result != messages.AttemptNotStarted || rep.ExecutorLog != "needs 200 MB of memory, the machine has 100" {
		t.Errorf("%+v", rep)
	}
}
