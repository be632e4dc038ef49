package slurm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// commandTimeout is how long one of Slurm's commands may take.
const commandTimeout = time.Minute

// commands runs Slurm's commands in an environment of their own, because sbatch passes its
// environment on to the job, and SBATCH_ variables would change its behaviour.
type commands struct {
	searchPath string
	env        []string
}

func newCommands(getenv func(string) string) commands {
	p := commands{searchPath: getenv("PATH")}
	for _, name := range []string{"PATH", "HOME", "USER", "LOGNAME", "LANG", "SLURM_CONF"} {
		if v := getenv(name); v != "" {
			p.env = append(p.env, name+"="+v)
		}
	}
	return p
}

// checkInstalled returns an error that names a missing command.
func (p *commands) checkInstalled() error {
	for _, name := range []string{"sbatch", "squeue", "scancel"} {
		if p.lookupCommand(name) == "" {
			return fmt.Errorf("slurm: %s is not in PATH: Slurm's commands must be installed and configured where the server runs", name)
		}
	}
	return nil
}

// lookupCommand returns the path of a command, or "".
func (p *commands) lookupCommand(name string) string {
	for _, dir := range filepath.SplitList(p.searchPath) {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil && filepath.IsAbs(path) {
			return path
		}
	}
	return ""
}

// commandError is the failure of a command, with its output.
type commandError struct {
	name   string
	output string // may be ""
	err    error
}

func (e *commandError) Error() string {
	if e.output == "" {
		return fmt.Sprintf("%s: %v", e.name, e.err)
	}
	return e.output
}

func (e *commandError) Unwrap() error { return e.err }

// run runs a command to its end and returns its stdout.
func (p *commands) run(ctx context.Context, stdin, name string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	path := p.lookupCommand(name)
	if path == "" {
		return nil, &commandError{name: name, err: errors.New("not in PATH")}
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env, cmd.Dir = p.env, "/"
	cmd.Stdin = strings.NewReader(stdin)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("no answer: %w", ctx.Err())
		}
		return out.Bytes(), &commandError{name: name, output: cleanOutput(name, said.String()), err: err}
	}
	return out.Bytes(), nil
}

// cleanOutput joins a command's messages to one line, without the prefix of each.
func cleanOutput(name, said string) string {
	var lines []string
	for line := range strings.Lines(said) {
		line = strings.TrimSpace(line)
		line = strings.TrimPrefix(strings.TrimPrefix(line, name+": "), "error: ")
		if line != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "; ")
}

// transientMessages are parts of messages about failures that pass, or whose outcome is unknown: the
// controller, or the credentials' daemon, is away or busy.
var transientMessages = []string{
	"Unable to contact slurm controller", "temporarily unable", "temporarily unavailable", "Socket timed out",
	"Connection refused", "Connection timed out", "Zero Bytes were transmitted", "Transport endpoint",
	"uthentication", "Insane message length", "in standby", "Unexpected message received", "no answer", "Job submission disabled",
}

// isTransient tells whether a retry may succeed. It may after a command that did not run, or did not
// end.
func isTransient(err error) bool {
	ce, ran := errors.AsType[*commandError](err)
	return !ran || ce.output == "" || containsAny(ce.output, transientMessages)
}

func containsAny(s string, parts []string) bool {
	return slices.ContainsFunc(parts, func(part string) bool { return strings.Contains(s, part) })
}

// job is Slurm's state of one job, which is one index of an array.
type job struct {
	array  int64  // number of its array
	state  string // PENDING, RUNNING, COMPLETED, …
	exit   syscall.WaitStatus
	reason string
	node   string
}

// The states of a job that is over. COMPLETING is not one of them: its processes may still run. In the
// first states the cluster, and not the task, has caused the end.
var (
	lostStates  = []string{"BOOT_FAIL", "NODE_FAIL", "PREEMPTED", "REVOKED"}
	endedStates = append([]string{"CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "OUT_OF_MEMORY", "TIMEOUT"}, lostStates...)
)

// id is the job's name in squeue and scancel.
func (j *job) id(index int) string { return fmt.Sprintf("%d_%d", j.array, index) }

func (j *job) hasEnded() bool      { return slices.Contains(endedStates, j.state) }
func (j *job) pending() bool       { return j.state == "PENDING" || j.state == "CONFIGURING" }
func (j *job) lostByCluster() bool { return slices.Contains(lostStates, j.state) }

// snapshot holds all jobs of this folder at one moment, by name and index. The waiting jobs of an
// array share one entry, at index pendingRest.
type snapshot map[string]map[int]*job

const pendingRest = -1

func (s snapshot) find(name string, index int) *job {
	jobs := s[name]
	if j := jobs[index]; j != nil {
		return j
	}
	return jobs[pendingRest]
}

func (s snapshot) add(name string, index int, j *job) {
	if s[name] == nil {
		s[name] = map[int]*job{}
	}
	s[name][index] = j
}

// queryJobs asks Slurm for all jobs. Where squeue lacks JSON it sets plainText and uses scontrol
// from then on.
func (p *commands) queryJobs(ctx context.Context, id string, plainText *bool) (snapshot, error) {
	if !*plainText {
		out, err := p.run(ctx, "", "squeue", "--json", "--me", "--states=all")
		if err == nil {
			return parseJSON(out, id)
		}
		if ce, ok := err.(*commandError); !ok || !containsAny(ce.output, []string{"json", "JSON", "nrecognized option", "serializer"}) {
			return nil, err
		}
		*plainText = true
	}
	out, err := p.run(ctx, "", "scontrol", "show", "job", "-o")
	if err != nil {
		return nil, err
	}
	return parseText(out, id), nil
}

// number reads numbers as the versions of Slurm write them: 5, null, or {"set": true, "infinite":
// false, "number": 5}.
type number struct {
	value int64
	set   bool
}

func (n *number) UnmarshalJSON(b []byte) error {
	*n = number{}
	if b[0] != '{' {
		var v *int64
		err := json.Unmarshal(b, &v)
		if v != nil {
			*n = number{*v, true}
		}
		return err
	}
	var o struct {
		Set    bool
		Number int64
	}
	err := json.Unmarshal(b, &o)
	*n = number{o.Number, o.Set}
	return err
}

// words reads a string, or a list of strings.
type words []string

func (w *words) UnmarshalJSON(b []byte) error {
	if b[0] == '[' {
		return json.Unmarshal(b, (*[]string)(w))
	}
	var s string
	err := json.Unmarshal(b, &s)
	*w = words{s}
	return err
}

// exitCode reads a raw wait status, or the object that later versions write.
type exitCode syscall.WaitStatus

func (e *exitCode) UnmarshalJSON(b []byte) error {
	if b[0] != '{' {
		var n number
		err := n.UnmarshalJSON(b)
		*e = exitCode(n.value)
		return err
	}
	var o struct {
		ReturnCode number `json:"return_code"`
		Signal     struct {
			ID    number
			Older number `json:"signal_id"`
		}
	}
	err := json.Unmarshal(b, &o)
	*e = exitCode(o.ReturnCode.value<<8 | o.Signal.ID.value | o.Signal.Older.value)
	return err
}

// parseJSON reads the output of squeue --json, which includes other users' jobs in some versions.
func parseJSON(out []byte, id string) (snapshot, error) {
	var doc struct {
		Jobs []struct {
			Name        string
			ArrayJobID  number   `json:"array_job_id"`
			ArrayTaskID number   `json:"array_task_id"`
			JobState    words    `json:"job_state"`
			ExitCode    exitCode `json:"exit_code"`
			StateReason string   `json:"state_reason"`
			BatchHost   string   `json:"batch_host"`
		}
	}
	if err := json.Unmarshal(out, &doc); err != nil {
		return nil, fmt.Errorf("squeue --json: %w", err)
	}
	s := snapshot{}
	for i := range doc.Jobs {
		d := &doc.Jobs[i]
		if !isOurs(d.Name, id) {
			continue
		}
		j := &job{array: d.ArrayJobID.value, exit: syscall.WaitStatus(d.ExitCode), reason: d.StateReason, node: d.BatchHost}
		for _, w := range d.JobState { // COMPLETING comes in addition to the final state
			if j.state == "" || w == "COMPLETING" {
				j.state = w
			}
		}
		index := pendingRest
		if d.ArrayTaskID.set {
			index = int(d.ArrayTaskID.value)
		}
		s.add(d.Name, index, j)
	}
	return s, nil
}

// parseText reads the output of scontrol show job -o: one line of KEY=VALUE words per job.
func parseText(out []byte, id string) snapshot {
	s := snapshot{}
	for line := range bytes.Lines(out) {
		f := map[string]string{}
		for _, word := range strings.Fields(string(line)) {
			if k, v, ok := strings.Cut(word, "="); ok && f[k] == "" {
				f[k] = v
			}
		}
		if !isOurs(f["JobName"], id) {
			continue
		}
		j := &job{state: f["JobState"], reason: f["Reason"], node: f["BatchHost"]}
		code, signal, _ := strings.Cut(f["ExitCode"], ":")
		c, _ := strconv.Atoi(code)
		sig, _ := strconv.Atoi(signal)
		j.exit = syscall.WaitStatus(c<<8 | sig)
		j.array, _ = strconv.ParseInt(f["ArrayJobId"], 10, 64)
		index, err := strconv.Atoi(f["ArrayTaskId"])
		if err != nil {
			index = pendingRest
		}
		s.add(f["JobName"], index, j)
	}
	return s
}

// isOurs tells whether a job belongs to this folder, by its name. See newJobName.
func isOurs(name, id string) bool { return strings.Contains(name, "."+id+".") }
