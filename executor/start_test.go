package executor_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/messages"
)

func TestRecordOfASuccess(t *testing.T) {
	r := newRig(t, nil)
	before := time.Now().UnixNano()
	rep := r.runShell("echo out; echo err >&2")
	rec := rep.Record
	if rec.Result != messages.AttemptSucceeded || rec.RC != 0 || rec.ExecutorLog != "" || rec.Node != "here" {
		t.Errorf("%+v", rec)
	}
	if rec.Start < before || rec.Stop < rec.Start || rep.At != rec.Stop {
		t.Errorf("from %d to %d, reported at %d", rec.Start, rec.Stop, rep.At)
	}
	if r.readOutput(rec.Stdout) != "out\n" || r.readOutput(rec.Stderr) != "err\n" || rec.Stdout.Inline == nil {
		t.Errorf("%+v %+v", rec.Stdout, rec.Stderr)
	}
	if started := r.WaitStarted(rep.Key); started.At != rec.Start {
		t.Errorf("started at %d, record says %d", started.At, rec.Start)
	}
}

// The start delay counts from the end of one attempt to the process of the next.
func TestStartDelayCountsFromTheFreeSlot(t *testing.T) {
	r := newRig(t, func(c *executor.ProcessConfig) { c.CPUMillis = 1000 })
	first, second := r.startShell(1, "exec sleep 0.05"), r.startShell(2, "true")
	started := r.WaitStarted(second)
	stop := r.WaitFinal(first).Record.Stop
	if gap := started.At - stop; started.StartDelay <= 0 || gap < 0 || int64(started.StartDelay) < gap {
		t.Errorf("idle for %v, the attempt began %v after the one before had ended", started.StartDelay, time.Duration(gap))
	}
	if first := r.WaitStarted(first); first.StartDelay <= 0 {
		t.Errorf("%+v", first)
	}
}

func TestRecordHasCPUTime(t *testing.T) {
	r := newRig(t, nil)
	rec := r.runShell(`i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done`).Record
	if rec.UserCPU < 5*time.Millisecond || rec.UserCPU > 20*time.Second || rec.SystemCPU < 0 {
		t.Errorf("user %v system %v", rec.UserCPU, rec.SystemCPU)
	}
}

// Peak memory is reported when it exceeds that of the forking process, which the kernel includes.
func TestRecordHasPeakMemory(t *testing.T) {
	r := newRig(t, nil)
	if rec := r.runShell("true").Record; rec.MaxRSSKB != 0 {
		t.Errorf("true took %d KB", rec.MaxRSSKB)
	}
	var own syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &own); err != nil {
		t.Fatal(err)
	}
	want := own.Maxrss + own.Maxrss/8 + 32<<10
	// tail holds a line without an end in memory.
	rec := r.runShell(fmt.Sprintf("head -c %d /dev/zero | tail -n 1 | wc -c", want<<10)).Record
	if rec.MaxRSSKB < want || rec.MaxRSSKB > 3*want {
		t.Errorf("%d KB, want about %d", rec.MaxRSSKB, want)
	}
}

func TestExitCodesAndSignals(t *testing.T) {
	r := newRig(t, nil)
	for _, c := range []struct {
		script string
		result messages.AttemptResult
		rc     int32
		log    string
	}{
		{"exit 3", messages.AttemptFailed, 3, ""},
		{"exit 255", messages.AttemptFailed, 255, ""},
		{"kill -KILL $$", messages.AttemptSignaled, 137, "ended by signal 9 (killed)"},
		{"kill -TERM $$", messages.AttemptSignaled, 143, "ended by signal 15 (terminated)"},
	} {
		if rec := r.runShell(c.script).Record; rec.Result != c.result || rec.RC != c.rc || rec.ExecutorLog != c.log {
			t.Errorf("%q: %+v", c.script, rec)
		}
	}
}

func TestTaskEnvironmentIsClean(t *testing.T) {
	t.Setenv("CARAVAN_SECRET", "hunter2")
	t.Setenv("HOME", "/home/of/server")
	t.Setenv("LANG", "")
	r := newRig(t, nil)
	rep := r.runShell("env", func(o *executor.Order) {
		o.Environment = append(o.Environment, "A=1", "B=x=y", "A=2", "USER=me", "EMPTY=", "CARAVAN_ATTEMPT=mine")
		o.Name = "build 7"
	})
	env := strings.Split(strings.TrimSpace(r.readOutput(rep.Record.Stdout)), "\n")
	for _, want := range []string{"A=2", "B=x=y", "USER=me", "EMPTY=", "CARAVAN_ATTEMPT=mine", "CARAVAN_RUN_ID=12",
		"CARAVAN_TASK=build 7", "HOME=/home/of/server", "LANG=C.UTF-8", "PATH=" + os.Getenv("PATH")} {
		if !slices.Contains(env, want) {
			t.Errorf("%q is missing in %q", want, env)
		}
	}
	allowed := []string{"PATH", "HOME", "LANG", "TMPDIR", "USER", "CARAVAN_RUN_ID", "CARAVAN_TASK", "CARAVAN_ATTEMPT",
		"CARAVAN_TEST_MARK", "A", "B", "EMPTY", "PWD", "SHLVL", "_", "OLDPWD"} // the last four are the shell's
	for _, kv := range env {
		if k, _, _ := strings.Cut(kv, "="); !slices.Contains(allowed, k) {
			t.Errorf("%q leaked", kv)
		}
	}
}

func TestTaskHasOnlyStandardDescriptors(t *testing.T) {
	r := newRig(t, nil)
	// The script uses only builtins of the shell, because a pipe or a glob would show up too.
	rep := r.runShell(`readlink /proc/$$/fd/0; for f in /proc/$$/fd/*; do [ -L $f ] && echo ${f##*/}; done; cat`)
	lines := strings.SplitN(r.readOutput(rep.Record.Stdout), "\n", 2)
	if lines[0] != "/dev/null" {
		t.Errorf("stdin is %s", lines[0])
	}
	if !strings.HasPrefix(lines[1], "0\n1\n") {
		t.Fatalf("listed %q", lines[1])
	}
	for _, fd := range strings.Fields(lines[1]) {
		// Shells keep their own descriptors at 10 and above.
		if len(fd) == 1 && fd > "2" {
			t.Errorf("descriptor %s is open in the task", fd)
		}
	}
}

func TestTaskLeadsItsProcessGroup(t *testing.T) {
	r := newRig(t, nil)
	out := strings.Fields(r.readOutput(r.runShell(`echo $$; cut -d' ' -f5 /proc/$$/stat`).Record.Stdout))
	if len(out) != 2 || out[0] != out[1] {
		t.Errorf("pid and group %v", out)
	}
}

func TestProgramIsFoundByTheTasksPath(t *testing.T) {
	r := newRig(t, nil)
	bin := filepath.Join(r.dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	script := func(name string, mode os.FileMode) {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\necho mine\n"), mode); err != nil {
			t.Fatal(err)
		}
	}
	script("tool", 0o755)
	script("plain", 0o644)
	if err := os.Mkdir(filepath.Join(bin, "folder"), 0o755); err != nil {
		t.Fatal(err)
	}
	task := uint32(0)
	start := func(command, path, dir string) messages.AttemptRecord {
		task++
		r.Start(executor.Order{Key: id(task), Command: []string{command}, Environment: []string{"PATH=" + path, r.mark}, Dir: dir})
		return r.WaitFinal(id(task)).Record
	}
	for _, c := range []struct{ command, path, dir, log string }{
		{"tool", "/usr/bin:/bin:" + bin, "", ""},
		{"tool", "bin:/bin", r.dir, ""},
		{"tool", ":/bin", bin, ""},
		{"./tool", "/bin", bin, ""},
		{"bin/tool", "/bin", r.dir, ""},
		{"tool", "/bin", "", `start "tool": not found in PATH /bin`},
		{"folder", bin, "", `start "folder": not found in PATH ` + bin},
		{"plain", bin, "", `start "plain": "` + bin + `/plain": permission denied: the file is not executable for user ` + strconv.Itoa(os.Geteuid()) + ` (mode 0644)`},
	} {
		rec := start(c.command, c.path, c.dir)
		if rec.ExecutorLog != c.log || (c.log == "") != (r.readOutput(rec.Stdout) == "mine\n") {
			t.Errorf("%s in PATH %s and folder %q: %+v", c.command, c.path, c.dir, rec)
		}
	}
}

func TestOrdersThatCannotStart(t *testing.T) {
	r := newRig(t, nil)
	file := filepath.Join(r.dir, "file")
	if err := os.WriteFile(file, []byte("no program"), 0o755); err != nil {
		t.Fatal(err)
	}
	for i, c := range []struct {
		order executor.Order
		log   string
	}{
		{executor.Order{Command: []string{"/no/such"}}, `start "/no/such": no such file or directory: "/no" does not exist`},
		{executor.Order{Command: []string{"/etc"}}, `start "/etc": permission denied: it is a directory, not a program`},
		{executor.Order{Command: []string{file}}, `start "` + file + `": exec format error: it is neither a program nor a script that begins with #!`},
		{executor.Order{Command: []string{"true"}, Dir: "/no/dir"}, `working folder "/no/dir": no such file or directory: "/no" does not exist`},
		{executor.Order{Command: []string{"/bin/true"}, Dir: file}, `working folder "` + file + `": not a directory: it is a file`},
		{executor.Order{}, `the command is empty`},
		{executor.Order{Command: []string{""}}, `the command is empty`},
		{executor.Order{Command: []string{"true", "a\x00b"}}, `argument 1 of the command holds a NUL byte`},
		{executor.Order{UseShell: true, Shell: "a\x00b"}, `the command string holds a NUL byte`},
		{executor.Order{Command: []string{"true"}, Environment: []string{"A=\x00"}}, `environment: the value of "A" holds a NUL byte`},
		{executor.Order{Command: []string{"true"}, Environment: []string{"A"}}, `environment: "A" is not of the form K=V`},
		{executor.Order{Command: []string{"true"}, Environment: []string{"=A"}}, `environment: "=A" is not of the form K=V`},
		{executor.Order{Command: []string{"true"}, Dir: "/\x00"}, `working folder "/\x00" holds a NUL byte`},
		{executor.Order{Command: []string{"true", strings.Repeat("x", 4<<20)}}, `start "true": argument list too long: argument 1 has 4194304 bytes, the kernel takes at most 131071 in one argument`},
		{executor.Order{Command: []string{"true"}, CPUMillis: 4500}, `needs 4.5 cores, the machine has 4`},
		{executor.Order{Command: []string{"true"}, MemoryBytes: 100<<20 + 1049}, `needs 100.001 MB of memory, the machine has 100`},
	} {
		c.order.Key = id(uint32(i))
		r.Start(c.order)
		rep := r.WaitFinal(c.order.Key)
		rec := rep.Record
		if rep.Kind != executor.Finished || rec.Result != messages.AttemptNotStarted || rec.RC != -1 || rec.Start != 0 || rec.Stop == 0 {
			t.Errorf("%q: %+v", c.log, rep)
		}
		if rec.ExecutorLog != c.log {
			t.Errorf("log %q, want %q", rec.ExecutorLog, c.log)
		}
		if r.Starts(c.order.Key) != 0 {
			t.Errorf("%q: reported as started", c.log)
		}
	}
	// All of them have freed their slots.
	if rec := r.runShell("true", func(o *executor.Order) { o.CPUMillis = 4000 }).Record; rec.Result != messages.AttemptSucceeded {
		t.Errorf("%+v", rec)
	}
	if s := r.Stats(); s.NotStarted != 16 || s.Starts != 1 {
		t.Errorf("%+v", s)
	}
}

// An order that does not fit keeps smaller ones after it waiting. When it is revoked they start.
func TestQueueIsStrict(t *testing.T) {
	r := newRig(t, nil)
	cores := func(n int64) func(*executor.Order) { return func(o *executor.Order) { o.CPUMillis = n } }
	first := r.startShell(1, "sleep 1000", cores(3000))
	r.WaitStarted(first)
	large := r.startShell(2, "true", cores(4000))
	small := r.startShell(3, "sleep 1000", cores(1000))
	if s := r.Stats(); s.Running != 1 || s.Queued != 2 || s.CPUMillisUsed != 3000 {
		t.Errorf("%+v", s)
	}
	r.Revoke(large)
	r.WaitStarted(small)
	r.Kill(first, 0)
	r.Kill(small, 0)
	r.WaitFinals(3)
}

func TestOrdersWithoutCoresNeedNoSlot(t *testing.T) {
	r := newRig(t, nil)
	free := func(o *executor.Order) { o.CPUMillis, o.MemoryBytes = 0, -5 }
	r.WaitStarted(r.startShell(1, "sleep 1000", func(o *executor.Order) { o.CPUMillis, o.MemoryBytes = 4000, 100<<20 }))
	for i := range uint32(20) {
		r.WaitStarted(r.startShell(10+i, "sleep 1000", free))
	}
	if s := r.Stats(); s.Running != 21 || s.CPUMillisUsed != 4000 || s.MemoryBytesUsed != 100<<20 {
		t.Errorf("%+v", s)
	}
}
