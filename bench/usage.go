package main

import (
	"bytes"
	"fmt"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/internal/testenv"
)

// resourceCost is the processor time of a process, user and system, and its number of context
// switches, voluntary (it waited) and involuntary (it was preempted). Unlike the time, the number of
// switches does not depend on the speed of the machine.
type resourceCost struct {
	cpu      time.Duration // from /proc in steps of 10 ms, from wait4 in microseconds
	switches int64
}

func (c resourceCost) plus(d resourceCost) resourceCost {
	return resourceCost{c.cpu + d.cpu, c.switches + d.switches}
}
func (c resourceCost) minus(d resourceCost) resourceCost {
	return resourceCost{c.cpu - d.cpu, c.switches - d.switches}
}

// serverUsage is what a server, its workers and their ended tasks have used so far.
type serverUsage struct {
	server, worker resourceCost
	children       time.Duration // CPU of the ended tasks
	written        int64         // bytes to the disk, by the server alone
	journal        float64       // bytes of keys and values given to its store
}

// totalCPU is the processor time of all of them.
func (u serverUsage) totalCPU() time.Duration { return u.server.cpu + u.worker.cpu + u.children }

// measureUsage reads the present counters of a server and its workers. They only grow, so a period is
// measured as the difference of two readings. Tasks that still run are not included. Processor time is
// read before /metrics, so one scrape of /metrics is part of each period.
//
// The kernel counts written bytes when a page becomes dirty (write_bytes in proc_pid_io(5)). A page that
// is dirtied again after its sync counts again, as the disk writes it again. Files on a tmpfs do not
// count.
func (e *benchEnv) measureUsage(s *testenv.Server) (u serverUsage, err error) {
	for _, pid := range testenv.Workers(s.Config().Data) {
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

// costOf returns what a process itself has used so far, and the CPU of its ended children. An ended
// process can be measured until it is waited for. Children count once their parent has waited for them
// (proc_pid_stat(5), cutime), with the children that they have waited for.
func costOf(pid int) (own resourceCost, children time.Duration, err error) {
	if own.cpu, children, err = testenv.CPU(pid); err != nil {
		return own, 0, err
	}
	own.switches, err = testenv.ContextSwitches(pid)
	return own, children, err
}

// rusageCost converts what the kernel reports for a process, including the children that the process
// has waited for.
func rusageCost(u *syscall.Rusage) resourceCost {
	return resourceCost{time.Duration(u.Utime.Nano() + u.Stime.Nano()), u.Nvcsw + u.Nivcsw}
}

// commandUsage is what a command used.
type commandUsage struct {
	wall     time.Duration // from before its start to its end
	own      resourceCost  // of the process itself
	children resourceCost  // of the children that it has waited for
}

// runTimed runs a command to its end and measures it. Its output is kept for the error alone. A command
// that fails is an error: its time would not be that of the work.
func runTimed(cmd *exec.Cmd) (s commandUsage, err error) {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return s, fmt.Errorf("%s: %w", cmd.Args[0], err)
	}
	// The usage of the process alone is available only until it is waited for. What Wait returns is
	// the sum of the process and its children (wait4(2)), so the children are the difference.
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
	s.children = rusageCost(cmd.ProcessState.SysUsage().(*syscall.Rusage)).minus(s.own)
	return s, nil
}

// awaitEnd returns when a child has ended, and leaves it to be waited for.
func awaitEnd(pid int) error {
	for {
		if err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != unix.EINTR {
			return err
		}
	}
}

// withOrphans runs f while orphaned processes become children of this process. The worker of a killed
// server becomes one, and endWorker waits for it. An orphan that is not waited for stays a zombie until
// this process ends.
func withOrphans(f func() error) error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("inherit orphaned processes: %w", err)
	}
	defer func() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) }()
	return f()
}

// endWorker ends a server and its worker and returns the context switches of the worker's children.
// The kernel reports them only to the parent that waits for the worker: after the end of the server
// this is this process (withOrphans).
func (e *benchEnv) endWorker(s *testenv.Server) (switches int64, err error) {
	pids := testenv.Workers(s.Config().Data)
	if len(pids) != 1 {
		return 0, fmt.Errorf("%d workers, want 1", len(pids))
	}
	s.Kill() // a clean stop would end the worker, and might wait for it
	// The worker's own switches must be read while it lives: they are a part of what wait4 reports.
	own, err := testenv.ContextSwitches(pids[0])
	if err == nil {
		err = testenv.EndWorkers(s.Config().Data, 30*time.Second)
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
	return rusageCost(&used).switches - own, nil
}
