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

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	// Rule 1, for what whoever runs the tests has open.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		fmt.Fprintln(os.Stderr, "descriptors that were inherited reach the children:", err)
	}
	goleak.VerifyTestMain(m)
}

// both runs a test with each way of starting. Where there is no quick one it is the
// plain one twice.
func both(t *testing.T, test func(t *testing.T, s *Starter)) {
	plain := New()
	plain.plain.Store(true)
	t.Run("quick", func(t *testing.T) { test(t, New()) })
	t.Run("plain", func(t *testing.T) { test(t, plain) })
}

// output starts a program, both output streams of which are returned with its status.
func output(t *testing.T, s *Starter, p Spec) (string, unix.WaitStatus) {
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
	p.Files, p.Cgroup = []int{int(null.Fd()), int(w.Fd()), int(w.Fd())}, -1
	pid, _, err := s.Start(&p)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(text), ended(t, pid)
}

func ended(t *testing.T, pid int) (status unix.WaitStatus) {
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

func sh(script string) Spec {
	return Spec{Path: "/bin/sh", Argv: []string{"sh", "-c", script}, Env: []string{"A=1", "B=x y"}}
}

func TestWhatTheChildIs(t *testing.T) {
	both(t, func(t *testing.T, s *Starter) {
		p := sh(`echo "$0 $A $B"; pwd; cat /dev/stdin; echo err >&2; [ "$(cut -d' ' -f5 /proc/$$/stat)" = $$ ] && echo leads; exit 3`)
		p.Argv[0] = "its name"
		p.Argv = append(p.Argv, "zero")
		p.Dir = "/usr"
		got, status := output(t, s, p)
		want := "zero 1 x y\n/usr\nerr\nleads\n"
		if got != want || status.ExitStatus() != 3 {
			t.Errorf("%q, want %q; exit code %d", got, want, status.ExitStatus())
		}
	})
}

// What Go has done to its own process is not the child's: no signal is blocked, ignored
// or handled that was not when this process was started, and the limit on open files is
// the one that syscall.ForkExec gives.
func TestNothingOfGoIsInherited(t *testing.T) {
	const script = `grep -E '^Sig(Blk|Ign|Cgt)' /proc/self/status; ulimit -Sn; ulimit -Hn`
	plain := &Starter{}
	plain.plain.Store(true)
	want, _ := output(t, plain, sh(script))
	if got, _ := output(t, New(), sh(script)); got != want {
		t.Errorf("%s\nsyscall.ForkExec:\n%s", got, want)
	}
}

// The limit is that of whoever starts a Go program, though that raises it for itself.
func TestLimitOfOpenFiles(t *testing.T) {
	if os.Getenv("VFORK_TEST") == "limit" {
		both(t, func(t *testing.T, s *Starter) {
			if got, _ := output(t, s, sh("ulimit -Sn")); got != "321\n" {
				t.Errorf("limit %q", got)
			}
		})
		return
	}
	p := Spec{Path: "/bin/sh", Argv: []string{"sh", "-c", `ulimit -Sn 321 && exec "$0" -test.run='^TestLimitOfOpenFiles$'`, os.Args[0]},
		Env: append(os.Environ(), "VFORK_TEST=limit")}
	if got, status := output(t, New(), p); status != 0 {
		t.Errorf("status %d: %s", status, got)
	}
}

func TestWhatCannotStart(t *testing.T) {
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
	both(t, func(t *testing.T, s *Starter) {
		before := descriptors(t)
		for _, c := range []struct {
			name string
			spec Spec
			want syscall.Errno
		}{
			{"no program in any folder", Spec{Path: "nowhere", Search: "/bin::/no/folder", Argv: []string{"x"}, Files: []int{fd, fd, fd}, Cgroup: -1}, syscall.ENOENT},
			{"no right in the last folder", Spec{Path: "denied", Search: "/bin:" + filepath.Dir(denied), Argv: []string{"x"}, Files: []int{fd, fd, fd}, Cgroup: -1}, syscall.EACCES},
			{"no right, and no program behind it", Spec{Path: "denied", Search: filepath.Dir(denied) + ":/bin", Argv: []string{"x"}, Files: []int{fd, fd, fd}, Cgroup: -1}, syscall.EACCES},
			{"no name", Spec{Search: "/bin", Argv: []string{"x"}, Files: []int{fd, fd, fd}, Cgroup: -1}, syscall.EACCES},
			{"two files", Spec{Path: "/bin/true", Argv: []string{"x"}, Files: []int{fd, fd}, Cgroup: -1}, syscall.EINVAL},
			{"no program", Spec{Path: "/nowhere", Argv: []string{"x"}, Files: []int{fd, fd, fd}, Cgroup: -1, PIDFD: true}, syscall.ENOENT},
			{"no right", Spec{Path: denied, Argv: []string{"x"}, Files: []int{fd, fd, fd}, Cgroup: -1}, syscall.EACCES},
			{"no folder", Spec{Path: "/bin/true", Argv: []string{"x"}, Dir: "/nowhere", Files: []int{fd, fd, fd}, Cgroup: -1}, syscall.ENOENT},
			{"no stream", Spec{Path: "/bin/true", Argv: []string{"x"}, Files: []int{fd, fd, 1 << 20}, Cgroup: -1}, syscall.EBADF},
			{"no group", Spec{Path: "/bin/true", Argv: []string{"x"}, Files: []int{fd, fd, fd}, Cgroup: fd}, syscall.EBADF},
			{"a NUL", Spec{Path: "/bin/true", Argv: []string{"x\x00y"}, Files: []int{fd, fd, fd}, Cgroup: -1}, syscall.EINVAL},
		} {
			pid, pidfd, err := s.Start(&c.spec)
			if !errors.Is(err, c.want) || pidfd != -1 {
				t.Errorf("%s: pid %d, pidfd %d, %v; want %v", c.name, pid, pidfd, err, c.want)
			}
		}
		if after := descriptors(t); after != before {
			t.Errorf("%d descriptors, %d before", after, before)
		}
		if _, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != unix.ECHILD {
			t.Errorf("a child is left: %v", err)
		}
	})
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestPIDFD(t *testing.T) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	fd := int(null.Fd())
	both(t, func(t *testing.T, s *Starter) {
		pid, pidfd, err := s.Start(&Spec{Path: "/bin/sleep", Argv: []string{"sleep", "1000"}, Files: []int{fd, fd, fd}, Cgroup: -1, PIDFD: true})
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(pidfd)
		if err := unix.PidfdSendSignal(pidfd, unix.SIGTERM, nil, 0); err != nil {
			t.Error(err)
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		if status := ended(t, pid); status.Signal() != unix.SIGTERM {
			t.Errorf("status %x", status)
		}
	})
}

// The first folder with a program that can be executed has it; an empty one is the
// child's own.
func TestSearch(t *testing.T) {
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
	both(t, func(t *testing.T, s *Starter) {
		for _, c := range []struct{ search, want string }{
			{"/bin:" + dir + "/first:" + dir + "/third:" + dir + "/second:" + dir, dir + "/second/tool"},
			{"first:second:", "second/tool"},
			{"/bin::second", "./tool"},
			{dir + "/second/tool:" + strings.Repeat("x", 300) + ":second", "second/tool"},
		} {
			p := Spec{Path: "tool", Search: c.search, Argv: []string{"tool"}, Env: []string{}, Dir: dir}
			if got, status := output(t, s, p); strings.TrimSpace(got) != c.want || status != 0 {
				t.Errorf("%s: %q, status %x", c.search, got, status)
			}
		}
	})
}

// A fourth descriptor, which may be in any place before.
func TestFourFiles(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	both(t, func(t *testing.T, s *Starter) {
		null, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer null.Close()
		p := sh("echo four >&3; for f in /proc/$$/fd/*; do n=${f##*/}; [ -L $f ] && [ $n -le 9 ] && echo $n; done >&3; :")
		p.Files, p.Cgroup = []int{int(null.Fd()), 2, 1, int(w.Fd())}, -1
		pid, _, err := s.Start(&p)
		if err != nil {
			t.Fatal(err)
		}
		if status := ended(t, pid); status != 0 {
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

// Descriptors may be in the places of others.
func TestLowDescriptors(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	pid, _, err := New().Start(&Spec{Path: "/bin/true", Argv: []string{"true"}, Files: []int{int(null.Fd()), 2, 1}, Cgroup: -1})
	if err != nil {
		t.Fatal(err)
	}
	if status := ended(t, pid); status != 0 {
		t.Errorf("status %x", status)
	}
}

// Many starts at once, while the collector runs and goroutines are preempted, whose
// stacks are where the children begin.
func TestManyAtOnce(t *testing.T) {
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
				p := Spec{Path: "/bin/sh", Argv: []string{"sh", "-c", fmt.Sprint("exit ", code)}, Files: []int{fd, fd, fd}, Cgroup: -1}
				bad := i%10 == 9
				if bad {
					p.Path = "/nowhere"
				}
				pid, _, err := s.Start(&p)
				if bad != errors.Is(err, syscall.ENOENT) {
					t.Errorf("%s: %v", p.Path, err)
				}
				if err != nil {
					continue
				}
				if status := ended(t, pid); status.ExitStatus() != code {
					t.Errorf("exit code %d, want %d", status.ExitStatus(), code)
				}
			}
		})
	}
	starters.Wait()
	close(stop)
	others.Wait()
}
