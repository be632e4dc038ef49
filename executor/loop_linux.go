package executor

import (
	"fmt"
	"runtime"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/messages"
)

// turn is the loop's work between two waits.
type turn struct {
	events    [256]unix.EpollEvent
	admitted  []*attempt    // to be started
	ready     []*attempt    // those of admitted whose intents are written
	orders    []*Order      // whose intents are to be written
	lacking   []failedStart // are to be postponed
	starting  []*attempt    // may not have executed their program yet
	confirmed []*attempt    // have executed their program
	ended     []*attempt    // their leader has exited
	reports   []Report      // of this turn
	helpers   []func()      // goroutines that continue with attempts once reports are made
	recheck   time.Duration // when starting is checked again
	pollFirst bool          // check events without a wait before this turn admits more
}

// failedStart is a start that failed because something is short.
type failedStart struct {
	attempt *attempt
	err     error // see postponeReason
}

const (
	// The pause until a starting or polled attempt is checked again doubles from the first to the
	// last value. An exit, or another start, causes an earlier check.
	recheckFirst = 4 * time.Millisecond
	recheckLast  = 64 * time.Millisecond
	// startsPerTurn bounds how long exits wait for starts.
	startsPerTurn = 32
)

// loop handles all attempts from start to end. See the package doc.
//
// Helpers begin after the sink has the reports of the turn: a helper reports the end of its attempt by
// itself, and that attempt's Started may be among these reports (rule 3 of the package doc).
func (p *Process) loop() {
	defer close(p.loopEnded)
	t := &turn{recheck: recheckFirst}
	for p.waitForWork(t) {
		p.confirmExecs(t)
		p.reportEnds(t)
		if len(t.reports) > 0 {
			p.cfg.Sink(t.reports...)
			t.reports = nil // the sink keeps the slice
		}
		for _, help := range t.helpers {
			go help()
		}
		t.helpers = t.helpers[:0]
		p.startAll(t)
		p.releaseEnded(t)
	}
	unix.Close(p.epollFD)
	unix.Close(p.wakeFD)
}

// waitForWork returns once the turn has work. It returns false when the Process is closed.
//
// It fills t.admitted and t.ended. It takes at most startsPerTurn attempts, and looks for events
// without waiting before it takes more. So exits are handled, and their slots free, between two turns
// that start attempts, however many orders come.
func (p *Process) waitForWork(t *turn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for waited := false; ; waited = true {
		if waited || !t.pollFirst {
			n := min(len(p.admitted), startsPerTurn)
			t.admitted = append(t.admitted[:0], p.admitted[:n]...)
			p.admitted = append(p.admitted[:0], p.admitted[n:]...)
			t.pollFirst = len(p.admitted) > 0 || n > 0 && !waited // so that a flood of orders does not hide exits
			switch {
			case len(t.admitted)+len(t.ended) > 0 || waited && len(t.starting) > 0:
				return true
			case p.stopping:
				return false
			}
		}
		timeout := p.waitTimeout(t)
		p.loopWaiting = true
		p.mu.Unlock()
		n := p.pollEvents(t, timeout)
		p.mu.Lock()
		p.loopWaiting = false
		for _, event := range t.events[:n] {
			if event.Fd == 0 { // wakeFD
				var count [8]byte
				_, _ = unix.Read(p.wakeFD, count[:]) // an error: it was read already
			} else if a := p.leadersByPID[event.Fd]; a != nil {
				p.handleExit(t, a)
			}
		}
		polled := p.polledLeaders
		p.polledLeaders = nil
		for _, a := range polled {
			p.handleExit(t, a)
		}
	}
}

// waitTimeout returns how long the loop may wait, in ms; -1 means without end. p.mu is held.
func (p *Process) waitTimeout(t *turn) int {
	switch {
	case t.pollFirst:
		return 0
	case len(t.starting)+len(p.polledLeaders) == 0:
		return -1
	}
	wait := t.recheck
	t.recheck = min(2*wait, recheckLast)
	return int(wait / time.Millisecond)
}

// keepProcessorMillis is how long the loop keeps its Go processor while it waits. To give it up and
// get it back costs more than the wait itself, because that wakes the scheduler's monitor thread and
// sends other threads looking for work. The scheduler interrupts such a wait by a signal. So a
// garbage collection waits for it only where these signals are switched off (asyncpreemptoff), and
// then for this long.
const keepProcessorMillis = 10

// pollEvents waits for events for so many ms, and returns how many there are.
func (p *Process) pollEvents(t *turn, timeout int) int {
	if p.keepsProcessor {
		first := keepProcessorMillis
		if timeout >= 0 {
			first = min(first, timeout)
		}
		n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.epollFD), uintptr(unsafe.Pointer(&t.events[0])),
			uintptr(len(t.events)), uintptr(first), 0, 0)
		switch {
		case errno == unix.EINTR:
			runtime.Gosched() // the scheduler wants the processor
			return 0
		case errno != 0:
			panic(fmt.Sprintf("executor: epoll_pwait: %v", errno))
		case n > 0 || first == timeout:
			return int(n)
		}
		if timeout > 0 {
			timeout -= first
		}
	}
	n, err := unix.EpollWait(p.epollFD, t.events[:], timeout)
	if err != nil && err != unix.EINTR {
		panic(fmt.Sprintf("executor: epoll_wait: %v", err))
	}
	return max(n, 0)
}

// handleExit handles the leader's exit, if it has exited. p.mu is held.
//
// A pidfd also becomes readable when a child ends before its exec. The kernel has cleared the word of
// the launch by then, so ExecDone tells whether this is the end of the task or of a failed start. A
// failed start keeps its slots and has not been reported: its helper reaps the child, and then
// postpones the start or reports the failure. The slots of a task that ended by itself are free from
// here on, before its final report; those of a task that is being ended stay in use until its group is
// dead (waitGroupExit).
func (p *Process) handleExit(t *turn, a *attempt) {
	if a.pidfd >= 0 {
		delete(p.leadersByPID, int32(a.pid))
		unix.Close(a.pidfd)
		a.pidfd = -1
	}
	if _, errno := a.launch.ExecDone(); errno != 0 {
		a.execErrno = errno
	}
	if a.exitedFirst && a.execErrno == 0 {
		a.cause, a.exitedFirst = causeNone, false // it ended by itself, so the cause does not count
	}
	switch {
	case a.execErrno != 0:
		a.pid = 0 // the helper that continues with the attempt reaps the child
	case !p.leaderExited(a):
		p.polledLeaders = append(p.polledLeaders, a) // a debugger holds it, or it runs
		return
	case a.phase == phaseReaped:
		a.endedAt = max(p.cfg.Now(), a.startedAt) // the wall clock may have been set back
		p.releaseSlots(a, a.endedAt)
	}
	t.ended = append(t.ended, a)
}

// confirmExecs reports the attempts that have executed their program. Attempts that failed to, or
// that are being killed, go to helpers.
func (p *Process) confirmExecs(t *turn) {
	t.starting = slices.DeleteFunc(t.starting, func(a *attempt) (over bool) {
		over, errno := a.launch.ExecDone()
		switch {
		case errno != 0:
			a.execErrno = errno // its exit comes as an event
		case over && a.execErrno == 0:
			t.confirmed = append(t.confirmed, a)
		}
		return over
	})
	if len(t.confirmed) > 0 {
		t.reports = p.reportStarted(t.reports, t.confirmed...)
	}
	for _, a := range t.confirmed {
		if a.phase == phaseRunning { // else it has exited, too
			p.monitor.add(a)
		}
	}
	clear(t.confirmed)
	t.confirmed = t.confirmed[:0]
	t.ended = slices.DeleteFunc(t.ended, func(a *attempt) bool {
		switch {
		case a.execErrno != 0:
			t.helpers = append(t.helpers, func() { p.reapUnexecuted(a) })
		case a.phase == phaseExited:
			t.helpers = append(t.helpers, func() { p.waitGroupExit(a) })
		default:
			return false
		}
		return true
	})
}

// reportEnds makes the final reports. It comes before startAll, so that the ends are in the journal
// with the intents of the next starts, and a crash loses no more attempts than there are slots.
func (p *Process) reportEnds(t *turn) {
	from := len(t.reports)
	t.ended = slices.DeleteFunc(t.ended, func(a *attempt) (long bool) {
		if long = p.endTakesLong(a); long {
			t.helpers = append(t.helpers, func() { p.finishAttempt(a) })
			return long
		}
		p.freezeOutput(a)
		t.reports = append(t.reports, p.finalReport(a))
		return long
	})
	if len(t.ended) > 0 {
		p.removeReported(t.reports[from:]...)
	}
}

// freezeOutput ends the attempt's output.
func (p *Process) freezeOutput(a *attempt) {
	p.monitor.remove(a)
	a.pumps.stop()
	a.stdout.freeze()
	a.stderr.freeze()
}

// finalReport says what became of an attempt, and keeps its output.
func (p *Process) finalReport(a *attempt) Report {
	report := Report{Key: a.order.Key, Kind: Finished, At: a.endedAt, GrantedAt: a.order.GrantedAt}
	rec := &report.Record
	*rec = messages.AttemptRecord{
		Task: a.order.Key.Task, Attempt: a.order.Key.Attempt, Start: a.startedAt, Stop: a.endedAt, Node: p.cfg.Node,
		MaxRSSKB:  p.peakMemoryKB(a),
		UserCPU:   time.Duration(a.usage.Utime.Nano()),
		SystemCPU: time.Duration(a.usage.Stime.Nano()),
	}
	rec.Result, rec.RC, rec.ExecutorLog = a.result()
	rec.ExecutorLog = JoinTexts(rec.ExecutorLog, a.cgroup.oomMessage())
	p.cfg.KeepOutput(&report, a.stdout, a.stderr)
	if a.order.Capture {
		p.cfg.CaptureStdout(&report, a.stdout)
	}
	return report
}

// removeReported takes attempts out of the table. These are their final reports.
func (p *Process) removeReported(reports ...Report) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range reports {
		delete(p.attempts, reports[i].Key)
		if reports[i].Record.RC == -1 {
			p.stats.NotStarted++
		}
	}
	p.admitQueued(0) // only now may other attempts take their place among those that run at once
}

// startAll starts the admitted attempts, once their intents are written. Those that lack something
// go back to the queue at the end (postponeAll).
//
// No process is forked before its intent is written, and p.mu is not held while intents are written or
// processes forked. A kill may come in between. Before beginStart it gives the attempt a cause, and
// nothing is forked. From beginStart until the pid is known it cannot signal the child, so
// deliverPendingSignals sends what is due together with the assignment of the pid, under one lock.
func (p *Process) startAll(t *turn) {
	t.ready, t.orders = t.ready[:0], t.orders[:0]
	for _, a := range t.admitted {
		if a.phase == phaseStarting { // relaunched, so it precedes the others and its intent is written
			t.ready = append(t.ready, a)
			continue
		}
		failed, lacking := p.prepareStart(a)
		switch {
		case failed != nil:
			p.endUnstarted(a, failed, nil)
		case lacking != nil:
			t.lacking = append(t.lacking, failedStart{a, lacking})
		default:
			t.ready = append(t.ready, a)
			t.orders = append(t.orders, &a.order)
		}
	}
	if len(t.orders) > 0 && p.cfg.RecordIntents != nil {
		if err := p.cfg.RecordIntents(t.orders); err != nil {
			again := len(t.ready) - len(t.orders)
			for _, a := range t.ready[again:] {
				t.lacking = append(t.lacking, failedStart{a, &postponeError{"journal", err}})
			}
			t.ready = t.ready[:again]
		}
	}
	p.mu.Lock()
	t.ready = slices.DeleteFunc(t.ready, p.beginStart)
	p.mu.Unlock()
	began := len(t.starting)
	for _, a := range t.ready {
		switch err := p.launchAttempt(a); err {
		case nil:
			a.startDelay = time.Duration(max(p.cfg.Now()-a.runnableSince, 0))
			t.starting = append(t.starting, a)
		case errHelperStarts:
		default:
			t.lacking = append(t.lacking, failedStart{a, err})
		}
	}
	p.mu.Lock()
	for _, a := range t.starting[began:] {
		a.pid = a.launch.PID
		p.deliverPendingSignals(a)
		p.watchExit(a)
	}
	p.mu.Unlock()
	if len(t.starting) > began {
		t.recheck = recheckFirst
	}
	if len(t.lacking) > 0 {
		p.postponeAll(t)
	}
	clear(t.ready)
	clear(t.admitted)
	clear(t.orders)
}

// postponeAll puts the attempts of the turn that lack something back into the queue, the last one first,
// because each goes before the others of its run. While it does so no attempt is admitted: the timer of
// the back-off could take those that are back already before the others.
//
// startAll finds what is lacking step by step, for all attempts at each step, so t.lacking is brought into
// the order of t.admitted first. Both have at most startsPerTurn entries.
func (p *Process) postponeAll(t *turn) {
	slices.SortFunc(t.lacking, func(a, b failedStart) int {
		return slices.Index(t.admitted, a.attempt) - slices.Index(t.admitted, b.attempt)
	})
	p.mu.Lock()
	p.admissionsHeld = true
	p.mu.Unlock()
	for _, f := range slices.Backward(t.lacking) {
		p.startFailed(f.attempt, f.err)
	}
	clear(t.lacking)
	t.lacking = t.lacking[:0]
	p.mu.Lock()
	p.admissionsHeld = false
	p.admitQueued(0)
	p.mu.Unlock()
}

// releaseEnded frees what the ended attempts still hold. That takes longer than a start, which
// therefore comes first.
func (p *Process) releaseEnded(t *turn) {
	for _, a := range t.ended {
		if a.cgroup == nil || p.cgroups.releaseFree(a.cgroup) {
			p.dropOutput(a, false)
		} else {
			go p.releaseAttempt(a)
		}
	}
	clear(t.ended)
	t.ended = t.ended[:0]
}

// openEpoll opens epollFD and wakeFD.
func (p *Process) openEpoll() (err error) {
	if p.epollFD, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return err
	}
	if p.wakeFD, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err == nil {
		if err = unix.EpollCtl(p.epollFD, unix.EPOLL_CTL_ADD, p.wakeFD, &unix.EpollEvent{Events: unix.EPOLLIN}); err == nil {
			return nil
		}
		unix.Close(p.wakeFD)
	}
	unix.Close(p.epollFD)
	return err
}

// wakeLoop wakes the loop if it waits. p.mu is held.
func (p *Process) wakeLoop() {
	if !p.loopWaiting {
		return
	}
	p.loopWaiting = false
	one := [8]byte{1}
	if _, err := unix.Write(p.wakeFD, one[:]); err != nil && err != unix.EAGAIN { // EAGAIN: the loop is being woken already
		panic(fmt.Sprintf("executor: eventfd: %v", err))
	}
}
