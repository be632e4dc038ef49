package remote_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/executor/remote"
	"github.com/caravan-dag/caravan/messages"
)

// TestDamageNeverStartsAnAttemptTwice kills a worker and the server's side of it with six attempts
// running, damages what the next server could know of them, and has that server start
// the same attempts again: none runs twice at once, each is lost, and nothing of the first
// ones lives when the next attempt begins. With -short it is done to the journal's end, to
// the folder and to the registry.
func TestDamageNeverStartsAnAttemptTwice(t *testing.T) {
	const tasks = 6
	change := func(f func(b []byte) []byte) func(path string) error {
		return func(path string) error {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return os.WriteFile(path, f(b), 0o600)
		}
	}
	flip := func(at func(n int) int) func(path string) error {
		return change(func(b []byte) []byte { b[at(len(b))] ^= 4; return b })
	}
	for _, c := range []struct {
		name   string
		file   string // in the worker's folder, or ".." and in the folder of all
		damage func(path string) error
		says   string // in the server's log
	}{
		{"journal deleted", "journal", os.Remove, "the file is missing"},
		{"journal zeroed", "journal", change(func(b []byte) []byte { return make([]byte, len(b)) }), "offset 0"},
		{"journal emptied", "journal", change(func([]byte) []byte { return nil }), "the file is empty"},
		{"header flipped", "journal", flip(func(int) int { return 20 }), "record 0 at offset 0 is damaged"},
		{"middle flipped", "journal", flip(func(n int) int { return n / 2 }), "is damaged, and intact records follow"},
		{"journal cut in half", "journal", change(func(b []byte) []byte { return b[:len(b)/2] }), "offset"},
		{"end torn", "journal", change(func(b []byte) []byte { return b[:len(b)-3] }), "the end is torn"},
		{"lock deleted", "lock", os.Remove, ""},
		{"socket deleted", "sock", os.Remove, ""},
		{"settings deleted", "settings", os.Remove, ""},
		{"folder deleted", "", os.RemoveAll, "the folder of a worker is missing"},
		{"registry deleted", "../workers", os.Remove, "it is missing"},
		{"registry flipped", "../workers", flip(func(n int) int { return n / 2 }), "the checksum of its"},
		{"everything deleted", "..", func(path string) error { return os.RemoveAll(path) }, "ending the processes of a worker without a folder"},
	} {
		if short := []string{"end torn", "folder deleted", "registry flipped"}; testing.Short() && !slices.Contains(short, c.name) {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			t.Parallel() // it mostly waits
			g := newParallelRig(t)
			folder := func(cfg *remote.Config) {
				cfg.Settings.DataFolderID = "data" + filepath.Base(g.data) + t.Name()
				cfg.CPUMillis = 8000
				remote.SetDetachTimeout(cfg, 100*time.Millisecond) // the worker is stopped by then
			}
			rec := executortest.NewRecorder(t)
			r := g.open(rec, folder)
			script := `echo "begin $CARAVAN_TASK $CARAVAN_ATTEMPT $$" >>lines; sleep 1000 & wait`
			var orders []executor.Order
			for i := range uint32(tasks) {
				orders = append(orders, g.order(i, script))
				r.Start(orders[i])
			}
			for i := range uint32(tasks) {
				rec.WaitStarted(key(i))
			}
			poll(t, "all tasks to run", func() bool { return strings.Count(read(filepath.Join(g.data, "lines")), "\n") == tasks })
			former, pid := g.processes(), g.worker()
			// Detach and SIGKILL leave the folder as a server that is killed would.
			_ = unix.Kill(pid, unix.SIGSTOP)
			if err := r.Detach(); err != nil {
				t.Fatal(err)
			}
			_ = unix.Kill(pid, unix.SIGKILL)
			poll(t, "the worker to be dead", func() bool {
				return !bytes.Contains([]byte(read(fmt.Sprintf("/proc/%d/cmdline", pid))), []byte("worker"))
			})
			paths, _ := filepath.Glob(g.dir() + "/w-*")
			if len(paths) != 1 {
				t.Fatal(paths)
			}
			if err := c.damage(filepath.Join(paths[0], c.file)); err != nil {
				t.Fatal(err)
			}

			rec = executortest.NewRecorder(t)
			r = g.open(rec, folder)
			r.ExpectResume(1)
			for _, o := range orders {
				r.Start(resumed(o))
			}
			r.ResumeDone(1)
			for i := range uint32(tasks) {
				rep := rec.WaitFinal(key(i))
				if rep.Record.Result != messages.AttemptLost {
					t.Errorf("%+v", rep)
				}
				r.Acknowledge(key(i))
			}
			for _, pid := range former {
				if p, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && !strings.Contains(string(p), ") Z ") {
					t.Errorf("process %d lives on: %s", pid, p)
				}
			}
			next := g.order(0, "true")
			next.Key.Attempt = 2
			r.Start(next)
			if rep := rec.WaitFinal(next.Key); rep.Record.Result != messages.AttemptSucceeded {
				t.Errorf("%+v", rep)
			}
			if n := strings.Count(read(filepath.Join(g.data, "lines")), "begin"); n != tasks {
				t.Errorf("%d attempts began, want %d", n, tasks)
			}
			if !strings.Contains(g.log.String(), c.says) {
				t.Errorf("the log does not say %q", c.says)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestLockDeletedUnderALivingWorker: a lock file that somebody removed is no proof that
// the worker is dead.
func TestLockDeletedUnderALivingWorker(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	r := g.open(rec)
	r.Start(g.order(1, `while [ ! -e go ]; do sleep 0.01; done; exit 3`))
	rec.WaitStarted(key(1))
	o := g.order(1, "true")
	r.Detach()
	pid := g.worker()
	paths, _ := filepath.Glob(g.dir() + "/w-*/lock")
	for _, path := range paths {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	rec = executortest.NewRecorder(t)
	r = g.open(rec)
	o.GrantedAt = 1
	r.Start(resumed(o))
	rec.WaitStarted(key(1))
	if now := g.worker(); now != pid {
		t.Errorf("worker %d, was %d", now, pid)
	}
	g.touch("go")
	if rep := rec.WaitFinal(key(1)); rep.Record.RC != 3 {
		t.Errorf("%+v", rep)
	}
}
