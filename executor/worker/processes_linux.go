package worker

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/messages"
)

// Mark is the name of the entry that a worker, and whatever it starts, has in its
// environment: the worker's own is FOLDER/NAME, a task's FOLDER/NAME/RUN.TASK.ATTEMPT,
// where FOLDER is the identity of the data folder. A copy of a data folder has another
// identity: its server does not touch the processes of the original.
const Mark = "CARAVAN_WORKER"

// MarkValue is the value of a worker's own entry.
func MarkValue(folder, worker string) string { return folder + "/" + worker }

func mark(worker string, k messages.AttemptKey) string {
	b := make([]byte, 0, 64)
	b = append(append(append(b, Mark...), '='), worker...)
	b = strconv.AppendUint(append(b, '/'), uint64(k.Run), 10)
	b = strconv.AppendUint(append(b, '.'), uint64(k.Task), 10)
	b = strconv.AppendUint(append(b, '.'), uint64(k.Attempt), 10)
	return string(b)
}

// marked finds the mark of a worker in an environment as /proc shows it. has is false
// when there is none of it; key is set when it is a task's.
func marked(environ []byte, worker string) (key *messages.AttemptKey, has bool) {
	for len(environ) > 0 {
		var entry []byte
		entry, environ, _ = bytes.Cut(environ, []byte{0})
		value, ok := strings.CutPrefix(string(entry), Mark+"="+worker)
		if !ok {
			continue
		}
		if value == "" {
			return nil, true
		}
		var k messages.AttemptKey
		var rest string
		if n, _ := fmt.Sscanf(value+"\n", "/%d.%d.%d%s\n", &k.Run, &k.Task, &k.Attempt, &rest); n == 3 {
			return &k, true
		}
	}
	return nil, false
}

// markedBy finds the mark of any worker of a data folder in an environment as /proc shows
// it, and returns the worker's name.
func markedBy(environ []byte, folder string) (worker string, has bool) {
	prefix := Mark + "=" + folder + "/"
	for len(environ) > 0 {
		var entry []byte
		entry, environ, _ = bytes.Cut(environ, []byte{0})
		if value, ok := strings.CutPrefix(string(entry), prefix); ok {
			worker, _, _ = strings.Cut(value, "/")
			return worker, worker != ""
		}
	}
	return "", false
}

// bootNow is the time since boot, in ns, which also runs while the machine sleeps.
func bootNow() int64 {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return 0
	}
	return ts.Nano()
}

// tick is the unit of start times in /proc, in ns. USER_HZ is 100 on every
// architecture that Go runs on.
const tick = 10_000_000

// BootID names the time since the machine was started; each start has another one.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// ownHeader returns the header of this process's journal, which lacks the mark.
func ownHeader() (*workerpb.JournalHeader, error) {
	boot, err := BootID()
	if err != nil {
		return nil, fmt.Errorf("worker: boot id: %w", err)
	}
	own, err := readProcess(os.Getpid())
	if err != nil {
		return nil, fmt.Errorf("worker: start time: %w", err)
	}
	return &workerpb.JournalHeader{Format: journalFormat, BootId: boot, Pid: int64(own.pid), StartTicks: own.ticks}, nil
}

// Identity is what the kernel tells a process by, for as long as the machine runs.
type Identity struct {
	PID   int
	Ticks uint64 // its start: field 22 of /proc/PID/stat
}

// Identify returns the identity of the process that has this number now.
func Identify(pid int) (Identity, error) {
	p, err := readProcess(pid)
	return Identity{PID: p.pid, Ticks: p.ticks}, err
}

// Lives tells whether the process has not ended. It is false for the zero Identity.
func (i Identity) Lives() bool {
	if i.PID == 0 {
		return false
	}
	p, err := readProcess(i.PID)
	return err == nil && !p.dead && p.ticks == i.Ticks
}

// Signal sends a signal to the process, and to no other that has its number.
func (i Identity) Signal(sig unix.Signal) { process{pid: i.PID, ticks: i.Ticks}.signal(sig) }

// process is a line of /proc/PID/stat.
type process struct {
	pid, group, session int
	ticks               uint64 // when it started, since boot
	dead                bool   // a zombie, or about to go
}

func readProcess(pid int) (p process, err error) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return p, err
	}
	p, ok := parseProcess(stat)
	if !ok {
		return p, fmt.Errorf("/proc/%d/stat: %q is not understood", pid, stat)
	}
	return p, nil
}

// parseProcess reads: pid (name) state ppid pgrp session …; the name may hold
// anything, brackets too.
func parseProcess(stat []byte) (p process, ok bool) {
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || end < open {
		return p, false
	}
	f := bytes.Fields(stat[end+1:])
	if len(f) < 20 {
		return p, false
	}
	var errs [5]error
	p.pid, errs[0] = strconv.Atoi(string(bytes.TrimSpace(stat[:open])))
	p.group, errs[1] = strconv.Atoi(string(f[2]))
	p.session, errs[2] = strconv.Atoi(string(f[3]))
	var threads int
	threads, errs[3] = strconv.Atoi(string(f[17]))
	p.ticks, errs[4] = strconv.ParseUint(string(f[19]), 10, 64)
	// A zombie with further threads lives: only its first one has ended.
	p.dead = f[0][0] == 'X' || f[0][0] == 'x' || f[0][0] == 'Z' && threads <= 1
	return p, errors.Join(errs[:]...) == nil
}

// processes lists all there are.
func processes() (list []process, err error) {
	d, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if p, err := readProcess(pid); err == nil {
			list = append(list, p)
		}
	}
	return list, nil
}

// environ is a process's environment; nil when it cannot be read.
func environ(pid int) []byte {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
	if err != nil {
		return nil
	}
	return b
}

// signal sends a signal to the process if it is still the one that was found: its
// number is pinned before that is checked.
func (p process) signal(sig unix.Signal) {
	fd, err := unix.PidfdOpen(p.pid, 0)
	if err != nil {
		if err == unix.ENOSYS {
			if now, err := readProcess(p.pid); err == nil && now.ticks == p.ticks {
				_ = unix.Kill(p.pid, sig)
			}
		}
		return // it has ended
	}
	defer unix.Close(fd)
	if now, err := readProcess(p.pid); err == nil && now.ticks == p.ticks {
		// What becomes of it shows the next look.
		_ = unix.PidfdSendSignal(fd, sig, nil, 0)
	}
}
