package http

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

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

// watchPeers begins to notice clients that leave.
func (s *Server) watchPeers() {
	w, err := newPeerWatch()
	if err != nil {
		s.log.Warn("clients that leave while their requests wait are noticed late", "err", err)
		return
	}
	s.peers.Store(w)
	go s.watchLongCalls(w.done)
}

// watchLongCalls watches the clients of requests that wait in the engine for longer than
// Config.watchAfter, until stop is closed. Shorter waits are not watched: that would cost
// each submission two system calls.
func (s *Server) watchLongCalls(stop <-chan struct{}) {
	ticker := time.NewTicker(s.cfg.watchAfter)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-stop:
			return
		}
		now := s.ticks.Add(1)
		if s.inflight.Load() == 0 {
			continue
		}
		for _, c := range s.conns.waitingSince(now - 1) {
			if err := c.watchClient(); err != nil {
				s.log.Debug("http: a client that leaves will be noticed late", "err", err)
			}
		}
	}
}

// waitingSince returns the connections whose requests have waited in the engine since a tick
// before the given one.
func (cs *connSet) waitingSince(tick int64) (waiting []*conn) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for c := range cs.open {
		if since := c.waitingSince.Load(); since >= 0 && since < tick && !c.watched.Load() {
			waiting = append(waiting, c)
		}
	}
	return waiting
}
