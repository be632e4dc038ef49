package executor

import (
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/messages"
)

// stream is what a task writes to stdout or stderr: an anonymous file in memory. The task writes
// into the file itself, so that its output is not copied while it runs. Beyond the limit the middle
// is punched out (OutputBounds).
//
// When the attempt has ended the file is sealed: a surviving process that still prints gets EPERM,
// as it would get EPIPE from a pipe without a reader, and takes no memory.
//
// The descriptor is counted. It is closed when the attempt, the monitor and the last reader have
// released it.
type stream struct {
	OutputBounds
	fd            int
	refs          atomic.Int32
	freeOnRelease atomic.Bool // a survivor may hold the file, so its memory is freed with the last reference
	checkedSize   int64       // at the monitor's last check; the monitor's
}

func newStream(limit int64) (*stream, error) {
	fd, err := unix.MemfdCreate("caravan-output", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, err
	}
	// Without O_APPEND, a task that opens /dev/stdout again, or shares it with a background child,
	// would overwrite what another descriptor wrote.
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, unix.O_APPEND); err != nil {
		unix.Close(fd)
		return nil, err
	}
	s := &stream{fd: fd, OutputBounds: OutputBounds{Limit: limit}}
	s.refs.Store(1)
	return s, nil
}

// retain takes a reference, unless the last one was released.
func (s *stream) retain() bool {
	for {
		n := s.refs.Load()
		if n == 0 {
			return false
		}
		if s.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (s *stream) release() {
	if s.refs.Add(-1) == 0 {
		if s.freeOnRelease.Load() {
			s.freeMemory()
		}
		unix.Close(s.fd)
	}
}

// freeMemory frees the file's memory while another process holds the file, and makes the kernel
// refuse further writes. A process that has mapped the file can fill it again, up to its size.
func (s *stream) freeMemory() {
	if n := s.Size(); n > 0 {
		const page = 64 << 10 // an upper bound: a partial page is only zeroed
		_ = unix.Fallocate(s.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, n+page-n%page)
	}
	_, _ = unix.FcntlInt(uintptr(s.fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE)
}

// write appends p. It returns false when the memory is exhausted.
func (s *stream) write(p []byte) bool {
	for len(p) > 0 {
		n, err := unix.Write(s.fd, p)
		if err != nil && err != unix.EINTR {
			return false
		}
		p = p[max(n, 0):]
	}
	return true
}

// Size is the number of bytes so far. It is fixed once the stream is frozen.
func (s *stream) Size() int64 {
	if n, frozen := s.FinalSize(); frozen {
		return n
	}
	var st unix.Stat_t
	_ = unix.Fstat(s.fd, &st) // cannot fail on a descriptor that is open
	return st.Size
}

// freeze fixes the size. Later writes of surviving children are refused.
func (s *stream) freeze() {
	// This waits for a write that is under way. It fails with EPERM if the task has sealed the
	// seals.
	_, _ = unix.FcntlInt(uintptr(s.fd), unix.F_ADD_SEALS, unix.F_SEAL_GROW|unix.F_SEAL_SHRINK)
	n := s.Size()
	if n > s.Limit {
		s.Hole.Store(n - (s.Limit - s.Head()))
	} else {
		s.Hole.Store(0) // the task itself may have truncated output that was long
	}
	s.Freeze(n)
}

// punchMiddle frees the middle of a stream that has outgrown its limit, in steps of an eighth of the
// limit. It tells whether the stream has grown much since the last call. It is false once the last reference is
// released.
func (s *stream) punchMiddle() (grows bool) {
	if !s.retain() {
		return false
	}
	defer s.release()
	n := s.Size()
	grows = n-s.checkedSize > s.Limit/16
	s.checkedSize = n
	if from, to, ok := s.NextHole(n); ok {
		// Readers look at Hole after they read, so it moves before the bytes go.
		s.Hole.Store(to)
		// After an error the bytes stay, unread: that costs memory only.
		_ = unix.Fallocate(s.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, from, to-from)
	}
	return grows
}

// ReadAt implements io.ReaderAt on the file as it is, with zeros for holes.
func (s *stream) ReadAt(p []byte, off int64) (int, error) {
	total := 0
	for total < len(p) {
		n, err := unix.Pread(s.fd, p[total:], off+int64(total))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return total, err
		case n == 0:
			return total, io.EOF
		default:
			total += n
		}
	}
	return total, nil
}

// openLog opens the output of an attempt. Process.mu is held.
func (a *attempt) openLog(which messages.Stream) (messages.Log, error) {
	if a.phase <= phaseStarting {
		return nil, ErrNotRunning
	}
	s := a.stdout
	if which == messages.Stderr {
		s = a.stderr
	}
	if !s.Live() || !s.retain() {
		return nil, ErrNotRunning
	}
	return NewLiveLog(s, func() error { s.release(); return nil }), nil
}

// The monitor checks at the slow pace, or at the fast one while some stream grows fast. To check a
// stream that does not grow costs a microsecond. Each tick checks at most checksPerTick of these, in
// rotation.
const (
	checkSlow     = 25 * time.Millisecond
	checkFast     = 5 * time.Millisecond
	checksPerTick = 256
)

// outputMonitor bounds the output of all running attempts. It has a goroutine only while it checks, and
// a timer only while it has attempts. The zero outputMonitor is ready.
type outputMonitor struct {
	mu        sync.Mutex
	attempts  []*attempt // attempts[i].monitorIndex is i+1
	nextCheck int        // where the rotation goes on
	active    bool       // the timer is set, or check runs
	timer     *time.Timer
	look      []*attempt // check's own
}

// add has an attempt checked from now on. A pause of the monitor ends.
func (m *outputMonitor) add(a *attempt) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.attempts = append(m.attempts, a)
	a.monitorIndex = len(m.attempts)
	switch {
	case m.active:
	case m.timer == nil:
		m.timer = time.AfterFunc(checkSlow, m.check)
	default:
		m.timer.Reset(checkSlow)
	}
	m.active = true
}

func (m *outputMonitor) remove(a *attempt) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if a.monitorIndex == 0 {
		return // it ended before it was added
	}
	last := len(m.attempts) - 1
	moved := m.attempts[last]
	m.attempts[a.monitorIndex-1], moved.monitorIndex = moved, a.monitorIndex
	m.attempts[last], a.monitorIndex = nil, 0
	m.attempts = m.attempts[:last]
}

// check is one tick. It sets the timer for the next one, unless the monitor had no attempts: so a
// sequence of short tasks does not begin and end a pause each time. Once active is false, add may begin
// another check at once.
func (m *outputMonitor) check() {
	m.mu.Lock()
	look := m.dueChecks(m.look[:0])
	m.look, m.active = look, len(look) > 0
	m.mu.Unlock()
	if len(look) == 0 {
		return
	}
	pace := checkSlow
	for _, a := range look {
		if a.checkGrowth() {
			pace = checkFast
		}
	}
	clear(look)
	m.timer.Reset(pace)
}

// dueChecks picks the attempts to check: the ones that grow fast, and the others in rotation. m.mu
// is held.
func (m *outputMonitor) dueChecks(look []*attempt) []*attempt {
	n := len(m.attempts)
	if n <= checksPerTick {
		return append(look, m.attempts...)
	}
	for _, a := range m.attempts {
		if a.growsFast {
			look = append(look, a)
		}
	}
	for range checksPerTick {
		m.nextCheck = (m.nextCheck + 1) % n
		if a := m.attempts[m.nextCheck]; !a.growsFast {
			look = append(look, a)
		}
	}
	return look
}

// checkGrowth bounds both streams and tells whether one of them grows fast. Only outputMonitor.check
// calls it.
func (a *attempt) checkGrowth() bool {
	stdoutGrows, stderrGrows := a.stdout.punchMiddle(), a.stderr.punchMiddle()
	a.growsFast = stdoutGrows || stderrGrows
	return a.growsFast
}

// pump copies what a task prints from a pipe to its stream. The kernel charges memory to the control
// group of the process that writes it. A task with a memory limit therefore prints into pipes, so
// that its output does not count as its own memory.
//
// A task that prints faster than this process copies has to wait.
type pump struct {
	from *os.File
	to   *stream
	done chan struct{}
}

// pumpBytes is how much is copied at a time: the usual capacity of a pipe.
const pumpBytes = 64 << 10

// pumps are the pumps of an attempt's two streams; nil when the task writes into the streams itself.
type pumps [2]*pump

// newPumps makes pipes to the streams. ends are the task's ends, which the caller closes once the task
// has them. After an error, of a lack of descriptors, all
// pipes are closed.
func newPumps(out, err *stream) (made *pumps, ends [2]int, _ error) {
	made = new(pumps)
	for i, to := range [...]*stream{out, err} {
		var fd [2]int
		if e := unix.Pipe2(fd[:], unix.O_CLOEXEC); e != nil {
			if i > 0 {
				made.close()
				unix.Close(ends[0])
			}
			return nil, ends, e
		}
		_ = unix.SetNonblock(fd[0], true) // so that the runtime waits for it; cannot fail on a pipe
		made[i] = &pump{from: os.NewFile(uintptr(fd[0]), "output"), to: to, done: make(chan struct{})}
		ends[i] = fd[1]
	}
	return made, ends, nil
}

// close closes pumps that were not started.
func (m *pumps) close() {
	if m == nil {
		return
	}
	for _, p := range m {
		if p != nil {
			p.from.Close()
		}
	}
}

// start begins to copy.
func (m *pumps) start(buffers *sync.Pool) {
	for _, p := range m {
		go p.run(buffers)
	}
}

// stop ends the copying, after the bytes that are in the pipes now.
func (m *pumps) stop() {
	if m == nil {
		return
	}
	for _, p := range m {
		_ = p.from.SetReadDeadline(time.Unix(1, 0)) // an error: it has ended already
	}
	for _, p := range m {
		<-p.done
	}
}

// run copies until the last writer has closed the pipe, or stop is called.
func (p *pump) run(buffers *sync.Pool) {
	defer close(p.done)
	defer p.from.Close()
	conn, _ := p.from.SyscallConn() // fails for a nil file only
	err := conn.Read(func(fd uintptr) bool { return p.copy(int(fd), buffers, -1) })
	if errors.Is(err, os.ErrDeadlineExceeded) {
		// A survivor may go on printing: no more than the pipe holds is still the task's output.
		_ = conn.Control(func(fd uintptr) {
			size, err := unix.FcntlInt(fd, unix.F_GETPIPE_SZ, 0)
			if err != nil {
				size = pumpBytes
			}
			p.copy(int(fd), buffers, size)
		})
	}
}

// copy copies the bytes in the pipe, at most that many unless most is negative. It tells whether the
// copying has ended.
func (p *pump) copy(fd int, buffers *sync.Pool, most int) (end bool) {
	buf := buffers.Get().(*[pumpBytes]byte)
	defer buffers.Put(buf)
	for most != 0 {
		room := buf[:]
		if most > 0 {
			room = room[:min(most, len(room))]
		}
		n, err := unix.Read(fd, room)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return false
		case err != nil || n == 0:
			return true
		default:
			if !p.to.write(buf[:n]) {
				return true // without memory the pump ends, and the task finds its pipe closed
			}
			if most > 0 {
				most -= n
			}
		}
	}
	return true
}
