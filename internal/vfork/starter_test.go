package vfork

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/internal/testenv"
)

func TestMain(m *testing.M) {
	// Rule 1, for descriptors that the caller of the tests left open.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		fmt.Fprintln(os.Stderr, "inherited descriptors reach the children:", err)
	}
	testenv.VerifyNoLeaks(m)
}

// withEachMethod runs a test with each way of starting a process: by clone3, where this machine
// supports it, and by syscall.ForkExec.
func withEachMethod(t *testing.T, test func(t *testing.T, s *Starter)) {
	forkExec := New()
	forkExec.forkExecOnly.Store(true)
	t.Run("clone3", func(t *testing.T) { test(t, New()) })
	t.Run("ForkExec", func(t *testing.T) { test(t, forkExec) })
}

// runForOutput runs a program and returns both of its output streams, merged, and its status.
func runForOutput(t *testing.T, s *Starter, p Spec) (string, unix.WaitStatus) {
	t.Helper()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p.Files, p.CgroupFD = []int{int(null.Fd()), int(w.Fd()), int(w.Fd())}, -1
	pid, pidfd, err := s.Start(&p)
	unix.Close(pidfd)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(text), waitStatus(t, pid)
}

func waitStatus(t *testing.T, pid int) (status unix.WaitStatus) {
	t.Helper()
	for {
		switch got, err := unix.Wait4(pid, &status, 0, nil); {
		case err == unix.EINTR:
		case got != pid || err != nil:
			t.Fatalf("wait for %d: %d, %v", pid, got, err)
		default:
			return status
		}
	}
}

func shellSpec(script string) Spec {
	return Spec{Path: "/bin/sh", Argv: []string{"sh", "-c", script}, Env: []string{"A=1", "B=x y"}}
}

func TestChildHasArgumentsEnvironmentFolderAndGroup(t *testing.T) {
	withEachMethod(t, func(t *testing.T, s *Starter) {
		p := shellSpec(`echo "$0 $A $B"; pwd; cat /dev/stdin; echo err >&2; [ "$(cut -d' ' -f5 /proc/$$/stat)" = $$ ] && echo leads; exit 3`)
		p.Argv[0] = "its name"
		p.Argv = append(p.Argv, "zero")
		p.Dir = "/usr"
		got, status := runForOutput(t, s, p)
		want := "zero 1 x y\n/usr\nerr\nleads\n"
		if got != want || status.ExitStatus() != 3 {
			t.Errorf("%q, want %q; exit code %d", got, want, status.ExitStatus())
		}
	})
}

// Changes that Go made to its own process do not reach the child: no signal is blocked, ignored or
// handled that was not when this process was started, and the limit on open files is the one that
// syscall.ForkExec gives.
func TestChildInheritsNoSignalStateOfGo(t *testing.T) {
	const script = `grep -E '^Sig(Blk|Ign|Cgt)' /proc/self/status; ulimit -Sn; ulimit -Hn`
	forkExec := &Starter{}
	forkExec.forkExecOnly.Store(true)
	want, _ := runForOutput(t, forkExec, shellSpec(script))
	if got, _ := runForOutput(t, New(), shellSpec(script)); got != want {
		t.Errorf("%s\nsyscall.ForkExec:\n%s", got, want)
	}
}

// A child gets the limit that this process was started with, although Go raises its own.
func TestChildHasTheInheritedFileLimit(t *testing.T) {
	if os.Getenv("VFORK_TEST") == "limit" {
		withEachMethod(t, func(t *testing.T, s *Starter) {
			if got, _ := runForOutput(t, s, shellSpec("ulimit -Sn")); got != "321\n" {
				t.Errorf("limit %q", got)
			}
		})
		return
	}
	p := Spec{Path: "/bin/sh", Argv: []string{"sh", "-c", `ulimit -Sn 321 && exec "$0" -test.run='^TestChildHasTheInheritedFileLimit$'`, os.Args[0]},
		Env: append(os.Environ(), "VFORK_TEST=limit")}
	if got, status := runForOutput(t, New(), p); status != 0 {
		t.Errorf("status %d: %s", status, got)
	}
}

func TestFailedStartLeavesNoChildOrDescriptor(t *testing.T) {
	denied := filepath.Join(t.TempDir(), "denied")
	if err := os.WriteFile(denied, []byte("#!/bin/sh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	fd := int(null.Fd())
	withEachMethod(t, func(t *testing.T, s *Starter) {
		before := openDescriptors(t)
		for _, c := range []struct {
			name string
			spec Spec
			want syscall.Errno
		}{
			{"no program in any folder", Spec{Path: "nowhere", SearchPath: "/bin::/no/folder", Argv: []string{"x"}, Files: []int{fd, fd, fd}, CgroupFD: -1}, syscall.ENOENT},
			{"no right in the last folder", Spec{Path: "denied", SearchPath: "/bin:" + filepath.Dir(denied), Argv: []string{"x"}, Files: []int{fd, fd, fd}, CgroupFD: -1}, syscall.EACCES},
			{"no right, and no program behind it", Spec{Path: "denied", SearchPath: filepath.Dir(denied) + ":/bin", Argv: []string{"x"}, Files: []int{fd, fd, fd}, CgroupFD: -1}, syscall.EACCES},
			{"no name", Spec{SearchPath: "/bin", Argv: []string{"x"}, Files: []int{fd, fd, fd}, CgroupFD: -1}, syscall.EACCES},
			{"two files", Spec{Path: "/bin/true", Argv: []string{"x"}, Files: []int{fd, fd}, CgroupFD: -1}, syscall.EINVAL},
			{"no program", Spec{Path: "/nowhere", Argv: []string{"x"}, Files: []int{fd, fd, fd}, CgroupFD: -1}, syscall.ENOENT},
			{"no right", Spec{Path: denied, Argv: []string{"x"}, Files: []int{fd, fd, fd}, CgroupFD: -1}, syscall.EACCES},
			{"no folder", Spec{Path: "/bin/true", Argv: []string{"x"}, Dir: "/nowhere", Files: []int{fd, fd, fd}, CgroupFD: -1}, syscall.ENOENT},
			{"no stream", Spec{Path: "/bin/true", Argv: []string{"x"}, Files: []int{fd, fd, 1 << 20}, CgroupFD: -1}, syscall.EBADF},
			{"no group", Spec{Path: "/bin/true", Argv: []string{"x"}, Files: []int{fd, fd, fd}, CgroupFD: fd}, syscall.EBADF},
			{"a NUL", Spec{Path: "/bin/true", Argv: []string{"x\x00y"}, Files: []int{fd, fd, fd}, CgroupFD: -1}, syscall.EINVAL},
		} {
			pid, pidfd, err := s.Start(&c.spec)
			if !errors.Is(err, c.want) || pidfd != -1 {
				t.Errorf("%s: pid %d, pidfd %d, %v; want %v", c.name, pid, pidfd, err, c.want)
			}
		}
		if after := openDescriptors(t); after != before {
			t.Errorf("%d descriptors, %d before", after, before)
		}
		if _, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != unix.ECHILD {
			t.Errorf("a child is left: %v", err)
		}
	})
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestStartReturnsPIDFD(t *testing.T) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	fd := int(null.Fd())
	withEachMethod(t, func(t *testing.T, s *Starter) {
		pid, pidfd, err := s.Start(&Spec{Path: "/bin/sleep", Argv: []string{"sleep", "1000"}, Files: []int{fd, fd, fd}, CgroupFD: -1})
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(pidfd)
		if err := unix.PidfdSendSignal(pidfd, unix.SIGTERM, nil, 0); err != nil {
			t.Error(err)
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		if status := waitStatus(t, pid); status.Signal() != unix.SIGTERM {
			t.Errorf("status %x", status)
		}
	})
}

// The program is taken from the first folder in which it can be executed. An empty folder name
// means the child's working folder.
func TestProgramIsFoundInSearchPath(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"first", "second", "third/tool"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, mode := range map[string]os.FileMode{"first/tool": 0o644, "second/tool": 0o755, "tool": 0o755} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\necho $0\n"), mode); err != nil {
			t.Fatal(err)
		}
	}
	withEachMethod(t, func(t *testing.T, s *Starter) {
		for _, c := range []struct{ search, want string }{
			{"/bin:" + dir + "/first:" + dir + "/third:" + dir + "/second:" + dir, dir + "/second/tool"},
			{"first:second:", "second/tool"},
			{"/bin::second", "./tool"},
			{dir + "/second/tool:" + strings.Repeat("x", 300) + ":second", "second/tool"},
		} {
			p := Spec{Path: "tool", SearchPath: c.search, Argv: []string{"tool"}, Env: []string{}, Dir: dir}
			if got, status := runForOutput(t, s, p); strings.TrimSpace(got) != c.want || status != 0 {
				t.Errorf("%s: %q, status %x", c.search, got, status)
			}
		}
	})
}

// A fourth file becomes descriptor 3, whatever its number was before.
func TestFourthDescriptor(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	withEachMethod(t, func(t *testing.T, s *Starter) {
		null, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer null.Close()
		p := shellSpec("echo four >&3; for f in /proc/$$/fd/*; do n=${f##*/}; [ -L $f ] && [ $n -le 9 ] && echo $n; done >&3; :")
		p.Files, p.CgroupFD = []int{int(null.Fd()), 2, 1, int(w.Fd())}, -1
		pid, pidfd, err := s.Start(&p)
		unix.Close(pidfd)
		if err != nil {
			t.Fatal(err)
		}
		if status := waitStatus(t, pid); status != 0 {
			t.Errorf("status %x", status)
		}
		got := make([]byte, 100)
		n, err := r.Read(got)
		for err == nil && n < len("four\n0\n1\n2\n3\n") {
			var more int
			more, err = r.Read(got[n:])
			n += more
		}
		if string(got[:n]) != "four\n0\n1\n2\n3\n" || err != nil {
			t.Errorf("%q, %v", got[:n], err)
		}
	})
}

// A file may have the number that another file gets in the child.
func TestDescriptorsMayOverlap(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	pid, pidfd, err := New().Start(&Spec{Path: "/bin/true", Argv: []string{"true"}, Files: []int{int(null.Fd()), 2, 1}, CgroupFD: -1})
	unix.Close(pidfd)
	if err != nil {
		t.Fatal(err)
	}
	if status := waitStatus(t, pid); status != 0 {
		t.Errorf("status %x", status)
	}
}

// Many goroutines start children while the collector runs and preempts them. The children begin on
// the stacks of these goroutines.
func TestConcurrentStartsWhileCollecting(t *testing.T) {
	s := New()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	fd := int(null.Fd())
	stop := make(chan struct{})
	var others, starters sync.WaitGroup
	others.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				runtime.GC()
			}
		}
	})
	for g := range 8 {
		starters.Go(func() {
			for i := range 50 {
				code := (g*50 + i) % 200
				p := Spec{Path: "/bin/sh", Argv: []string{"sh", "-c", fmt.Sprint("exit ", code)}, Files: []int{fd, fd, fd}, CgroupFD: -1}
				bad := i%10 == 9
				if bad {
					p.Path = "/nowhere"
				}
				pid, pidfd, err := s.Start(&p)
				unix.Close(pidfd)
				if bad != errors.Is(err, syscall.ENOENT) {
					t.Errorf("%s: %v", p.Path, err)
				}
				if err != nil {
					continue
				}
				if status := waitStatus(t, pid); status.ExitStatus() != code {
					t.Errorf("exit code %d, want %d", status.ExitStatus(), code)
				}
			}
		})
	}
	starters.Wait()
	close(stop)
	others.Wait()
}
