package executor

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/internal/vfork"
	"github.com/caravan-dag/caravan/messages"
)

// errEndedFirst is the error of a start that was given up because the attempt is being ended.
var errEndedFirst = errors.New("it was ended before it began")

// A program may be open for writing because another process has just written it. Its start is tried
// again this often, after a pause that doubles: 310 ms in all.
const (
	busyTries = 5
	busyFirst = 10 * time.Millisecond
)

// startSpec returns the attempt's command in the form of vfork; files are its stdout and stderr. If
// the spec's last file is a script, the caller closes it by closeScript once the child exists: the
// child has its own copy. The error, of the script's file in memory, may postpone the start.
func (p *Process) startSpec(a *attempt, files [2]int) (spec vfork.Spec, err error) {
	c := &a.command
	spec = vfork.Spec{
		Path: c.path, SearchPath: c.searchPath, Argv: c.argv, Env: c.env, Dir: c.dir,
		Files: append(make([]int, 0, scriptFD+1), int(p.devNull.Fd()), files[0], files[1]), CgroupFD: -1,
	}
	if a.cgroup != nil {
		spec.CgroupFD = int(a.cgroup.dir.Fd())
	}
	if c.scriptText != "" {
		script, err := newScriptFile(c.scriptText)
		if err != nil {
			return spec, err
		}
		spec.Files = append(spec.Files, script)
	}
	return spec, nil
}

func closeScript(spec *vfork.Spec) {
	if len(spec.Files) > scriptFD {
		unix.Close(spec.Files[scriptFD])
	}
}

// errHelperStarts is the error of a launch that a helper continues.
var errHelperStarts = errors.New("a helper starts it")

// launchAttempt starts an attempt whose intent is written, and does not wait for its exec. It gives
// starts that may take long to a helper and returns errHelperStarts; the attempt then belongs to the
// helper. Any other error postpones the start. An error of another kind, for instance of a kernel
// without clone3, is not decided here: the helper tries again by the blocking way, whose error is
// final. Only the loop calls it.
func (p *Process) launchAttempt(a *attempt) error {
	if p.cgroups.enforcesMemory(a.order.MemoryBytes) {
		go p.startBlocking(a)
		return errHelperStarts
	}
	if !a.cgroupChosen {
		if a.cgroup, a.cgroupChosen = p.cgroups.acquireFree(); !a.cgroupChosen {
			go p.makeCgroup(a)
			return errHelperStarts
		}
	}
	spec, err := p.startSpec(a, [2]int{a.stdout.fd, a.stderr.fd})
	if err == nil {
		a.launch, err = p.starter.Launch(&spec)
		closeScript(&spec)
	}
	if err == nil {
		a.pidfd = a.launch.PIDFD
		a.cgroup.startAccepted()
		return nil
	}
	if _, lacks := postponeReason(err); lacks {
		return err
	}
	go p.startBlocking(a)
	return errHelperStarts
}

// makeCgroup makes a control group for an attempt, which the loop then launches. A helper calls it.
func (p *Process) makeCgroup(a *attempt) {
	a.cgroup, _ = p.cgroups.acquire(0) // cannot fail without a limit
	a.cgroupChosen = true
	p.relaunch(a)
}

// relaunch has the loop launch an attempt whose intent is written. It goes before the admitted ones:
// startAll expects attempts without a need for an intent first. The attempt belongs to the loop from
// here on.
func (p *Process) relaunch(a *attempt) {
	p.mu.Lock()
	p.admitted = slices.Insert(p.admitted, 0, a)
	p.wakeLoop()
	p.mu.Unlock()
}

// startBlocking starts an attempt and waits for its exec. A helper calls it.
func (p *Process) startBlocking(a *attempt) {
	if err := p.startAndAwaitExec(a); err != nil {
		p.startFailed(a, err)
		return
	}
	a.startDelay = time.Duration(max(p.cfg.Now()-a.runnableSince, 0))
	p.cfg.Sink(p.reportStarted(nil, a)...)
	p.monitor.add(a)
	p.mu.Lock()
	p.watchExit(a)
	p.mu.Unlock()
}

// startAndAwaitExec starts the attempt's process and returns once its exec is over. With a memory
// limit the attempt prints into pipes.
func (p *Process) startAndAwaitExec(a *attempt) (e error) {
	c, limit := &a.command, a.order.MemoryBytes
	if !a.cgroupChosen {
		if a.cgroup, e = p.cgroups.acquire(limit); e != nil {
			return e
		}
		a.cgroupChosen = true
	}
	files := [2]int{a.stdout.fd, a.stderr.fd}
	if a.cgroup.hasMemoryLimit() {
		if a.pumps, files, e = newPumps(a.stdout, a.stderr); e != nil {
			return e
		}
		defer unix.Close(files[0])
		defer unix.Close(files[1])
	}
	pid, e := p.forkCommand(a, files)
	if group := a.cgroup; group != nil && group.memoryLimit == 0 && refusedByCgroup(e) {
		refused := e
		a.cgroup = nil
		if p.isEnding(a) {
			e = errEndedFirst
		} else if pid, e = p.forkCommand(a, files); e == nil {
			p.cgroups.suspend(refused)
		}
		p.cgroups.discard(group)
	}
	if a.cgroup.hasMemoryLimit() && errors.Is(e, unix.E2BIG) && c.startBytes() < maxStartBytes() {
		e = &memoryLimitError{limit, fmt.Errorf("its arguments and environment have %d bytes and do not fit: %w", c.startBytes(), e)}
	}
	if a.cgroup.hasMemoryLimit() && refusedByCgroup(e) {
		e = &memoryLimitError{limit, fmt.Errorf("a start in its control group is refused: %w", e)}
	}
	if e != nil {
		a.pumps.close()
		a.pumps = nil
		return e
	}
	a.cgroup.startAccepted()
	if a.pumps != nil {
		a.pumps.start(&p.pumpBuffers)
	}
	p.mu.Lock()
	a.pid = pid
	p.mu.Unlock()
	return nil
}

// forkCommand starts the command with its output on the two files, and waits for its exec.
func (p *Process) forkCommand(a *attempt, files [2]int) (pid int, e error) {
	spec, e := p.startSpec(a, files)
	if e != nil {
		return 0, e
	}
	defer closeScript(&spec)
	spec.Pending = &a.pendingChild
	e = a.cgroup.runInGroup(func() (e error) {
		pid, a.pidfd, e = p.starter.Start(&spec)
		return e
	})
	return pid, e
}

// newScriptFile returns a file in memory with a text for a shell. The shell first closes the file's
// descriptor, so that the text's own children do not inherit it. Line numbers stay the same.
func newScriptFile(text string) (fd int, err error) {
	fd, err = unix.MemfdCreate("caravan-script", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, err
	}
	s := stream{fd: fd}
	if !s.write([]byte("exec " + strconv.Itoa(scriptFD) + "<&-; " + text)) {
		err = unix.ENOMEM
	} else {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// refusedByCgroup tells whether a start failed because it was to be in a control group.
func refusedByCgroup(err error) bool {
	return slices.ContainsFunc([]error{unix.ENOSYS, unix.EOPNOTSUPP, unix.EBUSY, unix.ENODEV, unix.EPERM, unix.EINVAL},
		func(e error) bool { return errors.Is(err, e) })
}

// prepareStart does the part of a start that may come before its intent is written. It returns the
// final report when the attempt can never start, or what was lacking when it may start later.
func (p *Process) prepareStart(a *attempt) (_ *Report, lacking error) {
	var err error
	if a.command, err = newCommand(p.baseEnv, &a.order); err != nil {
		return p.notStartedReport(&a.order, messages.AttemptNotStarted, err), nil
	}
	if p.cfg.AttemptMark != nil {
		a.command.env = setVariable(a.command.env, p.cfg.AttemptMark(a.order.Key))
	}
	if a.stdout, err = newStream(p.cfg.StdoutLimit(a.order.Capture)); err == nil {
		if a.stderr, err = newStream(p.cfg.MaxOutput); err != nil {
			a.stdout.release()
			a.stdout = nil // an attempt has both streams or none
		}
	}
	if err != nil {
		err = fmt.Errorf("output: %w", err)
		if _, ok := postponeReason(err); ok {
			return nil, err
		}
		return p.notStartedReport(&a.order, messages.AttemptLost, fmt.Errorf("start %q: %w", a.command.argv[0], err)), nil
	}
	return nil, nil
}

// reapUnexecuted continues with an attempt whose launched child did not execute its program. It reaps
// the child first: no process of the attempt is left when its start is tried again, postponed or
// reported as failed. A helper calls it.
func (p *Process) reapUnexecuted(a *attempt) {
	_ = vfork.WaitForChild(a.launch.PID) // an error: somebody else has reaped it
	errno := a.execErrno
	a.execErrno = 0
	p.startFailed(a, errno)
}

// watchExit has the loop wait for the leader's exit. Without a pidfd, or room to watch it, the loop
// checks now and then. p.mu is held.
func (p *Process) watchExit(a *attempt) {
	if a.pidfd >= 0 {
		p.leadersByPID[int32(a.pid)] = a
		event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT, Fd: int32(a.pid)}
		if unix.EpollCtl(p.epollFD, unix.EPOLL_CTL_ADD, a.pidfd, &event) == nil {
			return
		}
		delete(p.leadersByPID, int32(a.pid))
		unix.Close(a.pidfd)
		a.pidfd = -1
	}
	p.polledLeaders = append(p.polledLeaders, a)
	p.wakeLoop()
}

// reportStarted says that the attempts have executed their programs, and appends their reports. The
// phase changes before OnStarted and the report, so that a SIGKILL in between also reaches the control
// group. p.mu is not held in OnStarted, which may take a lock of its own.
func (p *Process) reportStarted(reports []Report, list ...*attempt) []Report {
	p.mu.Lock()
	for _, a := range list {
		if a.phase == phaseStarting {
			a.phase = phaseRunning
			if !a.exitedFirst {
				p.deliverPendingSignals(a)
			}
		}
		p.stats.Starts++
		p.endStart(a)
		p.startSucceeded()
		a.command = command{}
	}
	p.mu.Unlock()
	for _, a := range list {
		if p.cfg.OnStarted != nil {
			p.cfg.OnStarted(&a.order, a.pid)
		}
		reports = append(reports, Report{Key: a.order.Key, Kind: Started, At: a.startedAt, GrantedAt: a.order.GrantedAt, StartDelay: a.startDelay})
	}
	return reports
}

// startFailed handles a failed start: the attempt goes back to the queue or ends. That may take
// long, so a helper calls it. No process of the attempt exists any more.
//
// In this sequence: a program that is open for writing is tried again soon, with its slots and its
// intent. A start that the machine is short for is postponed, even when it is being ended: postpone
// then revokes it. A kill that came before any fork revokes the order. Everything else is an end of the
// attempt, with the cause that the executor had for ending it or an explanation of the error.
func (p *Process) startFailed(a *attempt, err error) {
	if err == unix.ETXTBSY && a.textBusyTries < busyTries && !p.isEnding(a) {
		a.textBusyTries++
		time.AfterFunc(busyFirst<<(a.textBusyTries-1), func() { p.relaunch(a) })
		return
	}
	_, lacks := postponeReason(err)
	p.mu.Lock()
	why := p.resetFailedStart(a, lacks)
	p.mu.Unlock()
	named := fmt.Errorf("start %q: %w", a.command.argv[0], err)
	if lacks {
		p.endUnstarted(a, nil, named)
		return
	}
	if err == errEndedFirst && why == causeKill {
		p.endUnstarted(a, p.withdrawStart(a), nil)
		return
	}
	result, reason := messages.AttemptNotStarted, named
	_, unlimited := errors.AsType[*memoryLimitError](err)
	switch {
	case why == causeKill || why == causeClose || err == errEndedFirst:
		var text string
		result, text = why.result(a.order.Timeout)
		reason = errors.New(text)
	case !unlimited:
		reason = p.explain(a, &a.command, err)
	}
	if why == causeTimeout && err != errEndedFirst { // it was being ended, and then failed by itself
		_, text := why.result(a.order.Timeout)
		reason = fmt.Errorf("%w; before that, it had %s", reason, text)
	}
	p.endUnstarted(a, p.notStartedReport(&a.order, result, reason), nil)
}

// withdrawStart takes back the start of an attempt that was killed after it was admitted, and returns
// its final report: a killed order that has not started is revoked (Executor.Kill). The caller knows
// that no process exists, since errEndedFirst comes from before a fork or after a refused one.
//
// The intent is withdrawn, and the key forgotten, while the attempt is still in the table. So an order
// of the same key is ignored until the report is made, and after it neither the
// key makes a new order look like a repetition, nor the intent makes a crash lose an attempt.
func (p *Process) withdrawStart(a *attempt) *Report {
	if p.cfg.WithdrawIntent != nil {
		p.cfg.WithdrawIntent(&a.order)
	}
	p.mu.Lock()
	p.startedKeys.Remove(a.order.Key)
	p.mu.Unlock()
	return &Report{Key: a.order.Key, Kind: Revoked, At: p.cfg.Now()}
}

// endUnstarted reports the end of an attempt without a process. If something was lacking, the
// attempt goes back to the queue instead.
func (p *Process) endUnstarted(a *attempt, r *Report, lacking error) {
	if a.stdout != nil {
		a.stdout.release()
		a.stderr.release()
		a.stdout, a.stderr = nil, nil
	}
	if a.cgroup != nil {
		p.cgroups.release(a.cgroup)
	}
	a.cgroup, a.cgroupChosen, a.textBusyTries = nil, false, 0
	if lacking != nil {
		if r = p.postpone(a, lacking); r == nil {
			return
		}
	}
	p.mu.Lock()
	p.releaseSlots(a, r.At)
	p.mu.Unlock()
	p.reportFinal(*r)
	p.releaseAttempt(a)
}

func (p *Process) notStartedReport(o *Order, result messages.AttemptResult, reason error) *Report {
	r := o.NotStartedReport(p.cfg.Now(), result, reason.Error())
	r.Record.Node = p.cfg.Node
	return &r
}
