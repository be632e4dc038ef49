package datafolder

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// location identifies a folder to the kernel.
type home struct {
	inode  uint64
	born   int64  // ns since the epoch; 0 = unknown to the file system
	device uint64 // valid for one boot of the machine only
	boot   string // the kernel's boot ID; "" = unknown
}

// matches reports whether a folder that was at h and is at now may be the same folder.
func (h home) is(now home) bool {
	if h.inode != now.inode || h.born != 0 && now.born != 0 && h.born != now.born {
		return false
	}
	return h.boot == "" || h.boot != now.boot || h.device == now.device
}

// locationOf returns the location of an open folder.
func homeOf(dir *os.File) (h home, err error) {
	var st unix.Statx_t
	err = unix.Statx(int(dir.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_BTIME, &st)
	if err == nil {
		h.inode, h.device = st.Ino, unix.Mkdev(st.Dev_major, st.Dev_minor)
		if st.Mask&unix.STATX_BTIME != 0 {
			h.born = st.Btime.Sec*1e9 + int64(st.Btime.Nsec)
		}
	} else {
		var old unix.Stat_t
		if err := unix.Fstat(int(dir.Fd()), &old); err != nil {
			return h, &os.PathError{Op: "stat", Path: dir.Name(), Err: err}
		}
		h.inode, h.device = old.Ino, old.Dev
	}
	if boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		h.boot = strings.TrimSpace(string(boot))
	}
	return h, nil
}
