package slurmtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor/procfs"
)

// nodeName is the command that runs jobs.
const nodeName = "fake-slurmd"

// cancelGrace is how long a cancelled job has after SIGTERM: longer than a busy machine delays one that
// obeys.
const cancelGrace = 30 * time.Second

// commandArgument is the first argument of a process that is a command of the cluster.
const commandArgument = "slurmtest-command"

// Main runs the command that this process was called as, and ends the process. It returns when the
// process is not a command of the cluster.
func Main() {
	if len(os.Args) < 3 || os.Args[1] != commandArgument {
		return
	}
	dir, name, args := os.Getenv("SLURM_CONF"), os.Args[2], os.Args[3:]
	command := map[string]func(string, []string) error{
		"sbatch": sbatch, "squeue": squeue, "scontrol": scontrol, "scancel": scancel, nodeName: runNode,
	}[name]
	err := changeState(dir, func(s *clusterState) error {
		s.Calls[name]++
		if s.Away && name != nodeName {
			return slurmError("Unable to contact slurm controller (connect failure)")
		}
		return nil
	})
	if err == nil {
		err = command(dir, args)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: error: %v\n", name, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// slurmError is an error in Slurm's own words.
type slurmError string

func (s slurmError) Error() string { return string(s) }

func sbatch(dir string, args []string) error {
	script, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	return changeState(dir, func(s *clusterState) error {
		if s.Refusal != "" {
			return slurmError("Batch job submission failed: " + s.Refusal)
		}
		j := Job{Array: s.Next, State: "PENDING", Options: args}
		last := 0
		for _, a := range args {
			switch k, v, _ := strings.Cut(a, "="); k {
			case "--array":
				_, to, _ := strings.Cut(v, "-")
				last, _ = strconv.Atoi(to)
			case "--job-name":
				j.Name = v
			case "--output":
				j.Output = strings.ReplaceAll(v, "%%", "%")
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "script."+strconv.Itoa(s.Next)), script, 0o600); err != nil {
			return err
		}
		var all []int
		for i := range last + 1 {
			k := j
			k.Index = i
			s.Jobs = append(s.Jobs, &k)
			all = append(all, i)
		}
		startNode(s, dir, s.Next, all)
		array := s.Next
		s.Next += last + 1
		if s.Mute != "" {
			return slurmError("Batch job submission failed: " + s.Mute)
		}
		fmt.Println(array)
		return nil
	})
}

// startNode starts a process that runs the jobs.
func startNode(s *clusterState, dir string, array int, indexes []int) {
	args := []string{strconv.Itoa(array)}
	for _, i := range indexes {
		args = append(args, strconv.Itoa(i))
	}
	cmd := exec.Command(filepath.Join(dir, "bin", nodeName), args...)
	cmd.Env = []string{"SLURM_CONF=" + dir, "PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "USER=" + os.Getenv("USER")}
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if cmd.Start() == nil {
		if node, err := procfs.Read(cmd.Process.Pid); err == nil { // else it has ended
			s.Nodes = append(s.Nodes, node.Identity)
		}
		go func() { _ = cmd.Wait() }() // this process may live on and must reap it
	}
}

// endedStates are the states of jobs that are over.
var endedStates = []string{"COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "PREEMPTED", "TIMEOUT"}

func squeue(dir string, args []string) error {
	return changeState(dir, func(s *clusterState) error {
		if s.NoJSON && slices.Contains(args, "--json") {
			return errors.New("unrecognized option '--json'")
		}
		jobs := []map[string]any{{"name": "of-somebody-else", "job_state": "RUNNING", "exit_code": 0, "array_job_id": 0, "array_task_id": nil}}
		rest := map[int]bool{}
		for _, j := range s.Jobs {
			m := map[string]any{"name": j.Name, "job_state": j.State, "exit_code": j.Exit, "array_job_id": j.Array,
				"array_task_id": j.Index, "state_reason": "None", "batch_host": "node1"}
			if j.State == "PENDING" { // the waiting jobs of an array share one entry
				if rest[j.Array] {
					continue
				}
				rest[j.Array] = true
				m["array_task_id"] = nil
			}
			jobs = append(jobs, m)
		}
		return json.NewEncoder(os.Stdout).Encode(map[string]any{"errors": []string{}, "jobs": jobs})
	})
}

func scontrol(dir string, args []string) error {
	if strings.Join(args, " ") != "show job -o" {
		return fmt.Errorf("scontrol %v is not known here", args)
	}
	return changeState(dir, func(s *clusterState) error {
		for _, j := range s.Jobs {
			fmt.Printf("JobId=%d ArrayJobId=%d ArrayTaskId=%d JobName=%s UserId=x(1) JobState=%s Reason=None ExitCode=%d:%d BatchHost=node1\n",
				j.Array+j.Index, j.Array, j.Index, j.Name, j.State, j.Exit>>8, j.Exit&0x7f)
		}
		return nil
	})
}

func scancel(dir string, args []string) error {
	script := slices.Contains(args, "--signal=USR1") && slices.Contains(args, "--batch")
	return changeState(dir, func(s *clusterState) (failed error) {
		for _, a := range args {
			if strings.HasPrefix(a, "--") {
				continue
			}
			array, index, _ := strings.Cut(a, "_")
			n, _ := strconv.Atoi(array)
			i, _ := strconv.Atoi(index)
			j := s.findJob(n, i, "")
			switch {
			case j == nil || slices.Contains(endedStates, j.State):
				failed = slurmError("Kill job error on job id " + a + ": Invalid job id specified")
			case script && j.PID != 0:
				_ = unix.Kill(j.PID, unix.SIGUSR1)
			case script:
			case j.State == "PENDING":
				j.State = "CANCELLED"
			default:
				j.Cancelled = true
				killGroup(j.PID, unix.SIGTERM)
			}
		}
		return failed
	})
}
