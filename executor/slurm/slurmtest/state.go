package slurmtest

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

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
	Calls map[string]int // calls of each command
	Nodes []int          // process ids of nodes

	// Faults that tests set.
	Refusal string // sbatch refuses with this message
	Mute    string // sbatch accepts the job and fails with this message
	NoJSON  bool   // squeue lacks --json
	Away    bool   // all commands fail
}

// changeState lets f read and change the state under its lock.
func changeState(dir string, f func(*clusterState)) error {
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
	f(&s)
	if text, err = json.Marshal(&s); err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func (s *clusterState) findJob(array, index int) *Job {
	for _, j := range s.Jobs {
		if j.Array == array && j.Index == index {
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
