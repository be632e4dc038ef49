package worker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/procfs"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

func folder(t *testing.T, journal []byte) *Folder {
	t.Helper()
	f, l, err := CreateFolder(t.TempDir(), Settings{DataFolderID: "data"})
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	t.Cleanup(f.Release)
	if journal != nil {
		if err := os.WriteFile(filepath.Join(f.Path, journalFileName), journal, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// dead is a worker that left f and nothing else.
func dead(f *Folder) DeadWorker { return DeadWorker{Path: f.Path, Folder: f, DataFolderID: "data"} }

func TestRecoveryReportsEndsAndLosses(t *testing.T) {
	boot, err := procfs.BootID()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		journal []byte
		certain bool
		lost    string // of the two that had not ended
		ends    int
	}{
		{"none", nil, false, "", 0},
		{"torn header", sample(boot, 1)[:10], false, "", 0},
		{"cut between records", sample(boot, 1<<22+5)[:offsets(sample(boot, 1<<22+5))[7]], false, "lost: its worker (pid 4194309) died", 3},
		{"this boot", sample(boot, 1<<22+5), true, "lost: its worker (pid 4194309) died", 3},
		{"boot before", sample("other", os.Getpid()), false, "lost: the machine was restarted", 3},
	} {
		e, err := RecoverDeadWorker(context.Background(), dead(folder(t, c.journal)), 0, quiet())
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if e.Complete != c.certain || len(e.Ends) != c.ends {
			t.Errorf("%s: %+v", c.name, e)
		}
		for i, rep := range e.Ends {
			want, result := c.lost, messages.AttemptLost
			if i == 0 {
				want, result = "kept", messages.AttemptSucceeded
			}
			if rep.Key != key(uint32(i)) || rep.Record.ExecutorLog != want || rep.Record.Result != result {
				t.Errorf("%s: %+v", c.name, rep)
			}
		}
	}
	f := folder(t, nil)
	os.Mkdir(filepath.Join(f.Path, journalFileName), 0o700)
	if _, err := RecoverDeadWorker(context.Background(), dead(f), 0, quiet()); err == nil {
		t.Error("a journal that cannot be read")
	}
}

// TestRecoveryNeedsAllProcesses has too few descriptors to read the processes of the machine: then a
// worker's processes are not taken for dead.
func TestRecoveryNeedsAllProcesses(t *testing.T) {
	d := dead(folder(t, nil))
	restore := testenv.LeaveDescriptors(t, 1) // for one file or folder at a time
	state, err := RecoverDeadWorker(t.Context(), d, 0, quiet())
	names, markedErr := MarkedWorkers("data")
	restore()
	if !errors.Is(err, unix.EMFILE) || state != nil {
		t.Errorf("recovered %+v, %v", state, err)
	}
	if !errors.Is(markedErr, unix.EMFILE) || names != nil {
		t.Errorf("marked workers %q, %v", names, markedErr)
	}
}

// TestRecoveryEndsOrphanedProcesses has a shell play the dead worker: a session with processes of
// attempts that had ended and of some that had not.
func TestRecoveryEndsOrphanedProcesses(t *testing.T) {
	f := folder(t, nil)
	boot, err := procfs.BootID()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	script := strings.NewReplacer("MARK", MarkVariable+"="+MarkValue("data", f.Name()), "DIR", dir, "TEST", fmt.Sprint(os.Getpid())).Replace(`
		MARK/1.0.1 sh -c 'echo $$ >DIR/ended; exec sleep 1000' &
		MARK/1.1.1 sh -c 'trap "" TERM; echo $$ >DIR/stubborn; while kill -0 TEST; do sleep 1000; done' &
		MARK/1.1.1 setsid sh -c 'echo $$ >DIR/left; exec sleep 1000' &
		env -i sh -c 'echo $$ >DIR/bare; exec sleep 1000' &
		MARK/1.9.1 sh -c 'echo $$ >DIR/stranger; exec sleep 1000' &
		MARK sh -c 'echo $$ >DIR/forked; exec sleep 1000' &
		exec sleep 1000`)
	before := sinceBoot()
	cmd := exec.Command("sh", "-mc", script) // each in a group of its own, as a worker forks
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	session := cmd.Process.Pid
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		list, _ := procfs.List("/proc")
		for _, q := range list {
			environ, _ := q.Environment() // this process has descriptors left
			if _, has := findMark(environ, MarkValue("data", f.Name())); has || q.Session == session {
				q.Signal(unix.SIGKILL)
			}
		}
	})
	own, err := procfs.Read(session)
	if err != nil {
		t.Fatal(err)
	}
	pids := map[string]int{}
	for _, name := range []string{"ended", "stubborn", "left", "bare", "stranger", "forked"} {
		testenv.EventuallyWithin(t, 30*time.Second, name, func() bool {
			text, _ := os.ReadFile(filepath.Join(dir, name))
			if n := strings.TrimSpace(string(text)); strings.HasSuffix(string(text), "\n") {
				pids[name] = atoi(n)
			}
			return pids[name] > 0
		})
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()

	header := &workerpb.JournalHeader{Format: journalFormat, BootId: boot, Pid: int64(session), StartTicks: own.Ticks,
		Mark: []byte(MarkValue("data", f.Name()))}
	j := writeJournal(header, func(b *recordBuffer) {
		b.addIntent(key(0), before)
		b.addIntent(key(1), before)
		b.addIntent(key(2), before)
		b.addForked(key(0), pids["ended"], sinceBoot())
		b.addForked(key(1), pids["stubborn"], sinceBoot())
		b.addFinished(workerpb.AppendFinished(nil, &executor.Report{Key: key(0)}))
	})
	if err := os.WriteFile(filepath.Join(f.Path, journalFileName), j, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := RecoverDeadWorker(ctx, dead(f), time.Hour, quiet()); err != context.Canceled {
		t.Errorf("interrupted: %v", err)
	}
	e, err := RecoverDeadWorker(context.Background(), dead(f), 50*time.Millisecond, quiet())
	if err != nil || len(e.Ends) != 3 {
		t.Fatalf("%+v, %v", e, err)
	}
	for name, want := range map[string]bool{
		"ended":    true,  // a background child of a task that had ended
		"stranger": true,  // of an attempt that this journal does not know
		"stubborn": false, // by its mark and by its group
		"left":     false, // by its mark, out of the session
		"bare":     false, // by its session, forked after the intent of one whose process is not known
		"forked":   false, // by the worker's own mark: it had not come to its exec
	} {
		p, err := procfs.Read(pids[name])
		if lives := err == nil && !p.Dead; lives != want {
			t.Errorf("%s lives: %v, want %v", name, lives, want)
		}
	}
}

func atoi(s string) (n int) {
	for _, c := range s {
		n = 10*n + int(c-'0')
	}
	return n
}
