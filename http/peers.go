package http

import (
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// peerWatch notices when clients close their side while their requests wait: nothing is
// written then, so nothing else would show it. One goroutine watches them all through
// an epoll of its own. A connection is in it only while its request waits.
type peerWatch struct {
	file *os.File
	raw  syscall.RawConn
	done chan struct{} // closed when the goroutine has returned

	mu      sync.Mutex
	last    uint64            // token that was given out
	waiting map[uint64]func() // what to call, by token
}

// newPeerWatch starts a watch. Close it.
func newPeerWatch() (*peerWatch, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // so that the runtime polls it
		_ = unix.Close(fd)
		return nil, fmt.Errorf("epoll: %w", err)
	}
	w := &peerWatch{file: os.NewFile(uintptr(fd), "epoll"), done: make(chan struct{}), waiting: make(map[uint64]func())}
	if w.raw, err = w.file.SyscallConn(); err != nil {
		_ = w.file.Close()
		return nil, fmt.Errorf("epoll: %w", err)
	}
	go w.run()
	return w, nil
}

// watch calls left, once, when the client at the other end of nc closes the connection
// or its side of it. Stop ends that; left may be under way then. A connection without a
// socket is not watched.
func (w *peerWatch) watch(nc net.Conn, left func()) (stop func()) {
	w.mu.Lock()
	w.last++
	token := w.last
	w.waiting[token] = left
	w.mu.Unlock()
	added := false
	controlSocket(nc, func(fd int) {
		event := unix.EpollEvent{Events: unix.EPOLLRDHUP | unix.EPOLLONESHOT, Fd: int32(token), Pad: int32(token >> 32)}
		added = w.control(unix.EPOLL_CTL_ADD, fd, &event)
	})
	return func() {
		if added {
			// The socket is still open, or the kernel has taken it out by itself: its
			// number cannot be another one's here.
			controlSocket(nc, func(fd int) { w.control(unix.EPOLL_CTL_DEL, fd, nil) })
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.waiting, token)
	}
}

// control changes what is watched; it is false when that cannot be.
func (w *peerWatch) control(op, socket int, event *unix.EpollEvent) (done bool) {
	err := w.raw.Control(func(epoll uintptr) { done = unix.EpollCtl(int(epoll), op, socket, event) == nil })
	return done && err == nil
}

func (w *peerWatch) run() {
	defer close(w.done)
	events := make([]unix.EpollEvent, 128)
	for {
		n := 0
		err := w.raw.Read(func(fd uintptr) bool {
			n, _ = unix.EpollWait(int(fd), events, 0)
			return n > 0
		})
		if err != nil {
			return // closed
		}
		for _, e := range events[:max(n, 0)] {
			token := uint64(uint32(e.Fd)) | uint64(uint32(e.Pad))<<32
			w.mu.Lock()
			left := w.waiting[token]
			delete(w.waiting, token)
			w.mu.Unlock()
			if left != nil {
				left()
			}
		}
	}
}

// Close ends the watch.
func (w *peerWatch) Close() {
	_ = w.file.Close()
	<-w.done
}
