package slurm_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/executor/slurm"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

// Records say how attempts ended, for each way to end.
func TestRecordsOfEnds(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	s := g.open(rec, func(c *slurm.Config) { c.Grace = testenv.Patience })
	program := func(task uint32, argv ...string) executor.Order {
		o := g.order(task, "")
		o.UseShell, o.Command = false, argv
		return o
	}
	limited := func(o executor.Order, timeout time.Duration) executor.Order {
		o.Timeout = timeout
		return o
	}
	in := func(o executor.Order, dir string) executor.Order {
		o.Dir = dir
		return o
	}
	with := func(o executor.Order, env ...string) executor.Order {
		o.Environment = append(o.Environment, env...)
		return o
	}
	member := func(o executor.Order, name, raw string) executor.Order {
		o.ExtraMembers = []messages.Member{{Name: name, Raw: raw}}
		return o
	}
	cases := []struct {
		order    executor.Order
		result   messages.AttemptResult
		rc       int32
		log      string
		out, err string
	}{
		{g.order(0, "echo to out; echo to err >&2"), messages.AttemptSucceeded, 0, "", "to out\n", "to err\n"},
		{g.order(1, "exit 3"), messages.AttemptFailed, 3, "", "", ""},
		{g.order(2, "kill -SEGV $$"), messages.AttemptSignaled, 139, "ended by signal 11 (segmentation fault)", "", ""},
		{limited(program(3, "sleep", "1000"), 200*time.Millisecond), messages.AttemptTimedOut, 143, "timed out after 200ms", "", ""},
		{program(5, "no-such-program"), messages.AttemptNotStarted, -1, `start "no-such-program": not found, or not executable, on node node1`, "", "?"},
		{in(g.order(6, "true"), "/no/such/folder"), messages.AttemptNotStarted, -1, `working folder "/no/such/folder"`, "", "?"},
		{program(7), messages.AttemptNotStarted, -1, "the command is empty", "", ""},
		{with(g.order(8, "true"), "=x"), messages.AttemptNotStarted, -1, "not of the form K=V", "", ""},
		{program(9, "printf", "%s", "it's a 'quoted' $HOME `id`\n\"\\"), messages.AttemptSucceeded, 0, "", "it's a 'quoted' $HOME `id`\n\"\\", ""},
		{with(program(10, "/bin/sh", "-c", `echo "$A|$CARAVAN_RUN_ID|$CARAVAN_TASK|$CARAVAN_ATTEMPT|$TMPDIR|$SLURM_EXPORT_ENV|$ENVIRONMENT"`), "A=a b'c", "TMPDIR=/t", "odd.name=1"),
			messages.AttemptSucceeded, 0, "", "a b'c|1|t_10|1|/t||\n", ""},
		{with(program(11, "env"), "odd.name=x y"), messages.AttemptSucceeded, 0, "", "?odd.name=x y\n", ""},
		{member(g.order(12, "true"), "partition", `["a"]`), messages.AttemptNotStarted, -1, `partition must be a string for Slurm, it is ["a"]`, "", ""},
		{g.order(13, "pwd; cat"), messages.AttemptSucceeded, 0, "", g.data + "\n", ""},
		{limited(g.order(14, "echo in time"), time.Hour), messages.AttemptSucceeded, 0, "", "in time\n", ""},
		{g.order(16, "-e echo hi"), messages.AttemptFailed, 127, "", "", "?-e: not found"},
		{g.order(17, "#"+strings.Repeat("x", 143<<10)+"\necho \"$0 $#\""), messages.AttemptSucceeded, 0, "", "/bin/sh 0\n", ""},
		{program(15, "nul\x00"), messages.AttemptNotStarted, -1, "NUL byte", "", ""},
	}
	for _, c := range cases {
		s.Start(c.order)
	}
	for _, c := range cases {
		r := rec.WaitFinal(c.order.Key)
		checkEnd(t, r, c.result, c.rc, c.log)
		for _, o := range []struct{ got, want string }{{string(r.Record.Stdout.Inline), c.out}, {string(r.Record.Stderr.Inline), c.err}} {
			if part, any := strings.CutPrefix(o.want, "?"); any && strings.Contains(o.got, part) {
				continue
			}
			if o.got != o.want {
				t.Errorf("task %d printed %q, want %q", c.order.Key.Task, o.got, o.want)
			}
		}
		if begun := c.rc != -1; begun && (r.Record.Node != "node1" || r.Record.Start == 0 || r.Record.Stop < r.Record.Start || rec.Starts(c.order.Key) != 1) {
			t.Errorf("task %d: %+v", c.order.Key.Task, r.Record)
		}
	}
}

// A task that ignores SIGTERM is killed when its timeout and its grace are over.
func TestTimeoutForcesATaskThatIgnoresSIGTERM(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	s := g.open(rec, func(c *slurm.Config) { c.Grace = 300 * time.Millisecond })
	for task, limit := uint32(1), 200*time.Millisecond; ; task, limit = task+1, 4*limit {
		o := g.order(task, `trap "" TERM; while :; do sleep 0.05; done`)
		o.Timeout = limit
		s.Start(o)
		r := rec.WaitFinal(key(task))
		if r.Record.RC == 143 && limit < testenv.Patience { // a busy machine reached the trap too late
			continue
		}
		checkEnd(t, r, messages.AttemptTimedOut, 137, "timed out")
		return
	}
}

// Neither a task nor its job sees the server's environment.
func TestServerEnvironmentStaysHidden(t *testing.T) {
	g := newRig(t)
	t.Setenv("API_TOKEN", "secret")
	t.Setenv("SBATCH_PARTITION", "elsewhere")
	t.Setenv("SLURM_JWT", "secret")
	rec := executortest.NewRecorder(t)
	s := g.open(rec)
	s.Start(g.order(1, "env; cat /proc/$PPID/environ"))
	out := string(rec.WaitFinal(key(1)).Record.Stdout.Inline)
	if !strings.Contains(out, "CARAVAN_TASK=t_1\n") || !strings.Contains(out, "SLURM_JOB_ID=") {
		t.Errorf("the task's environment: %q", out)
	}
	if strings.Contains(out, "secret") || strings.Contains(out, "elsewhere") {
		t.Errorf("it leaked: %q", out)
	}
}

// The attempt's CPU time is in its record.
func TestRecordHasCPUTime(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	g.open(rec).Start(g.order(1, "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"))
	if r := rec.WaitFinal(key(1)).Record; r.UserCPU < 10*time.Millisecond || r.UserCPU > time.Minute {
		t.Errorf("user CPU %v", r.UserCPU)
	}
}

// Long output is kept in the run's file, only its head and tail beyond the limit. The middle is also
// dropped while the task runs.
func TestLongOutputKeepsBothEnds(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	const limit = 1 << 20
	s := g.open(rec, func(c *slurm.Config) { c.MaxOutput, c.MaxCapture = limit, limit })
	s.Start(g.order(1, `echo BEGIN; head -c 5000000 /dev/zero | tr '\0' x; echo END; while [ ! -e "$DATA/go" ]; do sleep 0.05; done; echo more`))
	rec.WaitStarted(key(1))
	l, err := s.OpenLog(key(1), messages.Stdout)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const size = 5_000_000 + 10
	poll(t, "the middle to be punched out", func() bool { return l.Size() == size && l.Kept(limit) > limit })
	buf := make([]byte, size)
	if n, err := l.ReadAt(buf, 0); n != limit/2 || err != nil || !bytes.HasPrefix(buf, []byte("BEGIN\nxxx")) {
		t.Errorf("%d bytes from the beginning, %v: %q", n, err, buf[:10])
	}
	if _, err := l.ReadAt(buf, limit); err != messages.ErrCut {
		t.Errorf("in the middle: %v", err)
	}
	if n, err := l.ReadAt(buf, size-5); n != 5 || err != io.EOF || string(buf[:5]) != "xEND\n" {
		t.Errorf("at the end: %d %v %q", n, err, buf[:n])
	}
	if err := os.WriteFile(filepath.Join(g.data, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	out := rec.WaitFinal(key(1)).Record.Stdout
	if out.Size != size+5 || out.Head != limit/2 || out.Tail != limit/2 || out.Inline != nil {
		t.Errorf("%+v", out)
	}
	kept, err := g.outputs.Log(outputs.ID{Key: key(1)}, out)
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	if n, err := kept.ReadAt(buf, out.Size-10); n != 10 || err != nil && err != io.EOF || string(buf[:10]) != "xEND\nmore\n" {
		t.Errorf("the end in the store: %d %v %q", n, err, buf[:n])
	}
	if l.Live() || l.Size() != size+5 {
		t.Errorf("after the end: live %t, size %d", l.Live(), l.Size())
	}
}

// A log can be read while the task prints.
func TestLogFollowsARunningTask(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	s := g.open(rec)
	s.Start(g.order(1, `for i in 1 2 3; do while [ ! -e "$DATA/$i" ]; do sleep 0.02; done; echo $i >&2; done`))
	rec.WaitStarted(key(1))
	l, err := s.OpenLog(key(1), messages.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for i := 1; i <= 3; i++ {
		if !l.Live() || l.Size() != int64(2*i-2) {
			t.Errorf("before %d: live %t, size %d", i, l.Live(), l.Size())
		}
		if err := os.WriteFile(filepath.Join(g.data, fmt.Sprint(i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		poll(t, "a line", func() bool { return l.Size() == int64(2*i) })
	}
	rec.WaitFinal(key(1))
	buf := make([]byte, 100)
	if n, err := l.ReadAt(buf, 0); string(buf[:n]) != "1\n2\n3\n" || err != io.EOF || l.Live() {
		t.Errorf("%q %v", buf[:n], err)
	}
}

// A generator's output comes with the report, unless it is too long.
func TestCaptureReportsAllOfStdout(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	s := g.open(rec, func(c *slurm.Config) { c.MaxCapture = 10_000 })
	for i, script := range []string{"head -c 10000 /dev/zero", "head -c 10001 /dev/zero", "echo no; exit 1", "true"} {
		o := g.order(uint32(i), script)
		o.Capture = true
		s.Start(o)
	}
	if r := rec.WaitFinal(key(0)); len(r.Stdout) != 10_000 || r.Record.Result != messages.AttemptSucceeded {
		t.Errorf("%d bytes, %+v", len(r.Stdout), r.Record)
	}
	r := rec.WaitFinal(key(1))
	checkEnd(t, r, messages.AttemptRejected, 0, "10001 bytes of output are more than the 10000")
	if r.Stdout != nil {
		t.Errorf("%d bytes", len(r.Stdout))
	}
	if r := rec.WaitFinal(key(2)); string(r.Stdout) != "no\n" || r.Record.Result != messages.AttemptFailed {
		t.Errorf("%q %+v", r.Stdout, r.Record)
	}
	if r := rec.WaitFinal(key(3)); len(r.Stdout) != 0 || r.Record.Result != messages.AttemptSucceeded {
		t.Errorf("%q %+v", r.Stdout, r.Record)
	}
}

// The job's members become options of sbatch. Similar orders share an array.
func TestJobOptionsReachSbatch(t *testing.T) {
	for gather := 300 * time.Millisecond; ; gather *= 5 {
		// A busy machine takes longer than that to give all orders.
		if calls := submitWithOptions(t, gather); calls == 2 {
			return
		} else if gather > 10*time.Second {
			t.Fatalf("%d calls of sbatch", calls)
		}
	}
}

// submitWithOptions returns how often it had sbatch called, for two kinds of orders.
func submitWithOptions(t *testing.T, gather time.Duration) (calls int) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	s := g.open(rec, func(c *slurm.Config) { c.Partition, c.Gather = "main", gather })
	for i := range uint32(40) {
		s.Start(g.order(i, `echo "$CARAVAN_TASK"`))
	}
	o := g.order(40, "true")
	o.CPUMillis, o.MemoryBytes, o.Timeout = 2500, 201<<19, 90*time.Second
	o.ExtraMembers = []messages.Member{{Name: "partition", Raw: `"big"`}, {Name: "qos", Raw: `"high"`}, {Name: "unknown", Raw: `{}`}, {Name: "account", Raw: `""`}}
	s.Start(o)
	rec.WaitFinals(41)
	for i := range uint32(40) {
		if r := rec.WaitFinal(key(i)); string(r.Record.Stdout.Inline) != fmt.Sprintf("t_%d\n", i) {
			t.Errorf("task %d printed %q", i, r.Record.Stdout.Inline)
		}
	}
	for _, j := range g.cluster.Jobs() {
		want := []string{"--cpus-per-task=1", "--partition=main", "--no-requeue", "--export=ALL"}
		if j.Name[:4] != "t_0." {
			want = []string{"--cpus-per-task=3", "--mem=101M", "--time=3", "--partition=big", "--qos=high", "--array=0-0", "--comment=Caravan run 1"}
		}
		for _, w := range want {
			if !slices.Contains(j.Options, w) {
				t.Errorf("%s: no %s among %q", j.Name, w, j.Options)
			}
		}
		if slices.ContainsFunc(j.Options, func(o string) bool { return strings.HasPrefix(o, "--account") }) {
			t.Errorf("%q", j.Options)
		}
	}
	return g.cluster.CallCount("sbatch")
}

// The cluster is polled once per interval, for any number of jobs.
func TestOnePollForAllJobs(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	s := g.open(rec, func(c *slurm.Config) { c.Poll = 200 * time.Millisecond })
	began := time.Now()
	for i := range uint32(20) {
		s.Start(g.order(i, "sleep 0.5"))
	}
	rec.WaitFinals(20)
	if n, most := g.cluster.CallCount("squeue"), int(time.Since(began)/(200*time.Millisecond))+2; n > most {
		t.Errorf("%d calls of squeue, at most %d were due", n, most)
	}
}
