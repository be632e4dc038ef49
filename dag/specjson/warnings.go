package specjson

import (
	"strconv"
	"strings"
	"unicode"

	"github.com/caravan-dag/caravan/dag"
)

// A member of a job that the engine does not know is kept and echoed: it may be for an
// executor of somebody's own. More often it is a slip, and the run does something else
// than was meant. So each is told of, with the member that was probably meant.

// MaxWarnings bounds the warnings of one document; one more says how many there are
// beyond.
const MaxWarnings = 100

// Members by where they belong. Those of the executor slurm are the last five.
const (
	jobMembers = "command commandString environment workDir executor cores memoryMB timeoutSeconds partition account qos constraint gres"
	taskOnly   = "parents children maxRetries retryIntervalSeconds retryBackoff retryMaxIntervalSeconds isGenerator"
)

// unknownMember notes a member of a job that the engine does not know.
func (d *reader) unknownMember(name string) {
	if !d.warn || strings.Contains(" "+jobMembers+" ", " "+name+" ") {
		return
	}
	if d.warned++; d.warned > MaxWarnings {
		return
	}
	message := "unknown member " + dag.Quote(name) + " is kept and has no effect"
	if meant, ofTask := likely(name); meant != "" && meant == name {
		message = "member " + dag.Quote(name) + " belongs to the task, beside its job: here it has no effect"
	} else if ofTask {
		message += ": did you mean " + meant + ", beside the job?"
	} else if meant != "" {
		message += ": did you mean " + meant + "?"
	}
	d.warnings = append(d.warnings, dag.Problem{Pointer: d.pointer(), Message: message})
}

// told are the warnings, with how many there are beyond the bound.
func (d *reader) told() dag.Problems {
	if more := d.warned - MaxWarnings; more > 0 {
		return append(d.warnings, dag.Problem{Message: "and " + strconv.Itoa(more) + " more unknown members of jobs"})
	}
	return d.warnings
}

// maxLikely is the length of names from which on none is likely.
const maxLikely = 40

// likely is the member that was probably meant by an unknown one, "" when there is no
// telling, and whether it belongs to the task.
func likely(name string) (meant string, ofTask bool) {
	if len(name) > maxLikely {
		return "", false
	}
	plain := plainName(name)
	meant = alias(plain)
	if meant == "" {
		least := 3
		for member := range strings.SplitSeq(jobMembers+" "+taskOnly, " ") {
			// Of a short name most letters must be right.
			other := strings.ToLower(member)
			most := min(2, (min(len(plain), len(other))-1)/3)
			if n := distance(plain, other); n <= most && n < least {
				meant, least = member, n
			}
		}
	}
	return meant, meant != "" && strings.Contains(" "+taskOnly+" ", " "+meant+" ")
}

// plainName is a name without what people write differently.
func plainName(name string) string {
	return strings.Map(func(r rune) rune {
		switch r {
		case '_', '-', '.', ' ':
			return -1
		}
		return unicode.ToLower(r)
	}, name)
}

// alias is the member that others call by a name.
func alias(plain string) string {
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

// distance is how many letters were left out, added, changed or swapped with the next.
func distance(a, b string) int {
	if len(a)-len(b) > 2 || len(b)-len(a) > 2 {
		return 3 // more than matters
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
