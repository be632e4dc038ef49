package faults

import (
	"encoding/binary"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Lease blocks every open of a file, including that of an exec, while it is held, for at most
// /proc/sys/fs/lease-break-time seconds (45 by default). It simulates a program on an unresponsive
// network file system. The kernel makes whoever opens the file wait until the holder of the lease
// gives it up (fcntl(2), F_SETLEASE), and takes it away after that time. A test that lasts longer
// is then wrong.
type Lease struct{ f *os.File }

// HoldLease takes a lease on a file of this user that is not open. It waits for a process between
// fork and exec that has the file open for a moment.
func HoldLease(path string) (*Lease, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	for range 1000 { // a second
		if _, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err == nil {
			return &Lease{f}, nil
		}
		if err != unix.EAGAIN {
			break
		}
		time.Sleep(time.Millisecond)
	}
	f.Close()
	return nil, fmt.Errorf("lease on %s: %w", path, err)
}

// HasWaiter reports whether an open of the file is blocked: the kernel then asks for the lease to
// be reduced, and F_GETLEASE returns what it asks for.
func (l *Lease) HasWaiter() bool {
	kind, err := unix.FcntlInt(l.f.Fd(), unix.F_GETLEASE, 0)
	return err == nil && kind != unix.F_WRLCK
}

// Release unblocks the opens. It may be called twice.
func (l *Lease) Release() { l.f.Close() }

// HangingFolder is a mounted file system that never answers. A process that enters it hangs until
// it is killed, or until Close. It simulates a dead server of a network file system. It is a FUSE
// file system without a daemon: this process holds /dev/fuse and leaves all requests but the first
// one unread.
type HangingFolder struct {
	dir    string
	device *os.File
}

// opInit is the only FUSE request that is answered: FUSE_INIT of linux/fuse.h.
const opInit = 26

// MountHanging mounts such a file system on an empty folder. It needs root and FUSE.
func MountHanging(dir string) (*HangingFolder, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/fuse: %w", err)
	}
	h := &HangingFolder{dir: dir, device: os.NewFile(uintptr(fd), "fuse")}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", fd)
	if err := unix.Mount("hanging", dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		h.device.Close()
		return nil, fmt.Errorf("mount FUSE on %s: %w", dir, err)
	}
	if err := h.init(); err != nil {
		h.Close()
		return nil, fmt.Errorf("FUSE on %s: %w", dir, err)
	}
	return h, nil
}

// init answers the initial request of the kernel. Without it the file system would fail all
// requests.
func (h *HangingFolder) init() error {
	request := make([]byte, 64<<10)
	n, err := unix.Read(int(h.device.Fd()), request)
	if err != nil {
		return err
	}
	if op := binary.NativeEndian.Uint32(request[4:]); n < 40 || op != opInit {
		return fmt.Errorf("unexpected first request %d of %d bytes", op, n)
	}
	// The answer consists of struct fuse_out_header and struct fuse_init_out.
	answer := make([]byte, 16+64)
	binary.NativeEndian.PutUint32(answer, uint32(len(answer)))
	copy(answer[8:16], request[8:16])                   // unique
	binary.NativeEndian.PutUint32(answer[16:], 7)       // major
	binary.NativeEndian.PutUint32(answer[20:], 31)      // minor
	binary.NativeEndian.PutUint32(answer[28:], 1<<18)   // parallel look-ups, so that each can be interrupted
	binary.NativeEndian.PutUint32(answer[36:], 128<<10) // max_write
	_, err = unix.Write(int(h.device.Fd()), answer)
	return err
}

// Close fails all hanging calls and unmounts the file system.
func (h *HangingFolder) Close() error {
	h.Abort()
	return unix.Unmount(h.dir, unix.MNT_DETACH)
}

// Abort simulates the death of the server: all later calls fail with ENOTCONN.
func (h *HangingFolder) Abort() { h.device.Close() }
