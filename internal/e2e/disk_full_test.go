package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// diskSize is the size of the file system that the full-disk tests fill.
const diskSize = "400m"

// smallDisk mounts a tmpfs of diskSize. Without the right to mount (not root) the test uses a limit
// on the size of files instead: see fillWithoutMount.
func smallDisk(t *testing.T) (dir string, ok bool) {
	dir = t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+diskSize); err != nil {
		t.Logf("no tmpfs can be mounted (%v)", err)
		return dir, false
	}
	t.Cleanup(func() {
		// Lazily: a process that was just killed may still hold a file.
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir, true
}

// fillDisk fills the file system with a file, except for leave bytes.
func fillDisk(t *testing.T, dir string, leave int64) (remove func()) {
	t.Helper()
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "ballast")
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, 64<<10)
	for left := int64(st.Bavail)*st.Bsize - leave; left > 0; left -= int64(len(buf)) {
		if _, err := f.Write(buf[:min(left, int64(len(buf)))]); err != nil {
			if errors.Is(err, syscall.ENOSPC) {
				break
			}
			t.Fatal(err)
		}
	}
	return func() {
		if err := os.Remove(name); err != nil {
			t.Error(err)
		}
	}
}

// TestFullDisk fills the disk while submissions arrive: slowly (a little room is left), or at once
// (the disk is full, and a run goes on writing). Submissions are refused with 503, or the server
// stops; both give the reason. All acknowledged runs are there once there is room again, and go on.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		leave   int64
		running bool
	}{"slowly": {2 << 20, false}, "at once": {0, true}} {
		t.Run(name, func(t *testing.T) {
			if !c.running {
				e2etest.DiskErrors(t)
			}
			dir, ok := smallDisk(t)
			if !ok {
				fillWithoutMount(t)
				return
			}
			s := e2etest.Start(t, e2etest.Data(filepath.Join(dir, "data")))
			acked := map[uint64]string{}
			for _, n := range e2etest.Numbers(20) {
				acked[s.Submit(largeDoc("before-"+n))] = "before-" + n
			}
			if c.running {
				run := s.Submit(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("echo {{N}}; sleep 0.02")}).
					With("tag", "running").With("parameters", map[string]any{"N": e2etest.Numbers(200)}))
				s.AwaitTask(run, "a_0", "COMPLETED")
				acked[run] = "running"
			}
			remove := fillDisk(t, dir, c.leave)
			refused := submitUntilRefused(t, s, acked)
			t.Logf("%d submissions were acknowledged, then: %s", len(acked), refused)
			checkReason(t, s, refused)
			remove()
			s = awaitRecovery(t, s)
			for run, tag := range acked {
				if got := s.Get(run).Tag; got != tag {
					t.Errorf("run %d is %q, was acknowledged as %q", run, got, tag)
				}
				s.Await(run, "COMPLETED")
			}
			next := s.Submit(largeDoc("after"))
			if _, ok := acked[next]; ok {
				t.Errorf("run %d was given twice", next)
			}
			s.Await(next, "COMPLETED")
		})
	}
}

// largeDoc is a document of some 100 KB that does not compress well.
func largeDoc(tag string) e2etest.Doc {
	var noise strings.Builder
	x := uint64(len(tag)) + 88172645463325252
	for noise.Len() < 100<<10 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		noise.WriteByte(byte('!' + x%90))
	}
	text := strings.NewReplacer(`"`, "", `\`, "", "{", "", "}", "").Replace(noise.String())
	return e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Noop("").Job("environment", []string{"NOISE=" + text})}).With("tag", tag)
}

// submitUntilRefused submits until the server refuses or has ended, and returns which.
func submitUntilRefused(t *testing.T, s *e2etest.Server, acked map[uint64]string) string {
	t.Helper()
	for range 20_000 {
		r, err := s.Try("POST", "/v1/dagrun", e2etest.Body(t, largeDoc("filling")))
		if err != nil {
			return "no answer: " + err.Error()
		}
		switch r.Status {
		case 200:
			var got struct{ RunID uint64 }
			r.Decode(t, &got)
			acked[got.RunID] = "filling"
		case 503:
			if r.Header.Get("Retry-After") == "" {
				t.Errorf("503 without Retry-After: %s", r.Body)
			}
			return string(r.Body)
		default:
			t.Fatalf("a full disk was answered %d: %s", r.Status, r.Body)
		}
	}
	t.Fatal("20,000 submissions of 100 KB were acknowledged on a disk of " + diskSize)
	return ""
}

// checkReason: the refusal or the log names the problem, and a server that goes on is not healthy.
func checkReason(t *testing.T, s *e2etest.Server, refusal string) {
	t.Helper()
	names := func(text string) bool {
		// The name of the data folder does not count.
		text = strings.ToLower(strings.ReplaceAll(text, filepath.Dir(s.Config().Data), ""))
		return strings.Contains(text, "disk") || strings.Contains(text, "no space") || strings.Contains(text, "storage")
	}
	e2etest.Eventually(t, "the server says that the disk is full", func() bool {
		return names(refusal) || names(s.Log())
	})
	if r, err := s.Try("GET", "/healthz", ""); err == nil && (r.Status != 503 || !names(string(r.Body))) {
		t.Errorf("/healthz with a full disk: %d %s", r.Status, r.Body)
	}
}

// awaitRecovery waits until the server accepts work. It restarts a server that has stopped (which
// must have been with exit code 1) or does not recover by itself.
func awaitRecovery(t *testing.T, s *e2etest.Server) *e2etest.Server {
	t.Helper()
	takes := func() bool {
		r, err := s.Try("POST", "/v1/dagrun", e2etest.Body(t, e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Noop("")})))
		return err == nil && r.Status == 200
	}
	gone := func() bool {
		select {
		case <-s.Ended():
			return true
		default:
			return false
		}
	}
	if testenv.Poll(e2etest.Patience, func() bool { return gone() || takes() }) && !gone() {
		t.Log("the server went on by itself")
		return s
	}
	if !gone() {
		t.Fatalf("the server neither takes work nor stops:\n%s", s.Log())
	}
	if code := s.ExitCode(); code != 1 {
		t.Errorf("the server stopped with exit code %d, want 1:\n%s", code, s.Log())
	}
	t.Log("the server had stopped with exit code 1")
	return s.Restart()
}

// fillWithoutMount replaces a full disk where mounting is not possible: the file system of the data
// folder cannot be filled, so the server runs under a limit on the size of its files, which makes
// writes fail as a full disk does.
func fillWithoutMount(t *testing.T) {
	script := filepath.Join(t.TempDir(), "limited")
	e2etest.WriteProgram(t, script, "#!/bin/sh\nulimit -f 4096\nexec "+e2etest.Binary()+" \"$@\"\n")
	data := filepath.Join(t.TempDir(), "data")
	acked := map[uint64]string{}
	first := e2etest.Start(t, e2etest.Data(data)) // makes the folder without the limit
	acked[first.Submit(largeDoc("before"))] = "before"
	if _, _, err := first.Stop(e2etest.Patience); err != nil {
		t.Fatal(err)
	}
	s, err := e2etest.TryStart(t, e2etest.Data(data), e2etest.Program(script))
	if err == nil {
		t.Log(submitUntilRefused(t, s, acked))
		s.Kill()
	} else {
		t.Logf("under the limit it does not start: %v", err)
	}
	s = e2etest.Start(t, e2etest.Data(data))
	for run, tag := range acked {
		if got := s.Get(run).Tag; got != tag {
			t.Errorf("run %d is %q, was acknowledged as %q", run, got, tag)
		}
	}
}

// TestOutputFillsTheDisk: tasks print more than the disk holds. First new runs are refused, then
// output is cut. The server does not stop, and every task ends and is recorded, including those that
// began when the disk was full.
func TestOutputFillsTheDisk(t *testing.T) {
	t.Parallel()
	e2etest.DiskErrors(t)
	dir, ok := smallDisk(t)
	if !ok {
		t.Skip("no file system of a size of its own can be mounted")
	}
	s := e2etest.Start(t, e2etest.Data(filepath.Join(dir, "data")))
	const printers = 12 // 60 MiB each, on a disk of 400 MB
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"print": e2etest.Sh("head -c 62914560 /dev/zero | tr '\\0' x; echo {{N}} >&2"), // as long in the document as on the disk
		"after": e2etest.Sh("echo after {{N}}").With("parents", []string{"print"}),
	}).With("parameters", map[string]any{"N": e2etest.Numbers(printers)}))
	s.Await(run, "COMPLETED")
	got, cut := s.Get(run), 0
	for i := range printers {
		if a := got.TaskAttempts[fmt.Sprintf("after_%d", i)]; len(a) != 1 || a[0].RC != 0 || a[0].OutputLog != fmt.Sprintf("after %d\n", i) {
			t.Errorf("after_%d: %+v", i, a)
		}
		a := got.TaskAttempts[fmt.Sprintf("print_%d", i)]
		if len(a) != 1 || a[0].RC != 0 || a[0].ErrorLog != fmt.Sprintf("%d\n", i) {
			t.Errorf("print_%d has %d attempts", i, len(a))
			continue
		}
		if strings.Contains(a[0].ExecutorLog, "disk is nearly full") {
			cut++
			if !strings.Contains(a[0].OutputLog, " bytes cut]") {
				t.Errorf("print_%d is cut without a marker: %d bytes, %.200q", i, len(a[0].OutputLog), a[0].OutputLog)
			}
		}
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	free := int64(st.Bavail) * st.Bsize >> 20
	t.Logf("the output of %d of %d tasks was cut, %d MiB of the disk are free", cut, printers, free)
	if cut == 0 || cut == printers || free < 64 {
		t.Errorf("%d were cut, %d MiB are free", cut, free)
	}
	// Room that other files take does not cut output.
	sleeper := s.Submit(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("until [ -e go ]; do sleep 0.05; done; head -c 100000 /dev/zero").Job("workDir", dir)}))
	s.AwaitTask(sleeper, "a", "RUNNING")
	remove := fillDisk(t, dir, 80<<20)
	defer remove()
	// The server's view of the disk may be a tenth of a second old.
	e2etest.Eventually(t, "/healthz tells of the disk", func() bool {
		r, err := s.Try("GET", "/healthz", "")
		return err == nil && r.Status == 503 && strings.Contains(string(r.Body), "disk")
	})
	refused, err := s.Try("POST", "/v1/dagrun", e2etest.Body(t, e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Noop("")})))
	if err != nil || refused.Status != 503 || refused.Header.Get("Retry-After") == "" {
		t.Errorf("a submission: %d %v %s %v", refused.Status, refused.Header, refused.Body, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.Await(sleeper, "COMPLETED")
	if a := s.Get(sleeper).TaskAttempts["a"]; len(a) != 1 || !strings.Contains(a[0].ExecutorLog, "disk is nearly full") {
		t.Errorf("the run during that time: %+v", a)
	}
	select {
	case <-s.Ended():
		t.Errorf("the server stopped:\n%s", s.Log())
	default:
	}
}
