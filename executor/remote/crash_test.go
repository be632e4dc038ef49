package remote_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor/executortest"
)

// script appends a line when it begins and one when it ends.
const script = `echo "begin $CARAVAN_TASK $CARAVAN_ATTEMPT" >>lines; sleep 0.02; echo "end $CARAVAN_TASK $CARAVAN_ATTEMPT" >>lines`

// storm starts the server of a folder, again and again, until all tasks have
// succeeded. Storms mostly wait, so they run in parallel.
type storm struct {
	*rig
	tasks  int
	stderr executortest.SyncBuffer
	rng    *rand.Rand
}

func newStorm(t *testing.T, tasks int, seed uint64) *storm {
	t.Parallel()
	return &storm{rig: newParallelRig(t), tasks: tasks, rng: rand.New(rand.NewPCG(seed, 1))}
}

func (s *storm) serve() *exec.Cmd {
	s.t.Helper()
	cmd := exec.Command(os.Args[0], "server", s.data, fmt.Sprint(s.tasks), script)
	cmd.Stderr, cmd.Env = &s.stderr, append(os.Environ(), s.mark)
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	return cmd
}

// pause waits for a random time up to most.
func (s *storm) pause(most time.Duration) {
	<-time.After(time.Duration(s.rng.Int64N(int64(most))))
}

// finish serves undisturbed to the end.
func (s *storm) finish() {
	s.t.Helper()
	cmd := s.serve()
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			s.t.Fatalf("last server: %v\n%s", err, &s.stderr)
		}
	case <-time.After(2 * time.Minute):
		_ = cmd.Process.Signal(unix.SIGQUIT)
		<-done
		s.t.Fatalf("the last server does not end\n%s\n%s", &s.stderr, read(filepath.Join(s.data, "journal")))
	}
}

// check holds the lines against what was promised. Without worker deaths each task has
// exactly one attempt.
func (s *storm) check(maxLost int) {
	s.t.Helper()
	begun, ended := map[string]int{}, map[string]int{}
	attempts := 0
	for line := range strings.Lines(read(filepath.Join(s.data, "lines"))) {
		what, name, _ := strings.Cut(strings.TrimSpace(line), " ")
		task, _, _ := strings.Cut(name, " ")
		switch what {
		case "begin":
			begun[name]++
			attempts++
			if begun[name] > 1 {
				s.t.Errorf("%s began %d times", name, begun[name])
			}
		case "end":
			ended[task]++
		}
	}
	for i := range s.tasks {
		if ended[fmt.Sprint("t", i)] == 0 {
			s.t.Errorf("t%d never ended", i)
		}
	}
	if extra := attempts - s.tasks; extra > maxLost {
		s.t.Errorf("%d attempts beyond one per task, at most %d were running when a worker died", extra, maxLost)
	}
	if s.t.Failed() {
		s.t.Logf("journal:\n%s\nservers:\n%s", read(filepath.Join(s.data, "journal")), &s.stderr)
	}
}

func TestServerKilled(t *testing.T) {
	for round := range rounds(12) {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			s := newStorm(t, 40, uint64(round))
			for range 4 {
				cmd := s.serve()
				s.pause(200 * time.Millisecond)
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
			}
			s.finish()
			s.check(0)
		})
	}
}

func TestServerDetached(t *testing.T) {
	s := newStorm(t, 40, 99)
	for range 4 {
		cmd := s.serve()
		s.pause(200 * time.Millisecond)
		_ = cmd.Process.Signal(unix.SIGTERM)
		if err := cmd.Wait(); err != nil && !strings.Contains(err.Error(), "terminated") {
			t.Fatalf("%v\n%s", err, &s.stderr)
		}
	}
	s.finish()
	s.check(0)
}

func TestWorkerKilled(t *testing.T) {
	for round := range rounds(8) {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			s := newStorm(t, 40, uint64(100+round))
			cmd := s.serve()
			kills := 0
			for range 3 {
				s.pause(300 * time.Millisecond)
				for _, pid := range s.workers() {
					_ = unix.Kill(pid, unix.SIGKILL)
					kills++
				}
			}
			if err := cmd.Wait(); err != nil {
				t.Fatalf("%v\n%s", err, &s.stderr)
			}
			s.check(2 * kills)
		})
	}
}

// TestServerAndWorkerKilled kills server and worker in random order at random moments, some
// of them stopped before, so that what they were doing is done late or never.
func TestServerAndWorkerKilled(t *testing.T) {
	for round := range rounds(12) {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			s := newStorm(t, 40, uint64(1000+round))
			kills := 0
			for range 4 {
				cmd := s.serve()
				s.pause(250 * time.Millisecond)
				workers := s.workers()
				if s.rng.IntN(2) == 0 {
					for _, pid := range workers {
						_ = unix.Kill(pid, unix.SIGSTOP)
					}
					s.pause(50 * time.Millisecond)
				}
				if s.rng.IntN(3) == 0 {
					_ = unix.Kill(cmd.Process.Pid, unix.SIGSTOP)
					s.pause(20 * time.Millisecond)
				}
				victim := s.rng.IntN(3) // worker, server, both
				if victim != 1 {
					for _, pid := range workers {
						_ = unix.Kill(pid, unix.SIGKILL)
						kills++
					}
				}
				if victim == 0 && s.rng.IntN(2) == 0 {
					_ = unix.Kill(cmd.Process.Pid, unix.SIGCONT)
					s.pause(100 * time.Millisecond) // it sees the worker gone
				}
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
				for _, pid := range workers {
					_ = unix.Kill(pid, unix.SIGCONT)
				}
			}
			s.finish()
			s.check(2 * (kills + 4)) // a server that lives on may have started another one
		})
	}
}

// rounds is how often a storm is repeated: a quarter as often with -short, CARAVAN_ROUNDS
// times as often when set.
func rounds(n int) int {
	if testing.Short() {
		n = max(2, n/4)
	}
	var times int
	if _, err := fmt.Fscan(bytes.NewBufferString(os.Getenv("CARAVAN_ROUNDS")), &times); err == nil {
		return n * times
	}
	return n
}
