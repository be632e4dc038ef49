package specjson

import (
	"strconv"
	"strings"
	"unicode"

	"github.com/caravan-dag/caravan/dag"
)

// The engine keeps and echoes unknown members of a job: they may be for a third-party
// executor. More often an unknown member is a typo, and the run does not do what its
// author meant. Each of them gets a warning with the member that was probably meant.

// MaxWarnings bounds the warnings of one document. One more entry says how many were
// left out.
const MaxWarnings = 100

// Members of a job, and of a task besides its job, for suggestions. The last five of a job are for
// the executor slurm.
const (
	jobMembers      = "command, commandString, environment, workDir, executor, cores, memoryMB, timeoutSeconds, partition, account, qos, constraint, gres"
	taskOnlyMembers = "parents, children, maxRetries, retryIntervalSeconds, retryBackoff, retryMaxIntervalSeconds, isGenerator"
)

// isListed tells whether a list of members has a name.
func isListed(members, name string) bool {
	return strings.Contains(", "+members+",", ", "+name+",")
}

// warnUnknownMember adds a warning about a member of a job that the engine does not
// know.
func (d *reader) warnUnknownMember(name string) {
	if !d.warn || isListed(jobMembers, name) {
		return
	}
	if d.warned++; d.warned > MaxWarnings {
		return
	}
	message := "unknown member " + dag.Quote(name) + " is kept and has no effect"
	if meant, ofTask := suggestMember(name); meant != "" && meant == name {
		message = "member " + dag.Quote(name) + " belongs to the task, outside its job: it has no effect here"
	} else if ofTask {
		message += ": did you mean " + meant + ", outside the job?"
	} else if meant != "" {
		message += ": did you mean " + meant + "?"
	}
	d.warnings = append(d.warnings, dag.Problem{Pointer: d.currentPointer(), Message: message})
}

// allWarnings returns the warnings, with an entry for those beyond the bound.
func (d *reader) allWarnings() dag.Problems {
	if more := d.warned - MaxWarnings; more > 0 {
		return append(d.warnings, dag.Problem{Message: "and " + strconv.Itoa(more) + " more unknown members of jobs"})
	}
	return d.warnings
}

// maxSuggestedName bounds the names, in bytes, for which a suggestion is searched.
const maxSuggestedName = 40

// suggestMember returns the member that was probably meant by an unknown name, or "", and whether
// it belongs to the task. Names of other tools come first: they mean the same without looking
// alike, as "env" and "environment" do. Then comes the member with the fewest wrong letters, at
// most two.
func suggestMember(name string) (meant string, ofTask bool) {
	if len(name) > maxSuggestedName {
		return "", false
	}
	plain := plainName(name)
	meant = memberOfAlias(plain)
	if meant == "" {
		least := 3
		for member := range strings.SplitSeq(jobMembers+", "+taskOnlyMembers, ", ") {
			// A short name allows fewer wrong letters.
			other := strings.ToLower(member)
			most := min(2, (min(len(plain), len(other))-1)/3)
			if n := editDistance(plain, other); n <= most && n < least {
				meant, least = member, n
			}
		}
	}
	return meant, meant != "" && isListed(taskOnlyMembers, meant)
}

// plainName returns a name in lower case, without separators.
func plainName(name string) string {
	return strings.Map(func(r rune) rune {
		switch r {
		case '_', '-', '.', ' ':
			return -1
		}
		return unicode.ToLower(r)
	}, name)
}

// memberOfAlias returns the member for a name that other tools use, as plainName writes it ("time_limit"
// is "timelimit"), or "".
func memberOfAlias(plain string) string {
	switch plain {
	case "timeout", "timeoutsec", "timeoutsecs", "timeouts", "timelimit", "walltime", "maxruntime", "maxtime", "deadline", "activedeadlineseconds", "startdeadlineseconds":
		return "timeoutSeconds"
	case "retry", "retries", "maxretry", "retrycount", "retrylimit", "attempts", "maxattempts", "numretries", "nretries", "tries":
		return "maxRetries"
	case "retryinterval", "retrydelay", "retrywait", "retrydelayseconds", "delay", "interval":
		return "retryIntervalSeconds"
	case "backoff", "backofffactor", "exponentialbackoff":
		return "retryBackoff"
	case "env", "envs", "environ", "envvars", "environmentvariables", "variables", "vars", "exports":
		return "environment"
	case "cmd", "cmds", "args", "argv", "exec", "program", "executable", "entrypoint":
		return "command"
	case "run", "script", "shell", "bash", "sh", "cmdline", "commandline", "shellcommand", "cmdstring":
		return "commandString"
	case "dir", "cwd", "wd", "pwd", "chdir", "folder", "directory", "workingdir", "workingdirectory", "workdirectory":
		return "workDir"
	case "mem", "memory", "memmb", "memorymib", "memorygb", "memorylimit", "ram", "rammb":
		return "memoryMB"
	case "cpu", "cpus", "ncpu", "ncpus", "numcpus", "core", "ncores", "threads", "vcpus", "cpuspertask":
		return "cores"
	case "dependson", "depends", "dependencies", "deps", "needs", "requires", "after", "upstream", "parent":
		return "parents"
	case "child", "downstream", "before":
		return "children"
	case "generator", "generates":
		return "isGenerator"
	case "runner", "backend", "engine":
		return "executor"
	}
	return ""
}

// editDistance counts the letters that were left out, added, changed or swapped with their
// neighbour: the optimal string alignment distance, in three rows of its table. It compares bytes,
// because all known members are ASCII. Lengths that differ by more than 2 are answered at once,
// with 3. "comand" and "commnad" are at distance 1 from "command", and "comandd" is at 2.
func editDistance(a, b string) int {
	if len(a)-len(b) > 2 || len(b)-len(a) > 2 {
		return 3 // callers accept at most 2
	}
	before, last, now := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		now[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			now[j] = min(last[j]+1, now[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				now[j] = min(now[j], before[j-2]+1)
			}
		}
		before, last, now = last, now, before
	}
	return last[len(b)]
}
