package datafolder

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/caravan-dag/caravan/internal/vfs"
	"golang.org/x/sys/unix"
)

// location identifies a folder to the kernel. A copy of the content does not copy these values, so
// they tell the original from its copy, and paths do not matter.
type location struct {
	inode     uint64
	birthTime int64  // ns since the epoch; 0 = unknown to the file system
	device    uint64 // valid for one boot of the machine only
	boot      string // the kernel's boot ID; "" = unknown
}

// matches reports whether a folder that was at h and is at now may be the same folder. Device numbers
// are given out again at each boot, so they decide only within one. In doubt about the birth time the
// inode number decides.
func (h location) matches(now location) bool {
	if h.inode != now.inode || h.birthTime != 0 && now.birthTime != 0 && h.birthTime != now.birthTime {
		return false
	}
	return h.boot == "" || h.boot != now.boot || h.device == now.device
}

// locationOf returns the location of an open folder.
func locationOf(dir *os.File) (h location, err error) {
	var st unix.Statx_t
	err = unix.Statx(int(dir.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_BTIME, &st)
	if err == nil {
		h.inode, h.device = st.Ino, unix.Mkdev(st.Dev_major, st.Dev_minor)
		if st.Mask&unix.STATX_BTIME != 0 {
			h.birthTime = st.Btime.Sec*1e9 + int64(st.Btime.Nsec)
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

// ErrInUse means that another process holds the lock of the folder.
var ErrInUse = errors.New("in use by another server or command")

// acquireLock locks a folder with unix.LOCK_EX or LOCK_SH. When the wait of vfs.WaitForLock is over
// it returns ErrInUse, with the process if the kernel tells.
func acquireLock(dir *os.File, how int) error {
	err := vfs.WaitForLock(dir, how)
	if !errors.Is(err, vfs.ErrLocked) {
		return err
	}
	if pid := lockHolder(dir); pid != 0 {
		return fmt.Errorf("%w (process %d)", ErrInUse, pid)
	}
	return ErrInUse
}

// lockHolder returns a process that holds a lock on the folder, or 0 if the kernel does not tell,
// as in a container.
func lockHolder(dir *os.File) int {
	var st unix.Stat_t
	if unix.Fstat(int(dir.Fd()), &st) != nil {
		return 0
	}
	f, err := os.Open("/proc/locks")
	if err != nil {
		return 0
	}
	defer f.Close()
	inode := ":" + strconv.FormatUint(st.Ino, 10)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// 1: FLOCK  ADVISORY  WRITE 4242 08:01:131074 0 EOF
		w := strings.Fields(lines.Text())
		if len(w) >= 6 && w[1] == "FLOCK" && strings.HasSuffix(w[5], inode) {
			pid, _ := strconv.Atoi(w[4])
			return max(pid, 0)
		}
	}
	return 0
}
