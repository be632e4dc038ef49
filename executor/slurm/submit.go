package slurm

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/messages"
)

// jobOptions are the job members for which sbatch has an option of the same name, as a spec has them:
//
//	{"name": "train", "command": ["./train"], "partition": "gpu", "gres": "gpu:1"}
var jobOptions = []string{"partition", "account", "qos", "constraint", "gres"}

const (
	// maxHold bounds the time between two submissions while the cluster refuses them.
	maxHold = 30 * time.Second
	// limitHold is the pause after a submission that exceeded a limit on submitted jobs.
	limitHold = 5 * time.Second
)

// sbatchOptions are the sbatch options of an order, such as
//
//	--cpus-per-task=2 --mem=512M --time=62 --gres=gpu:1 --partition=gpu
//
// Slurm counts whole processors, mebibytes and minutes, so each is rounded up. The error is a sentence
// for the user that says what is wrong with the order.
func (r *reconciler) sbatchOptions(o *executor.Order) ([]string, error) {
	opts := []string{"--cpus-per-task=" + strconv.FormatInt(max(1, ceilDiv(o.CPUMillis, 1000)), 10)}
	if o.MemoryBytes > 0 {
		opts = append(opts, fmt.Sprintf("--mem=%dM", ceilDiv(o.MemoryBytes, 1<<20)))
	}
	if o.Timeout > 0 {
		// The script's own clock is exact. This limit is for the scheduler, and for a node that
		// hangs.
		minutes := ceilDiv(int64(o.Timeout+r.slurm.cfg.Grace), int64(time.Minute)) + 1
		opts = append(opts, fmt.Sprintf("--time=%d", minutes))
	}
	partition := r.slurm.cfg.Partition
	for _, m := range o.ExtraMembers {
		if !slices.Contains(jobOptions, m.Name) {
			continue
		}
		var value string
		if err := json.Unmarshal([]byte(m.Raw), &value); err != nil || strings.IndexByte(value, 0) >= 0 {
			return nil, fmt.Errorf("%s must be a string for Slurm, it is %s", m.Name, m.Raw)
		}
		if m.Name == "partition" {
			partition = value
		} else if value != "" {
			opts = append(opts, "--"+m.Name+"="+value)
		}
	}
	if partition != "" {
		opts = append(opts, "--partition="+partition)
	}
	return opts, nil
}

// ceilDiv divides positive numbers and rounds up.
func ceilDiv(v, by int64) int64 { return (v + by - 1) / by }

// arrayShape is what orders must have in common to share an array: one sbatch has one set of options and
// one script, which holds the timeout. Orders of two runs do not share one, since the job's comment
// names the run for the operator.
type arrayShape struct {
	run     messages.RunID
	timeout time.Duration
	options string
}

// shapeOf returns an order's shape and its sbatch options.
func (r *reconciler) shapeOf(o *executor.Order) (arrayShape, []string) {
	opts, _ := r.sbatchOptions(o) // cannot fail: startOrder has checked it
	return arrayShape{o.Key.Run, o.Timeout, strings.Join(opts, "\x00")}, opts
}

// submitNext is duty 2: it submits one batch, if one waits, the time to gather is over or the array is
// full, and no other sbatch runs. The answer comes as a request (onSubmitted).
//
// Each attempt's folder gets the name and index of its job before sbatch runs. So a job that begins at
// once finds its own name there, and a server that dies in between finds the job by that name. A job of
// an earlier submission finds another name and exits.
func (r *reconciler) submitNext() {
	now := time.Now()
	if r.submitting || len(r.waiting) == 0 || now.Before(r.holdUntil) || now.Before(r.gatherUntil) && len(r.waiting) < r.maxArray {
		return
	}
	batch, opts := r.nextBatch()
	if len(batch) == 0 {
		return
	}
	name := r.newJobName(batch[0].order.Name)
	folders := make([]string, len(batch))
	for i, a := range batch {
		folders[i] = folderName(a.key)
		a.jobName, a.arrayIndex, a.jobID, a.submitting = name, i, "", true
		r.setStage(a, stageSubmitted)
		if err := a.folder.writeJob(name, i); err != nil {
			// Without this file the job of its index cannot begin the attempt.
			if taken, _ := a.folder.claimUnstarted(); taken {
				r.endNotStarted(a, messages.AttemptLost, "lost: its folder cannot be written: "+err.Error())
			}
		}
	}
	args := append([]string{"--parsable", "--array=0-" + strconv.Itoa(len(batch)-1), "--job-name=" + name, "--no-requeue",
		"--nodes=1", "--ntasks=1", "--export=ALL", "--chdir=/", "--comment=Caravan run " + strconv.FormatUint(uint64(batch[0].key.Run), 10),
		"--output=" + strings.ReplaceAll(r.slurm.cfg.Dir, "%", "%%") + "/" + logFolder + "/%A_%a"}, opts...)
	script := arrayScript(r.slurm.cfg.Dir, folders, batch[0].order.Timeout, r.slurm.cfg.Grace)
	r.submitting = true
	r.slurm.goroutines.Go(func() {
		out, err := r.slurm.commands.run(r.slurm.ctx, script, "sbatch", args...)
		r.slurm.request(func() { r.onSubmitted(batch, string(out), err) })
	})
}

// nextBatch takes the first waiting attempt and all that may share its array, out of waiting. The others
// keep their order. It returns no attempt when all that waited were withdrawn.
func (r *reconciler) nextBatch() (batch []*attempt, opts []string) {
	var with arrayShape
	left := r.waiting[:0]
	for _, a := range r.waiting {
		if a.stage != stageWaiting || r.attempts[a.key] != a {
			continue // it was withdrawn
		}
		s, o := r.shapeOf(a.order)
		if len(batch) == 0 {
			with, opts = s, o
		}
		if s == with && len(batch) < r.maxArray {
			batch = append(batch, a)
		} else {
			left = append(left, a)
		}
	}
	clear(r.waiting[len(left):])
	r.waiting = left
	return batch, opts
}

// notInJobNames are the characters that a job's name does not have here.
var notInJobNames = regexp.MustCompile(`[^A-Za-z0-9_-]`)

// newJobName returns a unique job name, made of the task's name as far as Slurm accepts it, this
// folder's name and the time.
func (r *reconciler) newJobName(task string) string {
	plain := notInJobNames.ReplaceAllLiteralString(task, "_")
	return plain[:min(len(plain), 40)] + "." + r.slurm.folderID + "." + strconv.FormatInt(time.Now().UnixNano(), 36)
}

// onSubmitted handles sbatch's answer to a batch. Attempts of the batch may have been killed, revoked
// or ordered again while sbatch ran: the jobs of those that are over are cancelled, since only now
// their number is known.
func (r *reconciler) onSubmitted(batch []*attempt, out string, err error) {
	r.submitting = false
	array, _, _ := strings.Cut(strings.TrimSpace(out), ";")
	if err == nil {
		if _, bad := strconv.ParseInt(array, 10, 64); bad != nil {
			err = &commandError{name: "sbatch", err: fmt.Errorf("%q is not a job number", array)}
		}
	}
	now := time.Now()
	var left []*attempt // without those that were withdrawn since
	for _, a := range batch {
		a.submitting, a.visibleFrom = false, now
		if a.abandoned { // the attempt that replaced it finds the job by its name
			continue
		}
		switch alive := a.stage < stageCollecting; {
		case err != nil && alive:
			left = append(left, a)
		case err != nil:
		case alive:
			a.submissions++
			if a.jobID == "" {
				a.jobID = array + "_" + strconv.Itoa(a.arrayIndex)
			}
		default:
			r.toCancel = append(r.toCancel, array+"_"+strconv.Itoa(a.arrayIndex))
		}
	}
	if err == nil || !isTransient(err) {
		r.setReachable(nil)
	} else {
		r.setReachable(err)
	}
	switch {
	case err != nil:
		r.onRefused(batch, left, err)
	case r.atLimit:
		r.atLimit = false
		r.log.Info("Slurm accepts jobs again")
	}
}

// onRefused decides what becomes of attempts that sbatch refused, by its error. left are those of the
// batch that are still wanted.
//
//	the array is too large      halve maxArray and submit again at once
//	no answer                   leave them submitted: sbatch may have been accepted. The next poll finds
//	                            the jobs, or jobDisappeared submits again. Others wait for retryPause
//	a limit on submitted jobs   wait for limitHold, as long as jobs in flight can make room. The log has
//	                            a line when that begins; Healthy stays nil, since the cluster works
//	anything else               the order is at fault, or the cluster's configuration: NotStarted, with
//	                            Slurm's own words
func (r *reconciler) onRefused(batch, left []*attempt, err error) {
	switch {
	case strings.Contains(err.Error(), "Invalid job array specification") && len(batch) > 1:
		r.maxArray = len(batch) / 2
		r.requeue(left, 0)
	case isTransient(err):
		// Slurm may have accepted it. The next poll finds the jobs by name, or the attempts are
		// submitted again.
		r.retryPause = min(max(2*r.retryPause, time.Second), maxHold)
		r.holdUntil = time.Now().Add(r.retryPause)
	case strings.Contains(err.Error(), "submit limit") && r.inFlight > len(left):
		if !r.atLimit {
			r.atLimit = true
			r.log.Warn("Slurm has reached a limit on submitted jobs; orders wait until jobs have ended", "err", err)
		}
		r.requeue(left, limitHold)
	default:
		for _, a := range left {
			if a.stage == stageRunning {
				continue // an earlier job has begun it
			}
			if taken, _ := a.folder.claimUnstarted(); taken {
				r.endNotStarted(a, messages.AttemptNotStarted, "sbatch: "+err.Error())
			}
		}
	}
}

// requeue puts attempts in front of those that wait, and lets no submission begin for a while. Attempts
// that have begun by an earlier job stay where they are.
func (r *reconciler) requeue(es []*attempt, hold time.Duration) {
	rest := r.waiting
	r.waiting = nil
	for _, a := range es {
		if a.stage == stageSubmitted {
			r.enqueue(a)
		}
	}
	r.waiting = append(r.waiting, rest...)
	r.holdUntil = time.Now().Add(hold)
}

// setReachable notes, and logs once, whether the cluster answers: err is what a poll or an sbatch
// ended with, nil if Slurm answered, even if it refused. Errors while this Slurm is shutting down
// are ignored. Healthy knows before the log says so.
func (r *reconciler) setReachable(err error) {
	before := r.slurm.unreachableErr
	if err != nil && (before != nil || r.slurm.ctx.Err() != nil) {
		return
	}
	r.slurm.mu.Lock()
	r.slurm.unreachableErr = err
	r.slurm.mu.Unlock()
	switch {
	case err != nil:
		r.log.Warn("Slurm does not answer; retrying", "err", err)
	case before != nil:
		r.retryPause = 0
		r.log.Info("Slurm answers again")
	default:
		r.retryPause = 0
	}
}

// exitFolderMissing is the exit code of a job that does not find its attempt's folder (EX_TEMPFAIL of
// sysexits.h). It counts only while begun is missing, so a task may end with the same code.
const exitFolderMissing = 75

// jobScript is what Slurm runs for each index of an array. It claims the attempt, runs it, ends it
// when told to, and writes how it ended. It is POSIX sh.
//
//   - A job that differs from the one in the folder is surplus and exits.
//   - SIGTERM comes from Slurm, for the whole process group. The script still waits for the attempt's
//     end and writes it. A wait that was interrupted by a signal says nothing about the attempt, so it
//     is repeated. It returns 127 when the end was known before.
//   - SIGUSR1 comes from the server: the attempt is to be killed.
//   - SIGALRM comes from the script's own clock: the attempt has timed out.
//
// Details that tests hold it to (ends_test.go, faults_test.go, job_script_internal_test.go):
//
//   - set -C (noclobber) makes the shell create begun and cause with O_EXCL. The first cause stands.
//   - end may run at any line. A task that its signal misses, because it is forked after it, or still has
//     this script's traps, finds cause and ends itself (attemptScript).
//   - Between the fork of the task and the assignment of task only $! has the task's number: forking tells that
//     the fork is next or over, and before whether $! is that of an earlier child.
//   - kill -TERM 0 reaches the whole process group, and this script itself, whose trap only notes it. The
//     subshell that waits for the grace ignores SIGTERM, so that it survives until its kill -KILL 0.
//   - end.new is renamed to end, so that the server never reads half of it.
const jobScript = `PATH=/usr/local/bin:/usr/bin:/bin
caught= forking= before= task=
end() {
	caught=1
	[ -n "$task" ] || [ -z "$forking" ] || [ "$!" = "$before" ] || task=$!
	( set -C; echo "$1" > "$dir/cause" ) 2>/dev/null
	kill -TERM 0
	kill -CONT 0
	( trap '' TERM; sleep "$2"; kill -KILL 0 ) >/dev/null 2>&1 &
	[ -n "$task" ] || before=$!
}
trap 'caught=1' TERM
trap 'g=; read -r g < "$dir/grace"; end killed "${g:-$grace}"' USR1
trap 'end "timed out" "$grace"' ALRM
if [ ! -d "$dir" ]; then
	echo "caravan: $dir is not visible on $SLURMD_NODENAME" >&2
	exit 75
fi
name= index=
read -r name index < "$dir/job"
[ "$name $index" = "$SLURM_JOB_NAME $SLURM_ARRAY_TASK_ID" ] || exit 0
( set -C; echo "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID $SLURMD_NODENAME" > "$dir/begun" ) 2>/dev/null || exit 0
rc=143
if [ -z "$caught" ]; then
	if [ -n "$timeout" ]; then
		( trap '' TERM; sleep "$timeout"; kill -ALRM $$ ) >/dev/null 2>&1 &
	fi
	before=$! forking=1
	/bin/sh "$dir/run" "$dir" < /dev/null >> "$dir/out" 2>> "$dir/err" &
	task=${task:-$!}
	wait $task
	rc=$?
	while [ -n "$caught" ]; do
		caught=
		wait $task
		again=$?
		[ $again -eq 127 ] || rc=$again
	done
fi
{ echo "$rc"; times; } > "$dir/end.new" && mv "$dir/end.new" "$dir/end"
exit $rc
`

// arrayScript is the script of a job array whose index i runs the attempt of folders[i], below dir:
//
//	#!/bin/sh
//	set -- 7/0.1 7/1.1
//	shift "$SLURM_ARRAY_TASK_ID"
//	dir='/data/slurm'/$1
//	timeout=60
//	grace=5
//	… jobScript
//
// The folders consist of digits, '/' and '.', which sh does not interpret. timeout is empty for an order
// without a timeout.
func arrayScript(dir string, folders []string, timeout, grace time.Duration) string {
	var b strings.Builder
	b.WriteString("#!/bin/sh\nset --")
	for _, f := range folders {
		b.WriteString(" " + f)
	}
	b.WriteString("\nshift \"$SLURM_ARRAY_TASK_ID\"\ndir=" + shellQuote(dir) + "/$1\n")
	limit := ""
	if timeout > 0 {
		limit = formatSeconds(timeout)
	}
	b.WriteString("timeout=" + limit + "\ngrace=" + formatSeconds(grace) + "\n" + jobScript)
	return b.String()
}

// formatSeconds formats a duration for sleep, such as "0.25". The sleep of POSIX takes whole seconds
// only; those of GNU and BSD take fractions.
func formatSeconds(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', -1, 64) }

// shellQuote makes a string one word of sh.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// textFile is the file in an attempt's folder with a command string that is too long for an
// argument.
const textFile = "text"

// attemptScript is the script that starts the attempt, the file run. Its $1 is the attempt's folder,
// which is folder here; cwd is the working folder of orders that name none, or a relative one. The error
// is a sentence for the user that says what is wrong with the order. For ["make", "all"]:
//
//	[ ! -e "$1/cause" ] || kill -TERM $$
//	trap 'echo program > "$1/unstarted"' EXIT
//	unset ENVIRONMENT SLURM_EXPORT_ENV CDPATH
//	export PATH='/usr/bin:/bin'
//	…
//	cd '/src' || { trap - EXIT; echo folder > "$1/unstarted"; exit 126; }
//	exec 'make' 'all'
//
// The first line ends an attempt that was to be ended before this script ran. The trap runs only if exec fails, since a program that was executed has replaced the shell: so the
// server can tell a task that exits with 127 from a program that was not found. The variables go into the
// script and not into sbatch's environment, where they would change what sbatch does. TMPDIR of the base
// environment yields to the one that the node sets. Names that sh does not accept, such as "a.b", are set
// by env.
func attemptScript(o *executor.Order, baseEnv []string, cwd, folder string) (string, error) {
	argv := o.Command
	if o.UseShell {
		argv = executor.ShellCommand(o.Shell, "")
		if executor.ExceedsArgumentLimit(o.Shell) {
			argv = executor.ShellCommand("", shellQuote(filepath.Join(folder, textFile)))
		}
	}
	if len(argv) == 0 || argv[0] == "" {
		return "", errors.New("the command is empty")
	}
	env, err := executor.TaskEnvironment(baseEnv, o)
	if err != nil {
		return "", err
	}
	dir := o.Dir
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(cwd, dir)
	}
	for _, s := range append(append([]string{dir}, argv...), env...) {
		if strings.IndexByte(s, 0) >= 0 {
			return "", fmt.Errorf("command, environment or working folder hold a NUL byte: %q", s)
		}
	}
	var b strings.Builder
	b.WriteString("[ ! -e \"$1/cause\" ] || kill -TERM $$\ntrap 'echo program > \"$1/unstarted\"' EXIT\nunset ENVIRONMENT SLURM_EXPORT_ENV CDPATH\n")
	var odd []string // variables whose names sh does not accept
	for _, kv := range env {
		name, value, _ := strings.Cut(kv, "=")
		switch {
		case !shellName.MatchString(name):
			odd = append(odd, kv)
		case name == "TMPDIR" && !slices.ContainsFunc(o.Environment, func(kv string) bool { return strings.HasPrefix(kv, "TMPDIR=") }):
			fmt.Fprintf(&b, "export TMPDIR=\"${TMPDIR:-%s}\"\n", strings.NewReplacer(`\`, `\\`, `"`, `\"`, "$", `\$`, "`", "\\`", "}", `\}`).Replace(value))
		default:
			fmt.Fprintf(&b, "export %s=%s\n", name, shellQuote(value))
		}
	}
	fmt.Fprintf(&b, "cd %s || { trap - EXIT; echo folder > \"$1/unstarted\"; exit 126; }\nexec", shellQuote(dir))
	if odd != nil {
		argv = append(append([]string{"env"}, odd...), argv...)
	}
	for _, arg := range argv {
		b.WriteString(" " + shellQuote(arg))
	}
	b.WriteString("\n")
	return b.String(), nil
}

// shellName matches the names of variables that sh accepts.
var shellName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
