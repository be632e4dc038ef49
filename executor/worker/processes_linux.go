package worker

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/messages"
)

// MarkVariable names the variable that a worker, and every process that it starts, has in its
// environment. The worker's own value is FOLDER/NAME, that of a task FOLDER/NAME/RUN.TASK.ATTEMPT,
// where FOLDER is the identity of the data folder. A copy of a data folder has another identity, so
// its server does not touch the processes of the original.
const MarkVariable = "CARAVAN_WORKER"

// MarkValue returns the value of a worker's own mark.
func MarkValue(dataFolderID, worker string) string { return dataFolderID + "/" + worker }

// taskMark returns the mark of an attempt as an entry of its environment.
func taskMark(worker string, k messages.AttemptKey) string {
	b := make([]byte, 0, 64)
	b = append(append(append(b, MarkVariable...), '='), worker...)
	b = strconv.AppendUint(append(b, '/'), uint64(k.Run), 10)
	b = strconv.AppendUint(append(b, '.'), uint64(k.Task), 10)
	b = strconv.AppendUint(append(b, '.'), uint64(k.Attempt), 10)
	return string(b)
}

// findMark finds the mark of a worker in an environment as /proc shows it. key is set when the mark
// is that of an attempt.
func findMark(environ []byte, worker string) (key *messages.AttemptKey, has bool) {
	for len(environ) > 0 {
		var entry []byte
		entry, environ, _ = bytes.Cut(environ, []byte{0})
		value, ok := strings.CutPrefix(string(entry), MarkVariable+"="+worker)
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

// findWorkerMark finds the mark of a worker of a data folder in an environment as /proc shows it, and
// returns the worker's name.
func findWorkerMark(environ []byte, dataFolderID string) (worker string, has bool) {
	prefix := MarkVariable + "=" + dataFolderID + "/"
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

// sinceBoot returns the time since boot, in ns. It also runs while the machine sleeps.
func sinceBoot() int64 {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return 0
	}
	return ts.Nano()
}

// clockTick is the unit of start times in /proc, in ns. USER_HZ is 100 on every architecture that Go
// runs on.
const clockTick = 10_000_000

// BootID returns the kernel's ID of this start of the machine.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// newJournalHeader returns the header of this process's journal, without the mark.
func newJournalHeader() (*workerpb.JournalHeader, error) {
	boot, err := BootID()
	if err != nil {
		return nil, fmt.Errorf("worker: boot ID: %w", err)
	}
	own, err := readProcess(os.Getpid())
	if err != nil {
		return nil, fmt.Errorf("worker: start time: %w", err)
	}
	return &workerpb.JournalHeader{Format: journalFormat, BootId: boot, Pid: int64(own.pid), StartTicks: own.ticks}, nil
}

// ProcessIdentity tells a process from every other one of this start of the machine.
type ProcessIdentity struct {
	PID   int
	Ticks uint64 // its start: field 22 of /proc/PID/stat
}

// IdentifyProcess returns the identity of the process that has this number now.
func IdentifyProcess(pid int) (ProcessIdentity, error) {
	p, err := readProcess(pid)
	return ProcessIdentity{PID: p.pid, Ticks: p.ticks}, err
}

// IsAlive reports whether the process lives. It is false for the zero identity.
func (i ProcessIdentity) IsAlive() bool {
	if i.PID == 0 {
		return false
	}
	p, err := readProcess(i.PID)
	return err == nil && !p.dead && p.ticks == i.Ticks
}

// Signal sends a signal to the process. Another process that has its number does not get it.
func (i ProcessIdentity) Signal(sig unix.Signal) { process{pid: i.PID, ticks: i.Ticks}.signal(sig) }

// process is a line of /proc/PID/stat.
type process struct {
	pid, group, session int
	ticks               uint64 // when it started, since boot
	dead                bool   // a zombie, or about to vanish
}

// readProcess reads /proc/PID/stat.
func readProcess(pid int) (p process, err error) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return p, err
	}
	p, ok := parseStat(stat)
	if !ok {
		return p, fmt.Errorf("/proc/%d/stat: %q is not a process", pid, stat)
	}
	return p, nil
}

// parseStat reads: pid (name) state ppid pgrp session …; the name may hold any byte, also brackets.
func parseStat(stat []byte) (p process, ok bool) {
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
	// A zombie with other threads lives: only its first thread has ended.
	p.dead = f[0][0] == 'X' || f[0][0] == 'x' || f[0][0] == 'Z' && threads <= 1
	return p, errors.Join(errs[:]...) == nil
}

// listProcesses lists all processes of the machine.
func listProcesses() (list []process, err error) {
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

// readEnvironment returns a process's environment; nil when it cannot be read.
func readEnvironment(pid int) []byte {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
	if err != nil {
		return nil
	}
	return b
}

// signal sends a signal to the process if it is still the one that was found. A pidfd pins its number
// before that is checked.
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
		// The next look at the process shows what became of it.
		_ = unix.PidfdSendSignal(fd, sig, nil, 0)
	}
}

// ignoreChildSignals stops the kernel from sending SIGCHLD to this process. Go's runtime handles each
// one on any thread, and so interrupts what that thread waits for, though the worker does not use the
// signal. The default action is set, not SIG_IGN: with SIG_IGN children could not be waited for.
func ignoreChildSignals() {
	var byDefault struct {
		handler, flags, restorer uintptr
		mask                     uint64
	}
	// An error leaves things as they are.
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGCHLD), uintptr(unsafe.Pointer(&byDefault)), 0,
		unsafe.Sizeof(byDefault.mask), 0, 0)
}
