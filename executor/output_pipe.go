package executor

import (
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

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

// newPumps makes pipes to the streams. The returned files are the task's ends. The caller closes
// them once the task has them.
func (p *Process) newPumps(out, err *stream) (*pumps, [2]*os.File, error) {
	var made pumps
	var ends [2]*os.File
	for i, s := range [...]*stream{out, err} {
		var fd [2]int
		e := unix.Pipe2(fd[:], unix.O_CLOEXEC)
		if e == nil {
			if e = unix.SetNonblock(fd[0], true); e != nil {
				unix.Close(fd[0])
				unix.Close(fd[1])
			}
		}
		if e != nil {
			if i == 1 {
				made[0].from.Close()
				ends[0].Close()
			}
			return nil, ends, e
		}
		made[i] = &pump{from: os.NewFile(uintptr(fd[0]), "output"), to: s, done: make(chan struct{})}
		ends[i] = os.NewFile(uintptr(fd[1]), "output")
	}
	return &made, ends, nil
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
	conn, err := p.from.SyscallConn()
	if err != nil {
		return
	}
	err = conn.Read(func(fd uintptr) bool { return p.copy(int(fd), buffers, -1) })
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
