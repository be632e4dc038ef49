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
// environment on to the job, and SBATCH_ variables would change its behaviour. It does not link
// libslurm, whose interface changes with each version; the commands and their output are what users rely
// on. It is immutable, so any goroutine may use it.
type commands struct {
	searchPath string   // PATH, in which the commands are looked up at each call: they may be replaced
	env        []string // of each command
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

// commandError is the failure of a command, with its output. Its text is Slurm's own, such as
//
//	Batch job submission failed: Invalid partition name specified
//
// and only without an output that of the exit, such as "sbatch: exit status 1".
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

// run runs a command to its end, or until ctx or commandTimeout is over, and returns its stdout. The
// error is a *commandError. The cluster may have done what a command has asked for that was killed.
// WaitDelay ends the wait for a child of the command that has kept its stdout.
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

// cleanOutput joins a command's messages to one line, without the prefix of each. For squeue
//
//	squeue: error: Unable to contact slurm controller (connect failure)
//
// becomes "Unable to contact slurm controller (connect failure)".
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
// controller, or the credentials' daemon (munge), is away or busy. A message that is missing
// here makes an order fail which could have waited; one too many makes it wait for ever.
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

// containsAny tells whether one of the parts occurs in s.
func containsAny(s string, parts []string) bool {
	return slices.ContainsFunc(parts, func(part string) bool { return strings.Contains(s, part) })
}

// job is Slurm's state of one job, which is one index of an array.
type job struct {
	array  int64              // number of its array
	state  string             // PENDING, RUNNING, COMPLETED, …; see man squeue, JOB STATE CODES
	exit   syscall.WaitStatus // of its script, once it has ended
	reason string             // why it waits or was ended, such as "Resources"; "" or "None" = unknown
	node   string             // that its script runs on; "" while it waits
}

// The states of a job that is over. COMPLETING is not one of them: its processes may still run. In
// lostStates the cluster, and not the task, has caused the end.
var (
	lostStates  = []string{"BOOT_FAIL", "NODE_FAIL", "PREEMPTED", "REVOKED"}
	endedStates = append([]string{"CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "OUT_OF_MEMORY", "TIMEOUT"}, lostStates...)
)

// id is the job's name in squeue and scancel, such as "1234_0".
func (j *job) id(index int) string { return fmt.Sprintf("%d_%d", j.array, index) }

func (j *job) hasEnded() bool      { return slices.Contains(endedStates, j.state) }
func (j *job) pending() bool       { return j.state == "PENDING" || j.state == "CONFIGURING" }
func (j *job) lostByCluster() bool { return slices.Contains(lostStates, j.state) }

// snapshot holds all jobs of this folder at one moment, by name and index. The waiting jobs of an
// array share one entry, at index pendingRest.
type snapshot map[string]map[int]*job

const pendingRest = -1

// find returns the job of an array and an index, or nil. An index without an entry of its own still
// waits, if the array has an entry for its waiting jobs.
func (s snapshot) find(name string, index int) *job {
	jobs := s[name]
	if j := jobs[index]; j != nil {
		return j
	}
	return jobs[pendingRest]
}

// add enters a job.
func (s snapshot) add(name string, index int, j *job) {
	if s[name] == nil {
		s[name] = map[int]*job{}
	}
	s[name][index] = j
}

// queryJobs asks Slurm for all jobs of the folder with this id. Where squeue lacks JSON it sets plainText
// and uses scontrol from then on. A job that has ended is among them for as long as Slurm keeps it
// (MinJobAge, 5 minutes by default), and is missing after that.
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

// UnmarshalJSON implements json.Unmarshaler. null, and an object whose set is false, are not set.
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

// words reads a string, or a list of strings: job_state is "RUNNING" in version 22.05. In 24.05 it is
// ["RUNNING"], with flags such as "COMPLETING" behind the state.
type words []string

// UnmarshalJSON implements json.Unmarshaler.
func (w *words) UnmarshalJSON(b []byte) error {
	if b[0] == '[' {
		return json.Unmarshal(b, (*[]string)(w))
	}
	var s string
	err := json.Unmarshal(b, &s)
	*w = words{s}
	return err
}

// exitCode reads a raw wait status, such as 256 for exit code 1, or the object that later versions write:
//
//	{"status": ["SIGNALED"], "return_code": {"set": false}, "signal": {"id": {"set": true, "number": 9}}}
type exitCode syscall.WaitStatus

// UnmarshalJSON implements json.Unmarshaler. It makes a wait status of the object.
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
	for _, d := range doc.Jobs {
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

// parseText reads the output of scontrol show job -o: one line of KEY=VALUE words per job, such as
//
//	JobId=8 ArrayJobId=7 ArrayTaskId=0 JobName=t.5e0f.x JobState=FAILED ExitCode=3:0 BatchHost=n1 …
//
// Values may contain blanks and '=' (Comment, Command), so words without '=' are skipped and the first
// word of a key counts. ArrayTaskId=2-9 is the entry of an array's waiting jobs. ExitCode is the exit
// code and the signal.
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
