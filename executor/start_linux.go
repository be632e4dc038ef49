package executor

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/internal/vfork"
	"github.com/caravan-dag/caravan/messages"
)

// command is an order in the kernel's terms.
type command struct {
	path string
	argv []string
	env  []string
	dir  string
}

// newCommand resolves the order: its environment, its argv, and its program by the
// task's own PATH. The error says what is wrong in a sentence for the user.
func newCommand(base []string, o *Order, dir string) (c command, err error) {
	if o.Dir != "" {
		dir = o.Dir
	}
	c = command{argv: o.Command, dir: dir}
	if o.UseShell {
		c.argv = []string{"/bin/sh", "-c", o.Shell}
	}
	if len(c.argv) == 0 || c.argv[0] == "" {
		return c, errors.New("the command is empty")
	}
	if c.env, err = environment(base, o); err != nil {
		return c, err
	}
	for i, s := range c.argv {
		if strings.IndexByte(s, 0) >= 0 {
			return c, fmt.Errorf("argument %d of the command holds a NUL byte", i)
		}
	}
	for _, s := range c.env {
		if strings.IndexByte(s, 0) >= 0 {
			return c, fmt.Errorf("environment: the value of %q holds a NUL byte", key(s))
		}
	}
	if strings.IndexByte(c.dir, 0) >= 0 {
		return c, fmt.Errorf("working folder %q holds a NUL byte", c.dir)
	}
	c.path, err = findProgram(c.argv[0], lookup(c.env, "PATH"), c.dir)
	return c, err
}

// findProgram looks a name without a slash up in path, as the task itself would:
// relative entries are under dir.
func findProgram(name, path, dir string) (string, error) {
	if strings.IndexByte(name, '/') >= 0 {
		return name, nil
	}
	var denied bool
	for rest := path; rest != ""; {
		var entry string
		entry, rest, _ = strings.Cut(rest, ":")
		if entry == "" {
			entry = "."
		}
		// The task is in dir when it executes this, we are not when we look.
		file := entry + "/" + name
		look := file
		if entry[0] != '/' && dir != "" {
			look = dir + "/" + file
		}
		var st unix.Stat_t
		if unix.Stat(look, &st) != nil || st.Mode&unix.S_IFMT == unix.S_IFDIR {
			continue
		}
		if unix.Access(look, unix.X_OK) != nil {
			denied = true
			continue
		}
		return file, nil
	}
	if denied {
		return "", fmt.Errorf("start %q: %w", name, unix.EACCES)
	}
	return "", fmt.Errorf("start %q: not found in PATH %s", name, path)
}

// startError names what could not be started. fork/exec tells only an errno, which
// may as well be chdir's.
func (c *command) startError(err error) error {
	if c.dir != "" {
		if e := unix.Access(c.dir, unix.X_OK); e != nil {
			return fmt.Errorf("working folder %q: %w", c.dir, e)
		}
		if st, e := os.Stat(c.dir); e == nil && !st.IsDir() {
			return fmt.Errorf("working folder %q: %w", c.dir, unix.ENOTDIR)
		}
	}
	return fmt.Errorf("start %q: %w", c.argv[0], err)
}

// ownPeak is the most memory that this process has had, in KB.
func ownPeak() int64 {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return u.Maxrss
}

// shortage tells whether the machine had no room for another process, for which the
// order is not to blame.
func shortage(err error) bool {
	for _, e := range []error{unix.EAGAIN, unix.ENOMEM, unix.EMFILE, unix.ENFILE} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// fork starts the command with its output on the two streams. pidfd is -1 where the
// kernel has none, or none is wanted.
func (p *Process) fork(c *command, out, err *stream, group *cgroup, pidfdToo bool) (pid, pidfd int, e error) {
	spec := vfork.Spec{
		Path: c.path, Argv: c.argv, Env: c.env, Dir: c.dir,
		Files: [3]int{int(p.null.Fd()), out.fd, err.fd}, Cgroup: -1, PIDFD: pidfdToo,
	}
	if group != nil {
		spec.Cgroup = int(group.dir.Fd())
	}
	e = group.within(func() (e error) {
		pid, pidfd, e = p.starter.Start(&spec)
		return e
	})
	return pid, pidfd, e
}

// groupless tells whether a start failed because it was to be in a control group.
func groupless(err error) bool {
	for _, e := range []error{unix.ENOSYS, unix.EOPNOTSUPP, unix.EBUSY, unix.ENODEV, unix.EPERM, unix.EINVAL} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// threads is how many attempts may be waited for by a thread each, which costs less
// than a descriptor in the netpoller; the others are waited for there.
const threads = 16

// launch starts the attempt and reports that. When no process came to be it returns
// the final report instead.
func (p *Process) launch(a *attempt) *Report {
	cmd, err := newCommand(p.base, &a.order, p.cfg.Dir)
	if err != nil {
		return p.notStarted(&a.order, messages.AttemptNotStarted, err)
	}
	if p.cfg.Mark != nil {
		cmd.env = mark(cmd.env, p.cfg.Mark(a.order.Key))
	}
	limit := p.cfg.MaxOutput
	if a.order.Capture {
		limit = max(limit, p.cfg.MaxCapture)
	}
	stdout, stderr, err := newStreams(limit, p.cfg.MaxOutput)
	if err != nil {
		return p.notStarted(&a.order, messages.AttemptLost, fmt.Errorf("start %q: output: %w", cmd.argv[0], err))
	}
	if p.cfg.Begin != nil {
		if err := p.cfg.Begin(&a.order); err != nil {
			stdout.drop()
			stderr.drop()
			return p.notStarted(&a.order, messages.AttemptLost, fmt.Errorf("start %q: %w", cmd.argv[0], err))
		}
	}
	began := p.cfg.Now()
	group := p.limits.take(a.order.MemoryMilli << 20 / 1000)
	pid, pidfd, err := p.fork(&cmd, stdout, stderr, group, p.Running() > threads)
	if group != nil && groupless(err) {
		refused := err
		if pid, pidfd, err = p.fork(&cmd, stdout, stderr, nil, p.Running() > threads); err == nil {
			p.limits.disable(refused)
		}
		p.limits.give(group)
		group = nil
	}
	if err != nil {
		p.limits.give(group)
		stdout.drop()
		stderr.drop()
		if shortage(err) {
			return p.notStarted(&a.order, messages.AttemptLost, fmt.Errorf("start %q: %w", cmd.argv[0], err))
		}
		return p.notStarted(&a.order, messages.AttemptNotStarted, cmd.startError(err))
	}
	if p.cfg.Born != nil {
		p.cfg.Born(&a.order, pid)
	}
	a.mu.Lock()
	a.out, a.err, a.group, a.pid, a.began = stdout, stderr, group, pid, began
	if pidfd >= 0 && unix.SetNonblock(pidfd, true) == nil {
		a.pidfd = os.NewFile(uintptr(pidfd), "pidfd")
	}
	a.born()
	if a.order.Timeout > 0 && a.cause == causeNone {
		a.timeout = time.AfterFunc(a.order.Timeout, func() { a.end(causeTimeout, p.cfg.Grace) })
	}
	a.mu.Unlock()
	p.mu.Lock()
	p.stats.Starts++
	p.mu.Unlock()
	p.watch.add(a)
	p.cfg.Sink(Report{Key: a.order.Key, Kind: Started, At: began, Idle: time.Duration(max(p.cfg.Now()-a.since, 0))})
	return nil
}

func (p *Process) notStarted(o *Order, result messages.AttemptResult, reason error) *Report {
	now := p.cfg.Now()
	return &Report{Key: o.Key, Kind: Finished, At: now, Record: messages.AttemptRecord{
		Task: o.Key.Task, Attempt: o.Key.Attempt, Result: result, RC: -1,
		Stop: now, ExecutorLog: reason.Error(), Node: p.cfg.Node,
	}}
}
