package fleet

import (
	"context"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// localListener connects the leaders of this node with its agent, by pairs of sockets.
type localListener struct {
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func newLocalListener() *localListener {
	return &localListener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

// dial returns one end of a new connection; Accept returns the other one.
func (l *localListener) dial(ctx context.Context) (net.Conn, error) {
	here, there, err := socketPair()
	if err != nil {
		return nil, err
	}
	select {
	case l.conns <- there:
		return here, nil
	case <-l.closed:
		err = net.ErrClosed
	case <-ctx.Done():
		err = ctx.Err()
	}
	here.Close()
	there.Close()
	return nil, err
}

func socketPair() (here, there net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	open := func(fd int) (net.Conn, error) {
		f := os.NewFile(uintptr(fd), "agent")
		defer f.Close() // FileConn has a descriptor of its own
		return net.FileConn(f)
	}
	here, err = open(fds[0])
	there, secondErr := open(fds[1])
	switch {
	case err != nil && secondErr == nil:
		there.Close()
	case err == nil && secondErr != nil:
		here.Close()
		err = secondErr
	}
	return here, there, err
}

// Accept implements net.Listener.
func (l *localListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *localListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr implements net.Listener.
func (l *localListener) Addr() net.Addr { return &net.UnixAddr{Name: "agent", Net: "unix"} }
