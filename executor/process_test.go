package executor_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/executor/procfs"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

func TestMain(m *testing.M) {
	// As the program does: descriptors that the caller of the tests left open are not for tasks.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		fmt.Fprintln(os.Stderr, "descriptors that were inherited reach the tasks:", err)
	}
	// The first timer opens the descriptors of Go's poller, which newRig would take for a leak.
	time.AfterFunc(time.Hour, func() {}).Stop()
	testenv.VerifyNoLeaks(m)
}

// rig is a Process with the means to observe it.
type rig struct {
	*executor.Process
	*executortest.Recorder
	t      *testing.T
	store  *outputs.Store
	mark   string // an entry of the environment of everything that the rig starts
	dir    string
	groups string // of the control groups, in a rig that has some
}

var marks atomic.Int64

// newRig makes a Process with 4 cores and 100 MB. At the end of the test all its attempts and slots
// must be gone, and it must leave no process and no descriptor behind.
func newRig(t *testing.T, change func(*executor.ProcessConfig)) *rig {
	t.Helper()
	runtime.GC() // descriptors of earlier tests' garbage
	before := countDescriptors(t)
	r := &rig{Recorder: executortest.NewRecorder(t), t: t, dir: t.TempDir()}
	r.mark = fmt.Sprintf("CARAVAN_TEST_MARK=%d-%d", os.Getpid(), marks.Add(1))
	var err error
	if r.store, err = outputs.Open(filepath.Join(r.dir, "output")); err != nil {
		t.Fatal(err)
	}
	cfg := executor.ProcessConfig{
		CommonConfig: executor.CommonConfig{Outputs: r.store, Sink: r.Recorder.Sink, Logger: slog.New(slog.DiscardHandler)},
		CPUMillis:    4000, MemoryBytes: 100 << 20, Node: "here",
	}
	if change != nil {
		change(&cfg)
	}
	if r.Process, err = executor.NewProcess(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { killMarked(t, r.mark) })
	t.Cleanup(func() {
		if err := r.Process.Close(); err != nil {
			t.Error(err)
		}
		r.checkIdle()
		r.store.Close()
		if pids := markedProcesses(r.mark); len(pids) > 0 {
			t.Errorf("processes left behind: %v", pids)
		}
		poll(t, func() string {
			if after := countDescriptors(t); after > before {
				return fmt.Sprintf("%d descriptors before, %d after", before, after)
			}
			return ""
		})
	})
	return r
}

// checkIdle checks that no attempt runs and all slots are free.
func (r *rig) checkIdle() {
	r.t.Helper()
	if err := r.CheckInvariants(); err != nil {
		r.t.Error(err)
	}
	if s := r.Stats(); s.Running != 0 || s.Queued != 0 || s.CPUMillisUsed != 0 || s.MemoryBytesUsed != 0 {
		r.t.Errorf("not idle: %+v", s)
	}
}

func id(task uint32) messages.AttemptKey {
	return messages.AttemptKey{Run: 12, Task: task, Attempt: 1}
}

// startShell starts a shell script as the task; it costs one core.
func (r *rig) startShell(task uint32, script string, change ...func(*executor.Order)) messages.AttemptKey {
	o := executor.Order{
		Key: id(task), Name: fmt.Sprintf("task_%d", task), UseShell: true, Shell: script,
		CPUMillis: 1000, Environment: []string{r.mark},
	}
	for _, c := range change {
		c(&o)
	}
	r.Start(o)
	return o.Key
}

// runShell runs the script and returns its final report.
func (r *rig) runShell(script string, change ...func(*executor.Order)) executor.Report {
	r.t.Helper()
	return r.WaitFinal(r.startShell(1000+uint32(marks.Add(1)), script, change...)) // tests number theirs from 0
}

// readOutput returns an ended attempt's output, with "<cut>" for the gap.
func (r *rig) readOutput(o messages.Output) string {
	r.t.Helper()
	l, err := r.store.Log(r.outputID(o), o)
	if err != nil {
		r.t.Fatal(err)
	}
	defer l.Close()
	return readAll(r.t, l)
}

// outputID finds the attempt with this output.
func (r *rig) outputID(o messages.Output) outputs.ID {
	for _, rep := range r.All() {
		for stream, out := range []messages.Output{rep.Record.Stdout, rep.Record.Stderr} {
			if rep.Kind == executor.Finished && out.Size == o.Size && out.Offset == o.Offset && bytes.Equal(out.Inline, o.Inline) {
				return outputs.ID{Key: rep.Key, Stream: messages.Stream(stream)}
			}
		}
	}
	return outputs.ID{}
}

func readAll(t *testing.T, l messages.Log) string {
	t.Helper()
	var b bytes.Buffer
	buf := make([]byte, 64<<10)
	for off := int64(0); ; {
		n, err := l.ReadAt(buf, off)
		b.Write(buf[:n])
		off += int64(n)
		switch err {
		case nil:
		case io.EOF:
			return b.String()
		case messages.ErrCut:
			b.WriteString("<cut>")
			off = l.Kept(off)
		default:
			t.Fatalf("read at %d: %v", off, err)
		}
	}
}

// waitPrinted waits until a running attempt's stdout holds want.
func (r *rig) waitPrinted(key messages.AttemptKey, want string) {
	r.t.Helper()
	r.WaitStarted(key)
	l, err := r.OpenLog(key, messages.Stdout)
	if err != nil {
		r.t.Fatal(err)
	}
	defer l.Close()
	poll(r.t, func() string {
		if s := readAll(r.t, l); !strings.Contains(s, want) {
			return fmt.Sprintf("%q has not been printed: %q", want, s)
		}
		return ""
	})
}

// poll waits for a state of a real process that sends no signal.
func poll(t *testing.T, missing func() string) {
	t.Helper()
	var lacks string
	if !testenv.Poll(time.Minute, func() bool { lacks = missing(); return lacks == "" }) {
		t.Fatal(lacks)
	}
}

func countDescriptors(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// markedProcesses lists the living processes with the entry in their environment.
func markedProcesses(entry string) (pids []string) {
	list, err := procfs.List("/proc")
	for _, p := range list {
		var env []byte
		if env, err = p.Environment(); err != nil {
			break
		}
		if !p.Dead && bytes.Contains(env, []byte(entry)) {
			pids = append(pids, strconv.Itoa(p.PID))
		}
	}
	if err != nil {
		return []string{"unknown: " + err.Error()} // a list that lacks some would prove their end
	}
	return pids
}

// killMarked kills the processes with the entry in their environment, and their children.
func killMarked(t *testing.T, entry string) {
	t.Helper()
	poll(t, func() string {
		pids := markedProcesses(entry)
		for _, pid := range pids {
			if n, err := strconv.Atoi(pid); err == nil {
				_ = syscall.Kill(n, syscall.SIGKILL)
			}
		}
		return strings.Join(pids, " ")
	})
}

// whileTestRuns is a shell condition that is false once the test has ended, so that loops end with
// an interrupted test.
func whileTestRuns() string { return fmt.Sprintf("kill -0 %d 2>/dev/null", os.Getpid()) }

func TestProcessConforms(t *testing.T) {
	executortest.Test(t, executortest.Subject{
		Open: func(t testing.TB, sink executor.Sink) executor.Executor {
			store, err := outputs.Open(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { store.Close() })
			p, err := executor.NewProcess(executor.ProcessConfig{CommonConfig: executor.CommonConfig{Outputs: store, Sink: sink}, CPUMillis: 3000})
			if err != nil {
				t.Fatal(err)
			}
			return p
		},
		Quick:         executor.Order{Name: "quick", Command: []string{"true"}, CPUMillis: 1000},
		Block:         &executor.Order{Name: "block", Command: []string{"sleep", "1000"}, CPUMillis: 1000},
		Slots:         3,
		RunsTakeTurns: true,
		AfterClose: func(t testing.TB, e executor.Executor) {
			if err := e.(*executor.Process).CheckInvariants(); err != nil {
				t.Error(err)
			}
			if n := e.(*executor.Process).Stats().Running; n != 0 {
				t.Errorf("%d still run", n)
			}
		},
	})
}

func TestNoopConforms(t *testing.T) {
	executortest.Test(t, executortest.Subject{
		Open:  func(_ testing.TB, sink executor.Sink) executor.Executor { return executor.NewNoop(sink.Report) },
		Quick: executor.Order{Name: "quick"},
	})
}

func TestNoopAllocatesNothing(t *testing.T) {
	var got executor.Report
	n := executor.NewNoop(func(r executor.Report) { got = r })
	n.Now = func() int64 { return 5 }
	o := executor.Order{Key: id(3)}
	if a := testing.AllocsPerRun(100, func() { n.Start(o) }); a != 0 {
		t.Errorf("%v allocations", a)
	}
	want := messages.AttemptRecord{Task: 3, Attempt: 1, Start: 5, Stop: 5}
	if got.Key != o.Key || got.Kind != executor.Finished || fmt.Sprint(got.Record) != fmt.Sprint(want) {
		t.Errorf("%+v", got)
	}
}

func TestInvalidConfigIsRefused(t *testing.T) {
	store, err := outputs.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	sink := func(...executor.Report) {}
	for _, cfg := range []executor.ProcessConfig{
		{CommonConfig: executor.CommonConfig{Outputs: store}, CPUMillis: 1},
		{CommonConfig: executor.CommonConfig{Sink: sink}, CPUMillis: 1},
		{CommonConfig: executor.CommonConfig{Sink: sink, Outputs: store}},
		{CommonConfig: executor.CommonConfig{Sink: sink, Outputs: store}, CPUMillis: 1, MemoryBytes: -1},
	} {
		if _, err := executor.NewProcess(cfg); err == nil {
			t.Errorf("%+v was taken", cfg)
		}
	}
}

func TestHooksSeeEachStartInOrder(t *testing.T) {
	var mu sync.Mutex
	var said []string
	refused := false
	say := func(s string) {
		mu.Lock()
		defer mu.Unlock()
		said = append(said, s)
	}
	r := newRig(t, func(c *executor.ProcessConfig) {
		c.RecordIntents = func(orders []*executor.Order) error {
			for _, o := range orders {
				say("intent " + o.Name)
				if o.Name == "refused" && !refused {
					refused = true
					return errors.New("no room to remember it")
				}
			}
			return nil
		}
		c.OnStarted = func(o *executor.Order, pid int) { say("started " + o.Name) }
		c.AttemptMark = func(k messages.AttemptKey) string { return "MARK=it" }
	})
	rec := r.runShell(`echo "$MARK"`, func(o *executor.Order) { o.Name, o.Environment = "one", append(o.Environment, "MARK=mine") }).Record
	if rec.Result != messages.AttemptSucceeded || string(rec.Stdout.Inline) != "it\n" {
		t.Errorf("%+v", rec)
	}
	rec = r.runShell("true", func(o *executor.Order) { o.Name = "refused" }).Record
	if rec.Result != messages.AttemptSucceeded || rec.ExecutorLog != "" {
		t.Errorf("%+v", rec)
	}
	if got := strings.Join(said, ", "); got != "intent one, started one, intent refused, intent refused, started refused" {
		t.Errorf("%s", got)
	}
}

func TestSetCapacityBoundsTheSlots(t *testing.T) {
	r := newRig(t, nil)
	r.SetCapacity(0, 0)
	r.startShell(1, "exec sleep 1000")
	r.startShell(2, "exec sleep 1000")
	if s := r.Stats(); s.Queued != 2 || s.Running != 0 {
		t.Errorf("%+v", s)
	}
	r.SetCapacity(1_000_000, 1_000_000) // at most what was configured
	r.WaitStarted(id(1))
	r.WaitStarted(id(2))
	r.SetCapacity(1000, 0)
	r.startShell(3, "true")
	r.Kill(id(1), 0)
	r.WaitFinal(id(1))
	if s := r.Stats(); s.Queued != 1 || !r.HasStarted(id(1)) || r.HasStarted(id(3)) {
		t.Errorf("%+v", s)
	}
	r.Kill(id(2), 0)
	r.WaitFinal(id(3))
	if err := r.CheckInvariants(); err != nil {
		t.Error(err)
	}
}

// A commandString is run by /bin/sh. A task without a working folder runs in the executor's.
func TestCommandStringRunsInTheDefaultFolder(t *testing.T) {
	r := newRig(t, nil)
	shell, err := filepath.EvalSymlinks("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	own, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	out := r.readOutput(r.runShell(`readlink /proc/$$/exe; readlink /proc/$$/cwd; tr '\0' ' ' </proc/$$/cmdline`).Record.Stdout)
	lines := strings.SplitN(out, "\n", 3)
	if len(lines) != 3 || lines[0] != shell || lines[1] != own || !strings.Contains(lines[2], " -c readlink ") {
		t.Errorf("printed %q, want the shell %s in the folder %s", out, shell, own)
	}
	dir := t.TempDir()
	if out := r.readOutput(r.runShell("pwd", func(o *executor.Order) { o.Dir = dir }).Record.Stdout); out != dir+"\n" {
		t.Errorf("in %q, want %s", out, dir)
	}
}

// By default 64 MiB of a stream are kept, half from each end.
func TestDefaultOutputLimitKeepsBothEnds(t *testing.T) {
	r := newRig(t, nil)
	const limit = 64 << 20
	rec := r.runShell(`head -c 67108864 /dev/zero; head -c 67108865 /dev/zero >&2`).Record
	if rec.Result != messages.AttemptSucceeded {
		t.Fatalf("%+v", rec)
	}
	if o := rec.Stdout; o.Size != limit || o.Head+o.Tail != limit {
		t.Errorf("64 MiB: %+v", o)
	}
	if o := rec.Stderr; o.Size != limit+1 || o.Head != limit/2 || o.Tail != limit/2 {
		t.Errorf("64 MiB and a byte: %+v", o)
	}
}
