package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/internal/vfs"
)

// longestSocket is the longest path of a unix socket that the kernel takes.
const longestSocket = 107

// unixListener is a unix socket and the lock that says that its path is taken.
type unixListener struct {
	net.Listener
	lock *os.File
	once sync.Once
}

// listenUnix listens on a unix socket that only this user (and root) can connect to.
// A lock beside the socket tells a server that lives from a socket that a killed one
// has left: only the holder of the lock removes or makes the socket.
func listenUnix(path string) (_ net.Listener, err error) {
	if len(path) > longestSocket {
		return nil, fmt.Errorf("address unix:%s: the path is too long: at most %d bytes", path, longestSocket)
	}
	lock, err := vfs.OpenOwn(path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("address unix:%s: %w", path, err)
	}
	defer func() {
		if err != nil {
			_ = lock.Close()
		}
	}()
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("address unix:%s is in use: another server may be running; choose another one with --listen", path)
	}
	if err != nil {
		return nil, fmt.Errorf("address unix:%s: lock: %w", path, err)
	}
	switch info, err := os.Lstat(path); {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("address unix:%s: %w", path, err)
	case info.Mode()&os.ModeSocket == 0:
		return nil, fmt.Errorf("address unix:%s: there is a file of that name, which is not a socket", path)
	default:
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("address unix:%s: remove the socket that a former server has left: %w", path, err)
		}
	}
	// Linux gives the socket's file the mode of the descriptor: it never has another one.
	private := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); e != nil {
			return e
		}
		return err
	}}
	l, err := private.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("address unix:%s: %w", path, cause(err))
	}
	return &unixListener{Listener: l, lock: lock}, nil
}

// Close removes the socket, then lets go of the lock. The file of the lock stays:
// removing it could take it from under another server.
func (u *unixListener) Close() (err error) {
	u.once.Do(func() { err = errors.Join(u.Listener.Close(), u.lock.Close()) })
	return err
}
