package clustertest

import (
	"fmt"
	"io"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// janitor is a process that cleans up when its input ends, and so also when this process dies. It is
// a shell, because the test binary may be gone by then. The usual end of a test goes the same way, so
// that this way is tried each time.
type janitor struct {
	cmd   *exec.Cmd
	input io.WriteCloser
}

// janitorScript reads one thing on each line. Then it resumes stalled disks, kills the processes in
// the network namespaces and those that name the base folder in their arguments, unmounts, and removes
// the folder. It looks for processes again after each kill, because they may have started others.
const janitorScript = `
trap '' HUP INT TERM
nets=' ' base=
while read -r kind value; do
	case $kind in
	net) nets="$nets$value " ;;
	mount) set -- "$@" "$value" ;;
	base) base=$value ;;
	esac
done
# A process that waits for a stalled disk cannot be killed.
for dir in "$@"; do
	fsfreeze -u "$dir" 2>/dev/null
done
round=0
while [ $round -lt 50 ]; do
	round=$((round + 1))
	found=$(
		if [ "$nets" != ' ' ]; then
			ls -l /proc/[0-9]*/ns/net 2>/dev/null | while read -r line; do
				path=${line#*/proc/}
				case $nets in *" ${line##*-> } "*) echo "${path%%/*}" ;; esac
			done
		fi
		# The pattern comes by a pipe, so that grep does not find its own arguments.
		echo "$base/" | grep -lsF -f - /proc/[0-9]*/cmdline 2>/dev/null | while read -r path; do
			path=${path#/proc/}
			echo "${path%%/*}"
		done
	)
	[ -n "$found" ] || break
	kill -9 $found 2>/dev/null
	sleep 0.02
done
for dir in "$@"; do
	umount -l "$dir" 2>/dev/null
done
rm -rf -- "$base"
`

// startJanitor starts the janitor of a base folder. The path of the folder must be unique: every
// program with this path in its arguments is ended.
func startJanitor(base string) (*janitor, error) {
	if strings.Contains(base, "\n") {
		return nil, fmt.Errorf("the folder %q has a line break in its name", base)
	}
	j := &janitor{cmd: exec.Command("/bin/sh", "-c", janitorScript)}
	// A group of its own, so that ^C at the terminal ends the test and not the clean-up.
	j.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var err error
	if j.input, err = j.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := j.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the janitor: %w", err)
	}
	return j, j.addDuty("base", base)
}

// addDuty tells the janitor about a thing: a net (as /proc/PID/ns/net reads), a mount or the base.
func (j *janitor) addDuty(kind, value string) error {
	if _, err := fmt.Fprintf(j.input, "%s %s\n", kind, value); err != nil {
		return fmt.Errorf("tell the janitor: %w", err)
	}
	return nil
}

// cleanUp makes the janitor clean up, and waits for it.
func (j *janitor) cleanUp(limit time.Duration) error {
	j.input.Close()
	ended := make(chan error, 1)
	go func() { ended <- j.cmd.Wait() }()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case err := <-ended:
		if err != nil {
			return fmt.Errorf("the janitor: %w", err)
		}
		return nil
	case <-timer.C:
		return fmt.Errorf("the janitor has not cleaned up within %v", limit)
	}
}
