package faults

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Ext4 is an ext4 file system in a file, on a loop device: a disk whose faults a test decides on.
// Every program sees them, also Badger and the tasks. It needs root, loop devices and mkfs.ext4.
type Ext4 struct {
	image, dir string
}

// NewExt4 makes a file system of size bytes in a new file, and mounts it at a new folder. An error
// says what the machine lacks; then both are removed.
func NewExt4(image, dir string, size int64) (*Ext4, error) {
	d := &Ext4{image: image, dir: dir}
	err := d.make(size)
	if err != nil {
		os.Remove(image)
		os.Remove(dir)
		return nil, err
	}
	return d, nil
}

func (d *Ext4) make(size int64) error {
	if err := os.WriteFile(d.image, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(d.image, size); err != nil {
		return err
	}
	if err := os.Mkdir(d.dir, 0o700); err != nil {
		return err
	}
	// Without reserved blocks a full disk is full for root, too.
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", "-m", "0", d.image).CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.ext4: %w: %s", err, bytes.TrimSpace(out))
	}
	return d.mount()
}

// mount mounts the file by mount(8), whose loop device ends with the mount. An error of the disk
// makes it read-only, as distributions have it.
func (d *Ext4) mount() error {
	if out, err := exec.Command("mount", "-o", "loop,errors=remount-ro", d.image, d.dir).CombinedOutput(); err != nil {
		return fmt.Errorf("mount an ext4 on a loop device: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// Dir is where the file system is mounted.
func (d *Ext4) Dir() string { return d.dir }

// CutPower stops all writes to the device at once. Data that was not synced is lost, and all further
// writes fail. See Remount.
func (d *Ext4) CutPower() error {
	f, err := os.Open(d.dir)
	if err != nil {
		return err
	}
	defer f.Close()
	// EXT4_IOC_SHUTDOWN = _IOR('X', 125, __u32), with EXT4_GOING_FLAGS_NOLOGFLUSH.
	const shutdown, noLogFlush = 2<<30 | 4<<16 | 'X'<<8 | 125, 2
	if err := unix.IoctlSetPointerInt(int(f.Fd()), shutdown, noLogFlush); err != nil {
		return fmt.Errorf("cut the power of %s: %w", d.dir, err)
	}
	return nil
}

// Remount mounts the file system as it is on the device, after CutPower and FailReadOnly. It waits
// for at most limit until all files on it are closed, and until the kernel has let go of the old
// mount: two at a time would write to the file independently of each other.
func (d *Ext4) Remount(limit time.Duration) error {
	device, err := d.device()
	if err != nil {
		return err
	}
	deadline := time.Now().Add(limit)
	for unmounted := false; ; {
		if !unmounted {
			err = unix.Unmount(d.dir, 0)
			unmounted = err == nil
		}
		if unmounted {
			if !d.backs(device) {
				return d.mount()
			}
			err = fmt.Errorf("%s is still in use", device)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("unmount %s: %w", d.dir, err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// backs reports whether the loop device still has the file. It ends with the last copy of the mount,
// which may be one in another mount namespace.
func (d *Ext4) backs(device string) bool {
	file, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(device), "loop/backing_file"))
	return err == nil && strings.TrimSpace(string(file)) == d.image
}

// Stall makes all writes wait, as a disk does that hangs, until Resume. Reads go on. The kernel
// writes back all unsynced data first, so a power cut during a stall does not lose it.
func (d *Ext4) Stall() error { return d.control("stall", freezeRequest) }

// Resume ends a Stall.
func (d *Ext4) Resume() error { return d.control("resume", thawRequest) }

// FIFREEZE and FITHAW of linux/fs.h, _IOWR('X', 119, int) and _IOWR('X', 120, int).
const (
	freezeRequest = 3<<30 | 4<<16 | 'X'<<8 | 119
	thawRequest   = 3<<30 | 4<<16 | 'X'<<8 | 120
)

func (d *Ext4) control(what string, request uint) error {
	f, err := os.Open(d.dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), request, 0); err != nil {
		return fmt.Errorf("%s %s: %w", what, d.dir, err)
	}
	return nil
}

// FailReadOnly reports an error of the disk to the kernel, which makes the file system read-only at
// once, also for open files. Unsynced data is lost. See Remount.
func (d *Ext4) FailReadOnly() error {
	device, err := d.device()
	if err != nil {
		return err
	}
	trigger := filepath.Join("/sys/fs/ext4", filepath.Base(device), "trigger_fs_error")
	if err := os.WriteFile(trigger, []byte("test"), 0); err != nil {
		return fmt.Errorf("make %s read-only: %w", d.dir, err)
	}
	return nil
}

// device returns the loop device of the mount.
func (d *Ext4) device() (string, error) {
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[1] == d.dir {
			return f[0], nil
		}
	}
	return "", fmt.Errorf("%s is not mounted", d.dir)
}

// fillName is the file that takes the room of a full disk.
const fillName = "fill"

// Fill takes the room of the file system, except left bytes. Free gives it back.
func (d *Ext4) Fill(left int64) error {
	f, err := os.OpenFile(filepath.Join(d.dir, fillName), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	for size := int64(64 << 20); size >= 4096; {
		var room unix.Statfs_t
		if err := unix.Statfs(d.dir, &room); err != nil {
			return fmt.Errorf("fill %s: %w", d.dir, err)
		}
		free := int64(room.Bavail) * room.Bsize
		if size = min(size, (free-left)&^4095); size < 4096 {
			return nil
		}
		end, err := f.Seek(0, 2)
		if err == nil {
			err = unix.Fallocate(int(f.Fd()), 0, end, size)
		}
		if err == nil {
			_, err = f.Seek(end+size, 0)
		}
		switch {
		case errors.Is(err, syscall.ENOSPC): // metadata needs a part of the room
			size /= 2
		case err != nil:
			return fmt.Errorf("fill %s: %w", d.dir, err)
		}
	}
	return nil
}

// Free gives back the room that Fill took.
func (d *Ext4) Free() error {
	err := os.Remove(filepath.Join(d.dir, fillName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Close unmounts the file system, at once for its users, and removes its file. Files on it stay
// usable for processes that have them open.
func (d *Ext4) Close() error {
	_ = d.Resume() // an error says that it was not stalled
	err := unix.Unmount(d.dir, unix.MNT_DETACH)
	if err != nil {
		err = fmt.Errorf("unmount %s: %w", d.dir, err)
	}
	return errors.Join(err, os.Remove(d.image), os.Remove(d.dir))
}
