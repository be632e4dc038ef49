// Package procfs reads the processes of this machine from /proc, as far as the executors need it: to
// see which process groups live, and to find and end the processes of a dead worker. See proc(5).
//
// A process may end, and its number may serve another one, between any two calls. So a process that was
// not forked here is signalled by its Identity, never by its number.
package procfs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Tick is the unit of Identity.Ticks, in ns. USER_HZ is 100 on every architecture that Go runs on.
const Tick = 10_000_000

// Identity tells a process from every other one of this start of the machine. The zero Identity is
// always dead.
type Identity struct {
	PID   int    `json:"pid"`
	Ticks uint64 `json:"ticks"` // from boot to its start: field 22 of /proc/PID/stat
}

// Process is a process at the moment when /proc/PID/stat was read.
type Process struct {
	Identity
	Group, Session int
	Threads        int
	Dead           bool // a zombie without further threads, or about to vanish
}

// Read reads /proc/PID/stat. The error is ENOENT or ESRCH when the process is gone. Any other error does
// not prove its end.
func Read(pid int) (Process, error) { return read("/proc", strconv.Itoa(pid)) }

func read(dir, pid string) (Process, error) {
	path := dir + "/" + pid + "/stat"
	stat, err := os.ReadFile(path)
	if err != nil {
		return Process{}, err
	}
	p, ok := parseStat(stat)
	if !ok {
		return p, fmt.Errorf("%s: %q is not a process", path, stat)
	}
	return p, nil
}

// parseStat parses a line of the form
//
//	pid (name) state ppid pgrp session … num_threads itrealvalue starttime …
//
// The name may hold any byte, also brackets, so the fields are counted from the last bracket. A zombie
// with further threads is a living process whose first thread has ended.
func parseStat(stat []byte) (p Process, ok bool) {
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || end < open {
		return p, false
	}
	f := bytes.Fields(stat[end+1:])
	if len(f) < 20 {
		return p, false
	}
	var errs [5]error
	p.PID, errs[0] = strconv.Atoi(string(bytes.TrimSpace(stat[:open])))
	p.Group, errs[1] = strconv.Atoi(string(f[2]))
	p.Session, errs[2] = strconv.Atoi(string(f[3]))
	p.Threads, errs[3] = strconv.Atoi(string(f[17]))
	p.Ticks, errs[4] = strconv.ParseUint(string(f[19]), 10, 64)
	p.Dead = f[0][0] == 'X' || f[0][0] == 'x' || f[0][0] == 'Z' && p.Threads <= 1
	return p, errors.Join(errs[:]...) == nil
}

// List lists all processes under dir, which is /proc, or a folder of the same form in tests. It opens a
// file for each process of the machine.
//
// Processes that end while it reads are left out. So are those of other users whose files this user may
// not read (isHidden). Any other error, such as EMFILE, is returned instead of a list that lacks
// processes, since callers take a process for dead that the list lacks.
func List(dir string) (list []Process, err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if name[0] < '1' || name[0] > '9' {
			continue
		}
		p, err := read(dir, name)
		switch {
		case err == nil:
			list = append(list, p)
		case !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ESRCH) && !isHidden(err):
			return nil, err
		}
	}
	return list, nil
}

// isHidden tells whether a file of a process could not be read because the process is another user's.
// The error is EPERM under hidepid=1 (proc(5)), and EACCES under a security module.
func isHidden(err error) bool { return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) }

// isShortage tells whether a file could not be read because this process or the machine is short of
// descriptors or memory. The process whose file it is may live or be gone.
func isShortage(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOMEM)
}

// execPatience bounds how long Environment waits for the end of an exec, whose file system may hang.
const execPatience = time.Second

// Environment returns the environment with which the process executed its program, as entries K=V that
// end with a NUL each. Before its exec a child of vfork has its parent's. It is nil when the process is
// gone, or does not let this user read it. The error is EMFILE, ENFILE or ENOMEM: the process may have
// any environment, and a later call may succeed.
//
// Amid an exec the file is empty for a moment: the former environment is gone, and the new one is not there
// yet. A caller would take the process for another one, so the call waits for the end of that moment.
func (i Identity) Environment() ([]byte, error) {
	dir := "/proc/" + strconv.Itoa(i.PID)
	for began := time.Now(); ; {
		b, err := os.ReadFile(dir + "/environ")
		if isShortage(err) {
			return nil, err
		}
		if err != nil || len(b) > 0 || time.Since(began) > execPatience {
			return b, nil
		}
		stat, err := os.ReadFile(dir + "/stat")
		if isShortage(err) {
			return nil, err
		}
		if err != nil || hasNoEnvironment(stat) {
			return nil, nil
		}
		time.Sleep(100 * time.Microsecond)
	}
}

// hasNoEnvironment tells from a line of /proc/PID/stat whether the environment of a process is empty: a zombie and
// a thread of the kernel lack memory, and a program may be started with an empty one. Amid its exec a process has
// memory, and the kernel has not noted yet where the environment is. A line that lacks these fields, 23 (vsize),
// 50 (env_start) and 51 (env_end), does not tell one from the other.
func hasNoEnvironment(stat []byte) bool {
	f := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(f) < 49 {
		return true
	}
	field := func(n int) string { return string(f[n-3]) } // the first one is field 3
	return field(23) == "0" || field(51) != "0" && field(50) == field(51)
}

// IsAlive reports whether the process lives. It is false for the zero Identity, and true when a shortage
// of descriptors or memory keeps it from knowing: callers act on the end of a process.
func (i Identity) IsAlive() bool {
	if i.PID == 0 {
		return false
	}
	p, err := Read(i.PID)
	return err == nil && !p.Dead && p.Ticks == i.Ticks || isShortage(err)
}

// Signal sends a signal to the process. Another process that has its number does not get it: a pidfd
// pins the number before the identity is checked. An error is not reported, since the next look at the
// process shows what became of it.
func (i Identity) Signal(sig unix.Signal) {
	fd, err := unix.PidfdOpen(i.PID, 0)
	if err == nil {
		defer unix.Close(fd)
	} else if err != unix.ENOSYS { // Linux before 5.3 has no pidfds
		return
	}
	if now, readErr := Read(i.PID); readErr != nil || now.Ticks != i.Ticks {
		return
	}
	if err != nil {
		_ = unix.Kill(i.PID, sig)
	} else {
		_ = unix.PidfdSendSignal(fd, sig, nil, 0)
	}
}

// BootID returns the kernel's ID of this start of the machine.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}
