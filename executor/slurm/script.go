package slurm

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/caravan-dag/caravan/executor"
)

// invisible is the exit code of a job that does not find its attempt's folder.
const invisible = 75

// jobScript is what Slurm runs for each index of an array: it takes the attempt, runs
// it, ends it when told to, and writes how it ended. POSIX sh.
//
//   - A job that is not the one which the folder names was submitted in vain.
//   - SIGTERM comes from Slurm, for the whole process group: the attempt's end is
//     awaited, and written, all the same. A wait that a signal has interrupted tells
//     nothing of the attempt, so it is done again; 127 is what it says when the end was
//     known before.
//   - SIGUSR1 comes from the server: the attempt is to be killed.
//   - SIGALRM comes from the script's own clock: its time is over.
const jobScript = `PATH=/usr/local/bin:/usr/bin:/bin
caught= ending= before= task=
end() {
	caught=1 ending=1
	[ -n "$task" ] || [ "$!" = "$before" ] || task=$!
	( set -C; echo "$1" > "$dir/cause" ) 2>/dev/null
	kill -TERM 0
	kill -CONT 0
	( trap '' TERM; sleep "$2"; kill -KILL 0 ) >/dev/null 2>&1 &
}
trap 'caught=1' TERM
trap 'g=; read -r g < "$dir/grace"; end killed "${g:-$grace}"' USR1
trap 'end "timed out" "$grace"' ALRM
if [ ! -d "$dir" ]; then
	echo "caravan: $dir is not to be seen on $SLURMD_NODENAME" >&2
	exit 75
fi
name= index=
read -r name index < "$dir/job"
[ "$name $index" = "$SLURM_JOB_NAME $SLURM_ARRAY_TASK_ID" ] || exit 0
( set -C; echo "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID $SLURMD_NODENAME" > "$dir/begun" ) 2>/dev/null || exit 0
rc=143
if [ -z "$ending" ]; then
	if [ -n "$timeout" ]; then
		( trap '' TERM; sleep "$timeout"; kill -ALRM $$ ) >/dev/null 2>&1 &
	fi
	before=$!
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

// arrayScript is the script of a job array whose index i runs the attempt of folders[i],
// below dir.
func arrayScript(dir string, folders []string, timeout, grace time.Duration) string {
	var b strings.Builder
	b.WriteString("#!/bin/sh\nset --")
	for _, f := range folders {
		b.WriteString(" " + f)
	}
	b.WriteString("\nshift \"$SLURM_ARRAY_TASK_ID\"\ndir=" + quote(dir) + "/$1\n")
	limit := ""
	if timeout > 0 {
		limit = seconds(timeout)
	}
	b.WriteString("timeout=" + limit + "\ngrace=" + seconds(grace) + "\n" + jobScript)
	return b.String()
}

// seconds is a duration as sleep takes it.
func seconds(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', -1, 64) }

// quote makes a string one word of sh.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// textFile is the file of an attempt's folder that holds a command string which is too
// long for an argument.
const textFile = "text"

// attemptScript is how the attempt is started; $1 is its folder, which is folder here. The
// error says what is wrong with the order, in a sentence for the user.
func attemptScript(o *executor.Order, baseEnv []string, cwd, folder string) (string, error) {
	argv := o.Command
	if o.UseShell {
		argv = executor.ShellCommand(o.Shell, "")
		if executor.ExceedsArgumentLimit(o.Shell) {
			argv = executor.ShellCommand("", quote(filepath.Join(folder, textFile)))
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
	b.WriteString("trap 'echo program > \"$1/unstarted\"' EXIT\nunset ENVIRONMENT SLURM_EXPORT_ENV CDPATH\n")
	var odd []string // what no sh can name
	for _, kv := range env {
		name, value, _ := strings.Cut(kv, "=")
		switch {
		case !identifier(name):
			odd = append(odd, kv)
		case name == "TMPDIR" && !own(o, name):
			fmt.Fprintf(&b, "export TMPDIR=\"${TMPDIR:-%s}\"\n", strings.NewReplacer(`\`, `\\`, `"`, `\"`, "$", `\$`, "`", "\\`", "}", `\}`).Replace(value))
		default:
			fmt.Fprintf(&b, "export %s=%s\n", name, quote(value))
		}
	}
	fmt.Fprintf(&b, "cd %s || { trap - EXIT; echo folder > \"$1/unstarted\"; exit 126; }\nexec", quote(dir))
	if odd != nil {
		argv = append(append([]string{"env"}, odd...), argv...)
	}
	for _, arg := range argv {
		b.WriteString(" " + quote(arg))
	}
	b.WriteString("\n")
	return b.String(), nil
}

// own tells whether the order itself sets a variable.
func own(o *executor.Order, name string) bool {
	for _, kv := range o.Environment {
		if strings.HasPrefix(kv, name+"=") {
			return true
		}
	}
	return false
}

// identifier tells whether sh can have a variable of this name.
func identifier(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c != '_' && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}
