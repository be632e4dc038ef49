package slurm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// patience is how long one of Slurm's commands may take.
const commandTimeout = time.Minute

// programs runs Slurm's commands, in an environment of their own: sbatch hands it on to
// the job, and SBATCH_ variables would change what it does.
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

// find returns an error that names the command which is not there.
func (p *commands) checkInstalled() error {
	for _, name := range []string{"sbatch", "squeue", "scancel"} {
		if p.lookupCommand(name) == "" {
			return fmt.Errorf("slurm: %s is not in PATH: Slurm's commands must be installed, and set up, where the server runs", name)
		}
	}
	return nil
}

// lookup finds a command; "" when there is none.
func (p *commands) lookupCommand(name string) string {
	for _, dir := range filepath.SplitList(p.searchPath) {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil && filepath.IsAbs(path) {
			return path
		}
	}
	return ""
}

// commandError is a command that failed, with what it said.
type commandError struct {
	name   string
	output string // "" when it said nothing
	err    error
}

func (e *commandError) Error() string {
	if e.output == "" {
		return fmt.Sprintf("%s: %v", e.name, e.err)
	}
	return e.output
}

func (e *commandError) Unwrap() error { return e.err }

// run runs a command to its end and returns what it printed.
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

// plain is what a command said, on one line and without the prefixes that it gives
// each of its lines.
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

// passing are parts of messages about what will be better later, or whose outcome is
// not known: the controller is away or busy, or the credentials' daemon is.
var transientMessages = []string{
	"Unable to contact slurm controller", "temporarily unable", "temporarily unavailable", "Socket timed out",
	"Connection refused", "Connection timed out", "Zero Bytes were transmitted", "Transport endpoint",
	"uthentication", "Insane message length", "in standby", "Unexpected message received", "no answer", "Job submission disabled",
}

// isPassing tells whether it is worth while to try again. A command that did not even
// run, or did not end, is.
func isTransient(err error) bool {
	var ce *commandError
	if !errors.As(err, &ce) || ce.output == "" {
		return true
	}
	return containsAny(ce.output, transientMessages)
}

func containsAny(s string, parts []string) bool {
	for _, p := range parts {
		if strings.Contains(s, p) {
			return true
		}
	}
	return false
}

// job is what Slurm says of one job, which is one index of an array.
type job struct {
	array  int64  // number of its array
	state  string // PENDING, RUNNING, COMPLETED, …
	exit   syscall.WaitStatus
	reason string
	node   string
}

// overStates are those of a job that is over. One that is COMPLETING is not: its
// processes may be there yet.
var endedStates = map[string]bool{
	"BOOT_FAIL": true, "CANCELLED": true, "COMPLETED": true, "DEADLINE": true, "FAILED": true, "NODE_FAIL": true,
	"OUT_OF_MEMORY": true, "PREEMPTED": true, "REVOKED": true, "TIMEOUT": true,
}

// number is what squeue and scancel call an index of the array.
func (j *job) id(index int) string { return fmt.Sprintf("%d_%d", j.array, index) }

func (j *job) hasEnded() bool { return endedStates[j.state] }
func (j *job) pending() bool  { return j.state == "PENDING" || j.state == "CONFIGURING" }

// lost tells whether the cluster, and not the task, was the reason of the job's end.
func (j *job) lostByCluster() bool {
	switch j.state {
	case "NODE_FAIL", "BOOT_FAIL", "PREEMPTED", "REVOKED":
		return true
	}
	return false
}

// snapshot is all jobs of this folder at one moment, by name and index. Those of an
// array that wait have one entry in common, at index rest.
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

// jobs asks for all jobs. Where squeue has no JSON, scontrol is asked, from then on.
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

// number reads numbers as the versions of Slurm write them: 5, null, or
// {"set": true, "infinite": false, "number": 5}.
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

// words reads a string, or a list of them.
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

// exitCode reads a raw wait status, or the parts that later versions give.
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

// parseJSON reads what squeue --json prints: jobs of others too, in some versions.
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
		for _, w := range d.JobState { // COMPLETING stands beside what the job will be
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

// parseText reads what scontrol show job -o prints: a line per job of KEY=VALUE words.
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

// ours tells whether a job's name is one of this folder's; see jobName.
func isOurs(name, id string) bool { return strings.Contains(name, "."+id+".") }
