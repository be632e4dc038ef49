package executor_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

func TestShortOutputIsInline(t *testing.T) {
	r := newRig(t, func(c *executor.ProcessConfig) { c.InlineMax = 8 })
	rec := r.runShell(`printf 12345678; printf 123456789 >&2`).Record
	if string(rec.Stdout.Inline) != "12345678" || rec.Stdout.Size != 8 || rec.Stdout.Head != 8 {
		t.Errorf("%+v", rec.Stdout)
	}
	if rec.Stderr.Inline != nil || rec.Stderr.Size != 9 || r.readOutput(rec.Stderr) != "123456789" {
		t.Errorf("%+v", rec.Stderr)
	}
	if empty := r.runShell("true").Record; empty.Stdout.Inline != nil || empty.Stdout.Size != 0 || r.readOutput(empty.Stdout) != "" {
		t.Errorf("%+v", empty.Stdout)
	}
}

func TestLongOutputGoesToTheRunsFile(t *testing.T) {
	r := newRig(t, nil)
	for i := range uint32(8) {
		r.startShell(i, fmt.Sprintf(`i=0; while [ $i -lt 2000 ]; do echo out-%d-$i; echo err-%d-$i >&2; i=$((i+1)); done`, i, i))
	}
	r.WaitFinals(8)
	for i := range uint32(8) {
		rec := r.WaitFinal(id(i)).Record
		out, errs := r.readOutput(rec.Stdout), r.readOutput(rec.Stderr)
		if strings.Count(out, fmt.Sprintf("out-%d-", i)) != 2000 || strings.Count(out, "\n") != 2000 || !strings.HasSuffix(out, "-1999\n") {
			t.Errorf("task %d: stdout of %d bytes", i, len(out))
		}
		if strings.Count(errs, fmt.Sprintf("err-%d-", i)) != 2000 || int64(len(errs)) != rec.Stderr.Size {
			t.Errorf("task %d: stderr of %d bytes", i, len(errs))
		}
	}
}

// Of output far beyond the limit both ends are kept, exactly. Neither memory nor disk holds the
// middle.
func TestOutputIsBounded(t *testing.T) {
	const limit, lines = 1 << 20, 6 << 20
	r := newRig(t, func(c *executor.ProcessConfig) { c.MaxOutput = limit })
	const size = lines * 9
	key := r.startShell(1, fmt.Sprintf(`yes 12345678 | head -c %d; echo ready; cat /proc/$$/fd/1 >/dev/null; while [ ! -e %s/go ]; do sleep 0.01; done`, size, r.dir))
	r.waitPrinted(key, "ready")
	l, err := r.OpenLog(key, messages.Stdout)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	poll(t, func() string {
		if held := memfdBlocks(); held > 2*limit {
			return fmt.Sprintf("the stream holds %d bytes in memory, limit %d", held, limit)
		}
		return ""
	})
	if text := readAll(t, l); len(text) > 3*limit || !strings.Contains(text, "<cut>") || !strings.HasSuffix(text, "ready\n") {
		t.Errorf("live log of %d bytes", len(text))
	}
	if err := os.WriteFile(filepath.Join(r.dir, "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	rec := r.WaitFinal(key).Record
	o := rec.Stdout
	if o.Size != size+6 || o.Head != limit/2 || o.Tail != limit/2 {
		t.Errorf("%+v", o)
	}
	whole := strings.Repeat("12345678\n", lines) + "ready\n"
	if got, want := r.readOutput(o), whole[:limit/2]+"<cut>"+whole[len(whole)-limit/2:]; got != want {
		t.Errorf("kept %d bytes, not the first and last %d", len(got), limit/2)
	}
	if n := diskUse(t, r.dir); n > limit+64<<10 {
		t.Errorf("%d bytes on disk", n)
	}
	// A reader that was open during the run sees the final state.
	if l.Live() || l.Size() != o.Size || l.Kept(limit) != o.Size-limit/2 {
		t.Errorf("live %t, size %d, kept from %d", l.Live(), l.Size(), l.Kept(limit))
	}
	if got := readAll(t, l); got != whole[:limit/2]+"<cut>"+whole[len(whole)-limit/2:] {
		t.Errorf("the open log reads %d bytes", len(got))
	}
}

// memfdBlocks is the most storage, in bytes, that one of this process's output streams takes.
func memfdBlocks() (most int64) {
	names, _ := os.ReadDir("/proc/self/fd")
	for _, n := range names {
		path := "/proc/self/fd/" + n.Name()
		if to, err := os.Readlink(path); err == nil && strings.Contains(to, "caravan-output") {
			most = max(most, allocatedBytes(path))
		}
	}
	return most
}

func diskUse(t *testing.T, dir string) (n int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			n += allocatedBytes(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestLiveLogFollowsARunningTask(t *testing.T) {
	r := newRig(t, nil)
	key := r.startShell(1, fmt.Sprintf(`echo one; echo bad >&2; while [ ! -e %s/go ]; do sleep 0.01; done; echo two`, r.dir))
	r.waitPrinted(key, "one\n")
	l, err := r.OpenLog(key, messages.Stdout)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	buf := make([]byte, 10)
	if n, err := l.ReadAt(buf[:2], 1); n != 2 || err != nil || string(buf[:2]) != "ne" {
		t.Errorf("%d %q %v", n, buf[:n], err)
	}
	if n, err := l.ReadAt(buf, 0); n != 4 || err != io.EOF {
		t.Errorf("%d %v", n, err)
	}
	if n, err := l.ReadAt(buf, 99); n != 0 || err != io.EOF || l.Size() != 4 || l.Kept(99) != 4 || l.Kept(-1) != 0 || !l.Live() {
		t.Errorf("%d %v size %d", n, err, l.Size())
	}
	e, err := r.OpenLog(key, messages.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	poll(t, func() string {
		if s := readAll(t, e); s != "bad\n" {
			return "stderr holds " + s
		}
		return ""
	})
	for range 2 {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
	os.WriteFile(filepath.Join(r.dir, "go"), nil, 0o644)
	r.WaitFinal(key)
	if readAll(t, l) != "one\ntwo\n" || l.Live() || l.Size() != 8 {
		t.Errorf("after the end: %q, live %t", readAll(t, l), l.Live())
	}
	if _, err := r.OpenLog(key, messages.Stdout); !errors.Is(err, executor.ErrNotRunning) {
		t.Errorf("opened after the end: %v", err)
	}
}

// Readers open and close logs while attempts end.
func TestReadersRaceWithTheEnd(t *testing.T) {
	r := newRig(t, nil)
	const n = 40
	for i := range uint32(n) {
		r.startShell(i, "echo some output; sleep 0.01", func(o *executor.Order) { o.CPUMillis = 500 })
	}
	for done := false; !done; {
		done = true
		for i := range uint32(n) {
			if l, err := r.OpenLog(id(i), messages.Stdout); err == nil {
				if s := readAll(t, l); s != "" && s != "some output\n" {
					t.Errorf("task %d: %q", i, s)
				}
				l.Close()
			}
			done = done && len(r.Reports(id(i))) == 2
		}
	}
}

func TestCaptureReportsAllOfStdout(t *testing.T) {
	r := newRig(t, func(c *executor.ProcessConfig) { c.MaxOutput, c.MaxCapture = 1000, 20_000 })
	capture := func(o *executor.Order) { o.Capture = true }
	rep := r.runShell(`head -c 20000 /dev/zero | tr '\0' x`, capture)
	if string(rep.Stdout) != strings.Repeat("x", 20_000) || rep.Record.Result != messages.AttemptSucceeded {
		t.Errorf("%d bytes, %+v", len(rep.Stdout), rep.Record)
	}
	if o := rep.Record.Stdout; o.Size != 20_000 || o.Head != 500 || o.Tail != 500 {
		t.Errorf("%+v", o)
	}
	rep = r.runShell(`head -c 20001 /dev/zero`, capture)
	want := "20001 bytes of output are more than the 20000 that a generator may print"
	if rep.Stdout != nil || rep.Record.Result != messages.AttemptRejected || rep.Record.ExecutorLog != want || rep.Record.RC != 0 {
		t.Errorf("%+v", rep)
	}
	rep = r.runShell(`head -c 20001 /dev/zero; exit 2`, capture)
	if rep.Stdout != nil || rep.Record.Result != messages.AttemptFailed || rep.Record.ExecutorLog != want {
		t.Errorf("%+v", rep.Record)
	}
	if rep = r.runShell("true", capture); len(rep.Stdout) != 0 || rep.Record.Result != messages.AttemptSucceeded {
		t.Errorf("%+v", rep)
	}
}

// A task that reopens its output may truncate it. The rest has no gaps of zeros, and no task hangs.
func TestTaskMayReopenItsOutput(t *testing.T) {
	r := newRig(t, func(c *executor.ProcessConfig) { c.MaxOutput = 64 << 10 })
	if out := r.readOutput(r.runShell(`echo first; echo second >> /dev/stdout; echo third`).Record.Stdout); out != "first\nsecond\nthird\n" {
		t.Errorf("%q", out)
	}
	if out := r.readOutput(r.runShell(`echo lost; echo second > /dev/stdout; echo third`).Record.Stdout); out != "second\nthird\n" {
		t.Errorf("%q", out)
	}
	key := r.startShell(1, `head -c 1000000 /dev/zero; echo ready; sleep 0.1; echo x > /dev/stdout; sleep 0.1; echo y`)
	if out := r.readOutput(r.WaitFinal(key).Record.Stdout); out != "x\ny\n" {
		t.Errorf("%q", out)
	}
}

// When the output cannot be written, the result and the beginning of the output are kept.
func TestResultStandsWhenOutputCannotBeKept(t *testing.T) {
	r := newRig(t, func(c *executor.ProcessConfig) { c.InlineMax = 10 })
	r.store.Close()
	rec := r.runShell(`echo 1234567890abcdef; echo short >&2`).Record
	if rec.Result != messages.AttemptSucceeded || rec.ExecutorLog != "output cut to 10 bytes: output store is closed" {
		t.Errorf("%+v", rec)
	}
	if o := rec.Stdout; string(o.Inline) != "1234567890" || o.Size != 17 || o.Head != 10 || o.Tail != 0 || o.Offset != 0 {
		t.Errorf("%+v", o)
	}
	if string(rec.Stderr.Inline) != "short\n" {
		t.Errorf("%+v", rec.Stderr)
	}
}

// A fast writer stays within its limit and is hardly slowed: 400 to 1,000 MB/s on two cores. The bound
// follows from what the machine does at the same time without an executor, and the best of some tries
// counts.
func TestFastWriterIsBoundedAndNotSlowed(t *testing.T) {
	r := newRig(t, func(c *executor.ProcessConfig) { c.MaxOutput = 8 << 20 })
	const size, tries = 1 << 30, 3
	begin := time.Now()
	for try := uint32(1); ; try++ {
		most := 100 * plainWriteTime(t, size/8)
		key := r.startShell(try, fmt.Sprintf(`dd if=/dev/zero bs=1M count=%d 2>/dev/null`, size>>20))
		var peak int64
		for len(r.Reports(key)) < 2 {
			peak = max(peak, memfdBlocks())
		}
		rec := r.WaitFinal(key).Record
		took := time.Duration(rec.Stop - rec.Start)
		t.Logf("%d MB/s, at most %d MiB held; %v of %v", int64(size>>20)*int64(time.Second)/int64(took), peak>>20, took, most)
		if rec.Stdout.Size != size || rec.Stdout.Head != 4<<20 || rec.Stdout.Tail != 4<<20 {
			t.Errorf("%+v", rec.Stdout)
		}
		if took <= most && peak <= size/4 {
			return
		}
		if try >= tries && time.Since(begin) > testenv.Patience {
			t.Fatalf("took %v and held %d bytes in memory", took, peak)
		}
	}
}

// plainWriteTime is how long a program takes that writes some bytes into memory.
func plainWriteTime(t *testing.T, bytes int) time.Duration {
	t.Helper()
	fd, err := unix.MemfdCreate("plain", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "plain")
	defer f.Close()
	cmd := exec.Command("dd", "if=/dev/zero", "bs=1M", fmt.Sprint("count=", bytes>>20))
	cmd.Stdout = f
	began := time.Now()
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	return time.Since(began)
}

// allocatedBytes is how much storage a file takes.
func allocatedBytes(path string) int64 {
	var st syscall.Stat_t
	if syscall.Stat(path, &st) != nil {
		return 0
	}
	return st.Blocks * 512
}
