package http

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// gone tells whether the client has closed its side: while nothing is written,
// nothing else would show it. One that only half-closed counts as gone, as it
// does in net/http. It never blocks and takes nothing from the connection.
func (c *conn) gone() bool {
	under := c.Conn
	if c.raw != nil {
		under = c.raw
	}
	sc, ok := under.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = raw.Control(func(fd uintptr) {
		if c.raw != nil {
			// The end of TLS is itself something to be read: ask for the end of TCP.
			p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
			n, err := unix.Poll(p, 0)
			gone = err == nil && n > 0 && p[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
			return
		}
		var b [1]byte
		n, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		gone = n == 0 && err == nil || err != nil && err != syscall.EAGAIN && err != syscall.EINTR
	})
	return gone || err != nil
}
