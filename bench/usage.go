package main

import (
	"bytes"
	"fmt"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/internal/servertest"
)

// cost is what a process has used: processor time, user and system, and context switches,
// voluntary (it waited) and involuntary (it had to make room). Unlike the time, the number of
// switches does not depend on the speed of the machine.
type cost struct {
	cpu      time.Duration
	switches int64
}

func (c cost) plus(d cost) cost  { return cost{c.cpu + d.cpu, c.switches + d.switches} }
func (c cost) minus(d cost) cost { return cost{c.cpu - d.cpu, c.switches - d.switches} }

// usage is what a server, its workers and their ended tasks have used so far.
type usage struct {
	server, worker cost
	children       time.Duration // CPU of the tasks that have ended
	written        int64         // to the disk, by the server alone
	journal        float64       // bytes given to its store
}

// cpu is the processor time of all of them.
func (u usage) cpu() time.Duration { return u.server.cpu + u.worker.cpu + u.children }

func (e *env) usage(s *servertest.Server) (u usage, err error) {
	for _, pid := range servertest.Workers(s.Config().Data) {
		own, children, err := costOf(pid)
		if err != nil {
			return u, err
		}
		u.worker = u.worker.plus(own)
		u.children += children
	}
	own, children, err := costOf(s.PID())
	if err != nil {
		return u, err
	}
	u.server, u.children = own, u.children+children
	if u.written, err = s.Written(); err != nil {
		return u, err
	}
	u.journal, err = s.Metric("caravan_journal_bytes_total")
	return u, err
}

// costOf is what a process itself has used so far, and the CPU of its ended children. A process
// that has ended counts until it is waited for.
func costOf(pid int) (own cost, children time.Duration, err error) {
	if own.cpu, children, err = servertest.CPU(pid); err != nil {
		return own, 0, err
	}
	own.switches, err = servertest.ContextSwitches(pid)
	return own, children, err
}

// ofRusage is what the kernel says of a process that was waited for, with all that it has waited
// for itself.
func ofRusage(u *syscall.Rusage) cost {
	return cost{time.Duration(u.Utime.Nano() + u.Stime.Nano()), u.Nvcsw + u.Nivcsw}
}

// spent is what a command took.
type spent struct {
	wall     time.Duration
	own      cost // of the process itself
	children cost // of all that it has waited for
}

// timed runs a command to its end and measures it.
func timed(cmd *exec.Cmd) (s spent, err error) {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return s, fmt.Errorf("%s: %w", cmd.Args[0], err)
	}
	// Its own part is known only until it is waited for.
	err = awaitEnd(cmd.Process.Pid)
	s.wall = time.Since(begin)
	if err == nil {
		s.own, _, err = costOf(cmd.Process.Pid)
	}
	if waitErr := cmd.Wait(); waitErr != nil {
		return s, fmt.Errorf("%s: %w\n%.2000s", cmd.Args[0], waitErr, out.String())
	}
	if err != nil {
		return s, fmt.Errorf("%s: %w", cmd.Args[0], err)
	}
	s.children = ofRusage(cmd.ProcessState.SysUsage().(*syscall.Rusage)).minus(s.own)
	return s, nil
}

// awaitEnd returns when a child has ended, which stays to be waited for.
func awaitEnd(pid int) error {
	for {
		if err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != unix.EINTR {
			return err
		}
	}
}

// withOrphans runs f while processes whose parent has ended become children of this one.
func withOrphans(f func() error) error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("inherit orphaned processes: %w", err)
	}
	defer func() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) }()
	return f()
}

// endWorker ends a server and its worker and returns how many context switches the worker's
// children had, which the kernel tells the worker's parent alone, when it waits: after the
// server's end that is this process (withOrphans).
func (e *env) endWorker(s *servertest.Server) (switches int64, err error) {
	pids := servertest.Workers(s.Config().Data)
	if len(pids) != 1 {
		return 0, fmt.Errorf("%d workers, want 1", len(pids))
	}
	s.Kill() // a server that stops ends its worker, and may wait for it
	own, err := servertest.ContextSwitches(pids[0])
	if err == nil {
		err = servertest.EndWorkers(s.Config().Data, 30*time.Second)
	}
	if err != nil {
		return 0, err
	}
	var used syscall.Rusage
	for err = syscall.EINTR; err == syscall.EINTR; {
		_, err = syscall.Wait4(pids[0], nil, 0, &used)
	}
	if err != nil {
		return 0, fmt.Errorf("wait for worker %d: %w", pids[0], err)
	}
	return ofRusage(&used).switches - own, nil
}
