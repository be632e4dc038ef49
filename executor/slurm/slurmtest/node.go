package slurmtest

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// runningJob is a job's script.
type runningJob struct {
	cmd   *exec.Cmd
	ended chan struct{} // closed when the script has ended and its status is known
	kill  time.Time     // when the rest of a cancelled job is killed; zero = never
}

// runNode runs jobs of one array, each in its turn, until they are over. It reads the state once for
// all of them.
func runNode(dir string, args []string) error {
	array, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	jobs := map[int]*runningJob{} // nil: it waits
	for _, a := range args[1:] {
		index, err := strconv.Atoi(a)
		if err != nil {
			return err
		}
		jobs[index] = nil
	}
	for ; len(jobs) > 0; time.Sleep(20 * time.Millisecond) {
		if err := changeState(dir, func(s *clusterState) error { s.runJobs(dir, array, jobs); return nil }); err != nil {
			return err
		}
	}
	return nil
}

// runJobs starts jobs and handles ended ones, in the order of their indexes.
func (s *clusterState) runJobs(dir string, array int, jobs map[int]*runningJob) {
	for _, index := range slices.Sorted(maps.Keys(jobs)) {
		r := jobs[index]
		if r != nil {
			if s.checkEnd(r) {
				delete(jobs, index)
			}
			continue
		}
		j := s.findJob(array, index, "PENDING")
		if j == nil {
			delete(jobs, index) // cancelled
			continue
		}
		if !s.isNext(j) {
			continue
		}
		cmd, err := startScript(dir, j)
		if err != nil {
			j.State, j.Exit = "FAILED", 1<<8
			delete(jobs, index)
			continue
		}
		r = &runningJob{cmd: cmd, ended: make(chan struct{})}
		go func() {
			_ = cmd.Wait() // its state holds the result
			close(r.ended)
		}()
		j.State, j.PID = "RUNNING", cmd.Process.Pid
		jobs[index] = r
	}
}

// checkEnd tells whether a script has ended, and kills the rest of a cancelled job.
func (s *clusterState) checkEnd(r *runningJob) bool {
	var job *Job
	for _, j := range s.Jobs {
		if j.PID == r.cmd.Process.Pid {
			job = j
		}
	}
	select {
	case <-r.ended:
	default:
		switch {
		case job == nil || !job.Cancelled:
		case r.kill.IsZero():
			r.kill = time.Now().Add(cancelGrace)
		case time.Now().After(r.kill):
			killGroup(r.cmd.Process.Pid, unix.SIGKILL)
		}
		return false
	}
	killGroup(r.cmd.Process.Pid, unix.SIGKILL)
	if job == nil {
		return true
	}
	status, _ := r.cmd.ProcessState.Sys().(syscall.WaitStatus)
	job.PID, job.Exit = 0, int(status)
	switch {
	case job.State != "RUNNING": // its node was lost
	case job.Cancelled:
		job.State = "CANCELLED"
	case status == 0:
		job.State = "COMPLETED"
	default:
		job.State = "FAILED"
	}
	return true
}

// startScript starts a job's script in a group of its own, with Slurm's variables.
func startScript(dir string, j *Job) (*exec.Cmd, error) {
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
