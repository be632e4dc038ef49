package slurmtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// node runs jobs of one array, each in its turn, until they are over.
func node(dir string, args []string) error {
	array, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	var all sync.WaitGroup
	errs := make(chan error, len(args))
	for _, a := range args[1:] {
		index, err := strconv.Atoi(a)
		if err != nil {
			return err
		}
		all.Go(func() { errs <- runJob(dir, array, index) })
	}
	all.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// runJob waits for a job's turn and runs it.
func runJob(dir string, array, index int) error {
	for ; ; time.Sleep(10 * time.Millisecond) {
		var cmd *exec.Cmd
		var failed error
		gone := false
		err := change(dir, func(s *state) {
			j := s.pending(array, index)
			if gone = j == nil; gone || !s.next(j) {
				return
			}
			if cmd, failed = start(dir, j); failed == nil {
				j.State, j.PID = "RUNNING", cmd.Process.Pid
			} else {
				j.State, j.Exit = "FAILED", 1<<8
			}
		})
		switch {
		case err != nil || failed != nil:
			return fmt.Errorf("job %d_%d: %v %v", array, index, err, failed)
		case gone:
			return nil
		case cmd != nil:
			return finish(dir, cmd)
		}
	}
}

func (s *state) pending(array, index int) *Job {
	for _, j := range s.Jobs {
		if j.Array == array && j.Index == index && j.State == "PENDING" {
			return j
		}
	}
	return nil
}

// start starts a job's script in a group of its own, with Slurm's variables.
func start(dir string, j *Job) (*exec.Cmd, error) {
	id := fmt.Sprintf("%d_%d", j.Array, j.Index)
	out, err := os.Create(strings.NewReplacer("%A", strconv.Itoa(j.Array), "%a", strconv.Itoa(j.Index)).Replace(j.Output))
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command("/bin/sh", filepath.Join(dir, "script."+strconv.Itoa(j.Array)))
	cmd.Env = append(os.Environ(), "SLURM_JOB_ID="+id, "SLURM_ARRAY_JOB_ID="+strconv.Itoa(j.Array), "SLURM_ARRAY_TASK_ID="+strconv.Itoa(j.Index),
		"SLURM_JOB_NAME="+j.Name, "SLURMD_NODENAME=node1", "SLURM_EXPORT_ENV=ALL", "ENVIRONMENT=BATCH")
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", out, out
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	return cmd, cmd.Start()
}

// finish waits for a job's end, or has it cancelled, and ends what is left of it.
func finish(dir string, cmd *exec.Cmd) error {
	pid := cmd.Process.Pid
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // its state tells how
		close(ended)
	}()
	var kill <-chan time.Time
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for waiting := true; waiting; {
		select {
		case <-ended:
			waiting = false
		case <-kill:
			killGroup(pid, unix.SIGKILL)
		case <-tick.C:
			if kill == nil && cancelled(dir, pid) {
				kill = time.After(killWait)
			}
		}
	}
	killGroup(pid, unix.SIGKILL)
	status, _ := cmd.ProcessState.Sys().(syscall.WaitStatus)
	return change(dir, func(s *state) {
		for _, j := range s.Jobs {
			if j.PID != pid {
				continue
			}
			j.PID, j.Exit = 0, int(status)
			switch {
			case j.State != "RUNNING":
			case j.Cancelled:
				j.State = "CANCELLED"
			case status == 0:
				j.State = "COMPLETED"
			default:
				j.State = "FAILED"
			}
		}
	})
}

func cancelled(dir string, pid int) (yes bool) {
	// An unreadable state ends nothing.
	_ = change(dir, func(s *state) {
		for _, j := range s.Jobs {
			yes = yes || j.PID == pid && j.Cancelled
		}
	})
	return yes
}

func zombie(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	return strings.HasPrefix(rest, "Z")
}
