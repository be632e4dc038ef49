package procfs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/internal/testenv"
)

func TestParseStat(t *testing.T) {
	line := func(name, state, group, threads string) string {
		return fmt.Sprintf("42 (%s) %s 1 %s 44 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 %s 0 99 0", name, state, group, threads)
	}
	for stat, dead := range map[string]bool{
		line("sh", "S", "43", "1"):          false,
		line("a) (b", "S", "43", "1"):       false,
		line("a) R 1 2 (b", "R", "43", "1"): false,
		line("sh", "T", "43", "1"):          false,
		line("sh", "Z", "43", "1"):          true,
		line("sh", "Z", "43", "3"):          false, // only its first thread has ended
		line("sh", "X", "43", "1"):          true,
	} {
		p, ok := parseStat([]byte(stat))
		want := Process{Identity: Identity{PID: 42, Ticks: 99}, Group: 43, Session: 44, Threads: p.Threads, Dead: dead}
		if !ok || p != want || p.Threads != 1 && p.Threads != 3 {
			t.Errorf("%q: %+v %v", stat, p, ok)
		}
	}
	good := line("sh", "S", "43", "1")
	for _, bad := range []string{"", "42 (sh", "42 (sh) S 1", "42 (a) S 1 2", line("sh", "S", "x", "1"), strings.Replace(good, "42", "x", 1)} {
		if p, ok := parseStat([]byte(bad)); ok {
			t.Errorf("%q: %+v", bad, p)
		}
	}
	if _, err := Read(1 << 30); err == nil {
		t.Error("a process that does not exist was read")
	}
}

func FuzzParseStat(f *testing.F) {
	own, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(own)
	f.Add([]byte("1 (a) ) Z 1 2"))
	f.Fuzz(func(t *testing.T, line []byte) { parseStat(line) })
}

func TestListFindsThisProcess(t *testing.T) {
	if list, err := List(t.TempDir()); err != nil || list != nil {
		t.Errorf("an empty folder has %v, %v", list, err)
	}
	if _, err := List("/no/such"); err == nil {
		t.Error("a missing folder was listed")
	}
	list, err := List("/proc")
	i := slices.IndexFunc(list, func(p Process) bool { return p.PID == os.Getpid() })
	if err != nil || i < 0 || list[i].Group != syscall.Getpgrp() || !list[i].IsAlive() {
		t.Errorf("this process is not among %v, %v", list, err)
	}
	if (Identity{}).IsAlive() || (Identity{PID: list[i].PID, Ticks: list[i].Ticks + 1}).IsAlive() {
		t.Error("another identity lives")
	}
}

// A list that lacks processes would prove their end, so an error that says nothing about a process is
// returned. A process that ends while the list is read is left out.
func TestListIsCompleteOrAnError(t *testing.T) {
	restore := testenv.LeaveDescriptors(t, 1) // for the folder
	list, err := List("/proc")
	restore()
	if !errors.Is(err, unix.EMFILE) || list != nil {
		t.Errorf("without a descriptor for a process: %d processes, %v", len(list), err)
	}
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "41"), 0o700); err != nil { // its stat is gone
		t.Fatal(err)
	}
	if list, err := List(dir); err != nil || list != nil {
		t.Errorf("with a process that has ended: %v, %v", list, err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "42", "stat"), 0o700); err != nil { // EISDIR
		t.Fatal(err)
	}
	if list, err := List(dir); err == nil || list != nil {
		t.Errorf("with a process that cannot be read: %v, %v", list, err)
	}
}

// Processes of other users are left out where this user may not see them.
func TestHiddenProcessesAreLeftOut(t *testing.T) {
	for err, hidden := range map[error]bool{
		unix.EPERM: true, unix.EACCES: true, unix.EMFILE: false, unix.ENFILE: false, unix.EIO: false, unix.ENOENT: false,
	} {
		if isHidden(&os.PathError{Op: "open", Path: "/proc/1/stat", Err: err}) != hidden {
			t.Errorf("%v: hidden must be %t", err, hidden)
		}
	}
}

// A shortage of descriptors proves neither that a process has no mark nor that it is dead.
func TestShortageProvesNothingAboutAProcess(t *testing.T) {
	own, err := Read(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	restore := testenv.LeaveDescriptors(t, 0)
	environ, err := own.Environment()
	alive := own.IsAlive()
	restore()
	if !errors.Is(err, unix.EMFILE) || environ != nil || !alive {
		t.Errorf("without a descriptor: %d bytes, %v, alive %t", len(environ), err, alive)
	}
	if environ, err := own.Environment(); err != nil || len(environ) == 0 {
		t.Errorf("%d bytes, %v", len(environ), err)
	}
	if environ, err := (Identity{PID: 1 << 30}).Environment(); err != nil || environ != nil {
		t.Errorf("a process that does not exist has %d bytes, %v", len(environ), err)
	}
}

// TestEnvironmentOfAProcessAmidItsExec: a process that executes programs all the time has its environment in each
// look. The kernel shows an empty one amid each exec.
func TestEnvironmentOfAProcessAmidItsExec(t *testing.T) {
	cmd := exec.Command("/bin/sh", "-c", `eval "$LOOP"`)
	cmd.Env = []string{`LOOP=exec /bin/sh -c "$LOOP"`, "MARK=its own"}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	}()
	p, err := Read(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	for look := range 5000 {
		if environ, err := p.Environment(); err != nil || !bytes.Contains(environ, []byte("MARK=its own\x00")) {
			t.Fatalf("look %d: %q, %v", look, environ, err)
		}
	}
}

func TestEnvironmentThatIsEmpty(t *testing.T) {
	cmd := exec.Command("/bin/sleep", "1000")
	cmd.Env = []string{}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	environ, err := Identity{PID: cmd.Process.Pid}.Environment()
	if err != nil || len(environ) > 0 || time.Since(began) > execPatience {
		t.Errorf("%q, %v after %v", environ, err, time.Since(began))
	}
	_ = cmd.Process.Kill()
	if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	if environ, err := (Identity{PID: cmd.Process.Pid}).Environment(); err != nil || len(environ) > 0 {
		t.Errorf("a zombie has %q, %v", environ, err)
	}
	_ = cmd.Wait() // it was killed
}
