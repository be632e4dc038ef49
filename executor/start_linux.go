package executor

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/internal/vfork"
	"github.com/caravan-dag/caravan/messages"
)

// command is an order in the kernel's terms.
type command struct {
	path   string
	search string // the folders in which the child looks path up; "" = it is a path already
	argv   []string
	env    []string
	dir    string
	script string // what the shell reads from scriptFD; "" = it has its text as an argument
	birth  *vfork.Birth
	again  func() bool // asked before each further try of the start; false = errEnded
}

// errEnded is the error of a start that was given up because the attempt is to be ended.
var errEnded = errors.New("it was ended before it began")

// scriptFD is the descriptor on which a shell finds a text that is too long for an
// argument.
const scriptFD = 3

// ShellCommand returns the argv that runs a text, which may begin with a dash, by the
// shell. sourced, if not "", is a file that holds the text instead: the shell reads it as
// if it were its own text, so that $0 and the parameters are the same.
func ShellCommand(text, sourced string) []string {
	if sourced != "" {
		text = ". " + sourced
	}
	if text != "" && (text[0] == '-' || text[0] == '+') { // not an option of the shell
		return []string{"/bin/sh", "-c", "--", text}
	}
	return []string{"/bin/sh", "-c", text}
}

// LongText tells whether a text is too long for an argument.
func LongText(text string) bool { return len(text) >= maxArgument() }

// maxArgument is how many bytes an argument may have, with the NUL at its end.
func maxArgument() int { return 32 * os.Getpagesize() }

// maxStart is how many bytes all arguments and the environment may have together, with
// their NULs and pointers, if the limit on the stack is this process's own.
func maxStart() int {
	const least, most = 128 << 10, 6 << 20
	var stack unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_STACK, &stack) != nil || stack.Cur/4 > most {
		return most
	}
	return max(int(stack.Cur/4), least)
}

// MaxStartBytes is how many bytes the arguments and the environment of an order may have
// together on this machine. The rest is for what every task gets.
func MaxStartBytes() int {
	const clean = 16 << 10
	return maxStart() - clean
}

// newCommand resolves the order: its environment, its argv, and where its program is. It
// asks no file system, which may hang: the child enters the folder and finds the program
// by the task's own PATH. The error says what is wrong in a sentence for the user.
func newCommand(base []string, o *Order, dir string) (c command, err error) {
	if o.Dir != "" {
		dir = o.Dir
	}
	c = command{argv: o.Command, dir: dir}
	if o.UseShell {
		if strings.IndexByte(o.Shell, 0) >= 0 {
			return c, errors.New("the command string holds a NUL byte")
		}
		c.argv = ShellCommand(o.Shell, "")
		if LongText(o.Shell) {
			c.argv, c.script = ShellCommand("", "/proc/self/fd/"+strconv.Itoa(scriptFD)), o.Shell
		}
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
	c.path = c.argv[0]
	if strings.IndexByte(c.path, '/') < 0 {
		if c.search = lookup(c.env, "PATH"); c.search == "" {
			_, err = findProgram(c.path, "", c.dir)
		}
	}
	return c, err
}

// findProgram looks a name without a slash up in path, as the child has done that could
// not start: relative entries are under dir.
func findProgram(name, path, dir string) (string, error) {
	if strings.IndexByte(name, '/') >= 0 {
		return name, nil
	}
	var denied string
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
			denied = look
			continue
		}
		return file, nil
	}
	if denied != "" {
		return "", fmt.Errorf("start %q: %q: %w", name, denied, explainFile(denied, unix.EACCES, nil))
	}
	if strings.ContainsAny(name, " \t\r\n") {
		return "", fmt.Errorf("start %q: not found in PATH %s: command is a list of arguments, whose first is the program's name; a line for the shell is a commandString", name, path)
	}
	return "", fmt.Errorf("start %q: not found in PATH %s", name, path)
}

// ownPeak is the most memory that this process has had, in KB.
func ownPeak() int64 {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return u.Maxrss
}

// A program that is open for writing is tried again after these times: 310 ms in all.
const (
	busyFirst = 10 * time.Millisecond
	busyLast  = 160 * time.Millisecond
)

// child is a process that has begun.
type child struct {
	pid, pidfd int
	group      *cgroup // nil when it has its process group alone
	pumps      *pumps  // nil when it prints into the streams itself
}

// begin starts the command with its output on the two streams, in a control group that
// limits its memory if a limit is given.
func (p *Process) begin(c *command, out, err *stream, limit int64) (b child, e error) {
	group, e := p.limits.take(limit)
	if e != nil {
		return b, e
	}
	b.group = group
	files := [2]int{out.fd, err.fd}
	if group != nil && group.limit > 0 {
		var ends [2]*os.File
		if b.pumps, ends, e = p.newPumps(out, err); e != nil {
			p.limits.give(group)
			return b, e
		}
		defer ends[0].Close()
		defer ends[1].Close()
		files = [2]int{int(ends[0].Fd()), int(ends[1].Fd())}
	}
	pidfd := p.limit.tight || p.Running() > threads
	b.pid, b.pidfd, e = p.fork(c, files, group, pidfd)
	if group != nil && group.limit == 0 && groupless(e) {
		refused := e
		b.group = nil
		if !c.again() {
			e = errEnded
		} else if b.pid, b.pidfd, e = p.fork(c, files, nil, pidfd); e == nil {
			p.limits.suspend(refused)
		}
		p.limits.discard(group)
	}
	if group != nil && group.limit > 0 && errors.Is(e, unix.E2BIG) && c.size() < maxStart() {
		e = &limitError{limit, fmt.Errorf("its arguments and environment have %d bytes and do not fit: %w", c.size(), e)}
	}
	if group != nil && group.limit > 0 && groupless(e) {
		e = &limitError{limit, fmt.Errorf("a start in its control group is refused: %w", e)}
	}
	switch {
	case e == nil:
		b.group.accepted()
		if b.pumps != nil {
			b.pumps.start(&p.buffers)
		}
	case b.group != nil:
		p.limits.give(group)
	}
	if e != nil && b.pumps != nil {
		for _, m := range b.pumps {
			m.from.Close()
		}
	}
	return b, e
}

// fork starts the command with its output on the two files. pidfd is -1 where the
// kernel has none, or none is wanted.
func (p *Process) fork(c *command, files [2]int, group *cgroup, pidfdToo bool) (pid, pidfd int, e error) {
	spec := vfork.Spec{
		Path: c.path, Search: c.search, Argv: c.argv, Env: c.env, Dir: c.dir,
		Files: []int{int(p.null.Fd()), files[0], files[1]}, Cgroup: -1, PIDFD: pidfdToo, Birth: c.birth,
	}
	if group != nil {
		spec.Cgroup = int(group.dir.Fd())
	}
	if c.script != "" {
		script, e := newScript(c.script)
		if e != nil {
			return -1, -1, e
		}
		defer script.Close()
		spec.Files = append(spec.Files, int(script.Fd())) // scriptFD
	}
	for wait := busyFirst; ; wait *= 2 {
		e = group.within(func() (e error) {
			pid, pidfd, e = p.starter.Start(&spec)
			return e
		})
		// A program that another process has just written, and not closed yet.
		if e != unix.ETXTBSY || wait > busyLast {
			return pid, pidfd, e
		}
		time.Sleep(wait)
		if !c.again() {
			return -1, -1, errEnded
		}
	}
}

// newScript is a file in memory with a text for a shell, which closes its descriptor as
// the first thing it does: what the text starts does not inherit it. The text's lines
// keep their numbers.
func newScript(text string) (*os.File, error) {
	fd, err := unix.MemfdCreate("caravan-script", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "script")
	if _, err = f.WriteString("exec " + strconv.Itoa(scriptFD) + "<&-; " + text); err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	}
	if err != nil {
		f.Close()
		return nil, underlying(err)
	}
	return f, nil
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
// the final report instead, or what was lacking: then it may succeed later.
func (p *Process) launch(a *attempt) (_ *Report, lacking error) {
	cmd, err := newCommand(p.base, &a.order, p.cfg.Dir)
	if err != nil {
		return p.notStarted(&a.order, messages.AttemptNotStarted, err), nil
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
		err = fmt.Errorf("start %q: output: %w", cmd.argv[0], err)
		if _, ok := lackOf(err); ok {
			return nil, err
		}
		return p.notStarted(&a.order, messages.AttemptLost, err), nil
	}
	if p.cfg.Begin != nil {
		if err := p.cfg.Begin(&a.order); err != nil {
			stdout.drop()
			stderr.drop()
			return nil, &lack{"journal", fmt.Errorf("start %q: %w", cmd.argv[0], err)}
		}
	}
	began := p.cfg.Now()
	cmd.birth, cmd.again = a.start(p.cfg.Grace), a.again
	born, err := p.begin(&cmd, stdout, stderr, a.order.MemoryMilli<<20/1000)
	if err != nil {
		_, lacks := lackOf(err)
		why := a.unstart(lacks)
		stdout.drop()
		stderr.drop()
		var limit *limitError
		if lacks {
			return nil, fmt.Errorf("start %q: %w", cmd.argv[0], err)
		}
		if why == causeKill || why == causeClose || err == errEnded {
			result, text := why.result(a.order.Timeout)
			return p.notStarted(&a.order, result, errors.New(text)), nil
		}
		reason := fmt.Errorf("start %q: %w", cmd.argv[0], err)
		if !errors.As(err, &limit) {
			reason = p.explain(a, &cmd, err)
		}
		if why == causeTimeout { // it was being ended, and then failed by itself
			_, text := why.result(a.order.Timeout)
			reason = fmt.Errorf("%w; before that, it had %s", reason, text)
		}
		return p.notStarted(&a.order, messages.AttemptNotStarted, reason), nil
	}
	if p.cfg.Born != nil {
		p.cfg.Born(&a.order, born.pid)
	}
	a.mu.Lock()
	a.out, a.err, a.pumps, a.group, a.pid, a.began = stdout, stderr, born.pumps, born.group, born.pid, began
	if born.pidfd >= 0 && unix.SetNonblock(born.pidfd, true) == nil {
		a.pidfd = os.NewFile(uintptr(born.pidfd), "pidfd")
	}
	a.born()
	a.mu.Unlock()
	p.mu.Lock()
	p.stats.Starts++
	var fit []*attempt
	if p.startEnded(a) {
		fit = p.admit(p.cfg.Now())
	}
	fit = append(fit, p.hadEnough()...)
	p.mu.Unlock()
	p.spread(fit)
	p.watch.add(a)
	p.cfg.Sink(Report{Key: a.order.Key, Kind: Started, At: began, GrantedAt: a.order.GrantedAt, Idle: time.Duration(max(p.cfg.Now()-a.since, 0))})
	return nil, nil
}

func (p *Process) notStarted(o *Order, result messages.AttemptResult, reason error) *Report {
	now := p.cfg.Now()
	return &Report{Key: o.Key, Kind: Finished, At: now, GrantedAt: o.GrantedAt, Record: messages.AttemptRecord{
		Task: o.Key.Task, Attempt: o.Key.Attempt, Result: result, RC: -1,
		Stop: now, ExecutorLog: reason.Error(), Node: p.cfg.Node,
	}}
}
