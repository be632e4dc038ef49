package http

import (
	"cmp"
	"errors"
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
// socket is not watched. An error means that the socket cannot be watched: it is closed,
// or the kernel has no room for another watch.
func (w *peerWatch) watch(nc net.Conn, left func()) (stop func(), err error) {
	w.mu.Lock()
	w.last++
	token := w.last
	w.waiting[token] = left
	w.mu.Unlock()
	forget := func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.waiting, token)
	}
	err = controlSocket(nc, func(fd int) error {
		event := unix.EpollEvent{Events: unix.EPOLLRDHUP | unix.EPOLLONESHOT, Fd: int32(token), Pad: int32(token >> 32)}
		return w.control(unix.EPOLL_CTL_ADD, fd, &event)
	})
	switch {
	case errors.Is(err, errNoSocket):
		return forget, nil
	case err != nil:
		forget()
		return nil, fmt.Errorf("epoll: %w", err)
	}
	return func() {
		// The socket is still open, or the kernel has taken it out by itself: its
		// number cannot be another one's here.
		_ = controlSocket(nc, func(fd int) error { return w.control(unix.EPOLL_CTL_DEL, fd, nil) })
		forget()
	}, nil
}

// control changes what is watched.
func (w *peerWatch) control(op, socket int, event *unix.EpollEvent) error {
	var err error
	return cmp.Or(w.raw.Control(func(epoll uintptr) { err = unix.EpollCtl(int(epoll), op, socket, event) }), err)
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
