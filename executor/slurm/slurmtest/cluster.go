package slurmtest

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor/procfs"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// Cluster is a cluster of one node without Slurm. It ends with its test.
type Cluster struct {
	t    testing.TB
	dir  string
	path string
}

// New makes a cluster. Its commands are in a folder of their own; see Getenv.
func New(t testing.TB) *Cluster {
	t.Helper()
	c := &Cluster{t: t, dir: t.TempDir()}
	c.path = filepath.Join(c.dir, "bin")
	self, err := os.Executable()
	if err == nil {
		err = os.Mkdir(c.path, 0o700)
	}
	for _, name := range []string{"sbatch", "squeue", "scontrol", "scancel", nodeName} {
		if err == nil {
			// The race detector, where it is linked, would wait a second at each exit.
			script := fmt.Sprintf("#!/bin/sh\nGORACE=atexit_sleep_ms=0 exec '%s' %s %s \"$@\"\n", self, commandArgument, name)
			err = os.WriteFile(filepath.Join(c.path, name), []byte(script), 0o700)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.stop)
	return c
}

// Getenv is os.Getenv for users of the cluster.
func (c *Cluster) Getenv(name string) string {
	switch name {
	case "PATH":
		return c.path + ":/usr/bin:/bin"
	case "SLURM_CONF":
		return c.dir
	}
	return os.Getenv(name)
}

// Environment is Getenv as K=V entries for a process.
func (c *Cluster) Environment() []string {
	return []string{"PATH=" + c.Getenv("PATH"), "SLURM_CONF=" + c.dir}
}

func (c *Cluster) changeState(f func(*clusterState)) {
	c.t.Helper()
	if err := changeState(c.dir, func(s *clusterState) error { f(s); return nil }); err != nil {
		c.t.Fatal(err)
	}
}

// Jobs returns all jobs that the cluster remembers.
func (c *Cluster) Jobs() (jobs []Job) {
	c.changeState(func(s *clusterState) {
		for _, j := range s.Jobs {
			jobs = append(jobs, *j)
		}
	})
	return jobs
}

// CallCount is how often a command was called.
func (c *Cluster) CallCount(command string) (n int) {
	c.changeState(func(s *clusterState) { n = s.Calls[command] })
	return n
}

// SetSlots sets how many jobs run at once.
func (c *Cluster) SetSlots(n int) { c.changeState(func(s *clusterState) { s.Slots = n }) }

// HoldJobs keeps jobs from starting, or releases them.
func (c *Cluster) HoldJobs(held bool) { c.changeState(func(s *clusterState) { s.Held = held }) }

// RefuseSubmissions makes sbatch refuse all jobs with this message; "" ends that.
func (c *Cluster) RefuseSubmissions(why string) {
	c.changeState(func(s *clusterState) { s.Refusal = why })
}

// BreakConnections makes sbatch accept jobs and fail with this message, as when its connection
// breaks.
func (c *Cluster) BreakConnections(why string) { c.changeState(func(s *clusterState) { s.Mute = why }) }

// DisableJSON makes squeue reject --json.
func (c *Cluster) DisableJSON() { c.changeState(func(s *clusterState) { s.NoJSON = true }) }

// SetUnreachable makes all commands fail, as when the controller is away.
func (c *Cluster) SetUnreachable(away bool) { c.changeState(func(s *clusterState) { s.Away = away }) }

// LoseRunningJobs ends all running jobs in this state, NODE_FAIL or PREEMPTED, and kills all their
// processes.
func (c *Cluster) LoseRunningJobs(as string) {
	c.changeState(func(s *clusterState) {
		for _, j := range s.Jobs {
			if j.State == "RUNNING" {
				j.State = as
				killGroup(j.PID, unix.SIGKILL)
			}
		}
	})
}

// ForgetJobs drops the jobs that are over, and with pending also those that wait.
func (c *Cluster) ForgetJobs(pending bool) {
	c.changeState(func(s *clusterState) {
		s.Jobs = slices.DeleteFunc(s.Jobs, func(j *Job) bool {
			return j.State != "RUNNING" && (pending || j.State != "PENDING")
		})
	})
}

// Resubmit starts a job again that runs or has run, as a requeue does.
func (c *Cluster) Resubmit(array, index int) {
	c.changeState(func(s *clusterState) {
		j := *s.findJob(array, index, "")
		j.State, j.PID, j.Exit = "PENDING", 0, 0
		s.Jobs = append(s.Jobs, &j)
		startNode(s, c.dir, array, []int{index})
	})
}

// stop ends all processes of the cluster. They write to folders of the test, which are removed next.
func (c *Cluster) stop() {
	for end := time.Now().Add(testenv.Patience); ; time.Sleep(5 * time.Millisecond) {
		alive := false
		c.changeState(func(s *clusterState) {
			for _, node := range s.Nodes {
				if node.IsAlive() {
					node.Signal(unix.SIGKILL)
					alive = true
				}
			}
			list, err := procfs.List("/proc")
			if err != nil {
				c.t.Error(err)
			}
			for _, j := range s.Jobs {
				if j.PID != 0 && slices.ContainsFunc(list, func(p procfs.Process) bool { return p.Group == j.PID && !p.Dead }) {
					killGroup(j.PID, unix.SIGKILL)
					alive = true
				}
			}
		})
		if !alive {
			return
		}
		if time.Now().After(end) {
			c.t.Error("processes of the cluster survive")
			return
		}
	}
}

// killGroup signals a process group.
func killGroup(pid int, sig unix.Signal) {
	if pid > 1 {
		_ = unix.Kill(-pid, sig) // it may have ended
	}
}

// Job is one index of a job array.
type Job struct {
	Array, Index int
	Name         string
	State        string // PENDING, RUNNING, COMPLETED, …
	Exit         int    // raw wait status
	PID          int    // of its script, which leads its process group; 0 before and after
	Cancelled    bool
	Options      []string // arguments of sbatch
	Output       string   // file of Slurm's own messages
}

// clusterState is all that a cluster knows.
type clusterState struct {
	Next  int // number of the next array
	Slots int // jobs that run at once
	Held  bool
	Jobs  []*Job
	Calls map[string]int    // calls of each command
	Nodes []procfs.Identity // processes of nodes

	// Faults that tests set.
	Refusal string // sbatch refuses with this message
	Mute    string // sbatch accepts the job and fails with this message
	NoJSON  bool   // squeue lacks --json
	Away    bool   // all commands fail
}

// changeState lets f read and change the state under its lock. The change is kept even if f returns an
// error, which is that of the command.
func changeState(dir string, f func(*clusterState) error) error {
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	for {
		if err = unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return err
	}
	path := filepath.Join(dir, "state")
	s := clusterState{Next: 1, Slots: 1000, Calls: map[string]int{}}
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, &s)
	} else if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return err
	}
	failed := f(&s)
	if text, err = json.Marshal(&s); err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return err
	}
	return cmp.Or(os.Rename(path+".new", path), failed)
}

// findJob finds a job, in this state unless that is "".
func (s *clusterState) findJob(array, index int, state string) *Job {
	for _, j := range s.Jobs {
		if j.Array == array && j.Index == index && (state == "" || j.State == state) {
			return j
		}
	}
	return nil
}

// isNext tells whether it is this job's turn to run.
func (s *clusterState) isNext(j *Job) bool {
	if s.Held {
		return false
	}
	running := 0
	for _, k := range s.Jobs {
		switch {
		case k.State == "RUNNING":
			running++
		case k == j:
			return running < s.Slots
		case k.State == "PENDING":
			running++ // it comes first
		}
	}
	return false
}
