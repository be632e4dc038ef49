package http

import (
	"errors"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// client is who a connection is counted for: an IPv4 address, the /64 network of an
// IPv6 address, or the user at the other end of a Unix socket. The zero value is
// everybody who cannot be told apart.
type client struct {
	addr netip.Addr
	uid  uint32 // plus one; of a Unix socket
}

// clientOf tells who is at the other end.
func clientOf(nc net.Conn) client {
	switch a := nc.RemoteAddr().(type) {
	case *net.TCPAddr:
		addr := a.AddrPort().Addr().Unmap().WithZone("")
		if addr.Is6() {
			if network, err := addr.Prefix(64); err == nil {
				addr = network.Addr()
			}
		}
		return client{addr: addr}
	case *net.UnixAddr:
		var c client
		_ = controlSocket(nc, func(fd int) error {
			cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
			if err == nil {
				c.uid = cred.Uid + 1
			}
			return err
		})
		return c
	}
	return client{}
}

// errNoSocket: a connection is not one of the kernel's.
var errNoSocket = errors.New("the connection has no socket")

// controlSocket calls f with the descriptor of a connection's socket, below TLS and
// other layers; the socket stays open meanwhile. It returns f's error, or why f was not
// called: errNoSocket, or the socket is closed.
func controlSocket(nc net.Conn, f func(fd int) error) error {
	for {
		below, ok := nc.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		nc = below.NetConn()
	}
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return errNoSocket
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}
