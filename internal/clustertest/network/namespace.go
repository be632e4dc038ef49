package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/internal/testenv"
)

// namespace is a network namespace without a name. It ends with its last process and descriptor.
type namespace struct {
	handle *os.File // of the namespace itself
	id     string   // as links in /proc name it
	device *os.File // its TUN device: a read gives one packet, a write takes one
}

// deviceMTU is the largest packet of a device. Packets cost a system call each on both sides of the
// switch, so it is larger than that of an Ethernet.
const deviceMTU = 9000

const deviceName = "tun0"

// newNamespace makes a namespace with a loopback device and a TUN device, both up.
func newNamespace(address netip.Prefix) (ns *namespace, err error) {
	ns = &namespace{}
	// The thread stays in the new namespace, so it ends with this goroutine.
	err = testenv.OnOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("new network namespace: %w", err)
		}
		if ns.handle, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		if ns.id, err = os.Readlink("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		ns.device, err = openDevice(address)
		return err
	})
	if err != nil {
		ns.close()
		return nil, err
	}
	return ns, nil
}

// join moves the calling thread into the namespace.
func (ns *namespace) join() error {
	if err := unix.Setns(int(ns.handle.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the network namespace: %w", err)
	}
	return nil
}

// runInside runs fn on a thread in the namespace.
func (ns *namespace) runInside(fn func() error) error {
	return testenv.OnOwnThread(func() error {
		if err := ns.join(); err != nil {
			return err
		}
		return fn()
	})
}

func (ns *namespace) close() (err error) {
	for _, f := range []*os.File{ns.device, ns.handle} {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	return err
}

// openDevice makes the TUN device of the thread's namespace, with an address. The device ends with
// the file.
func openDevice(address netip.Prefix) (*os.File, error) {
	// The runtime's poller watches a descriptor that does not block, so that Close ends a Read.
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	err = configureDevice(fd, address)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), deviceName), nil
}

// configureDevice makes the descriptor a device, gives it an address, and sets it up. The ioctls are
// those of netdevice(7). A namespace begins with a loopback device that is down.
func configureDevice(fd int, address netip.Prefix) error {
	device, err := unix.NewIfreq(deviceName)
	if err != nil {
		return err
	}
	device.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, device); err != nil {
		return fmt.Errorf("make a TUN device: %w", err)
	}
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("configure a TUN device: %w", err)
	}
	defer unix.Close(socket)

	set := func(name string, request uint, value func(*unix.Ifreq) error) error {
		r, err := unix.NewIfreq(name)
		if err == nil {
			err = value(r)
		}
		if err == nil {
			err = unix.IoctlIfreq(socket, request, r)
		}
		if err != nil {
			return fmt.Errorf("configure %s (ioctl %#x): %w", name, request, err)
		}
		return nil
	}
	ip := address.Addr().As4()
	mask := [4]byte{}
	for bit := range address.Bits() {
		mask[bit/8] |= 0x80 >> (bit % 8)
	}
	// The mask comes after the address, which sets one of 32 bits; it makes the route.
	return errors.Join(
		set(deviceName, unix.SIOCSIFADDR, func(r *unix.Ifreq) error { return r.SetInet4Addr(ip[:]) }),
		set(deviceName, unix.SIOCSIFNETMASK, func(r *unix.Ifreq) error { return r.SetInet4Addr(mask[:]) }),
		set(deviceName, unix.SIOCSIFMTU, func(r *unix.Ifreq) error { r.SetUint32(deviceMTU); return nil }),
		set(deviceName, unix.SIOCSIFFLAGS, func(r *unix.Ifreq) error { return addFlags(socket, r) }),
		set("lo", unix.SIOCSIFFLAGS, func(r *unix.Ifreq) error { return addFlags(socket, r) }),
	)
}

// addFlags sets the flags of a device to those that it has, and up.
func addFlags(socket int, r *unix.Ifreq) error {
	if err := unix.IoctlIfreq(socket, unix.SIOCGIFFLAGS, r); err != nil {
		return err
	}
	r.SetUint16(r.Uint16() | unix.IFF_UP | unix.IFF_RUNNING)
	return nil
}
