package datafolder

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrInUse means that another process holds the lock of the folder.
var ErrInUse = errors.New("in use by another server or command")

// acquireLock locks a folder with unix.LOCK_EX or LOCK_SH. It waits a moment, because a child of a
// killed server may hold the lock a little longer, between fork and exec.
func lock(dir *os.File, how int) error {
	const patience, pause = 2 * time.Second, 20 * time.Millisecond
	for begin := time.Now(); ; time.Sleep(pause) {
		err := unix.Flock(int(dir.Fd()), how|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case err == unix.EINTR:
		case err != unix.EWOULDBLOCK:
			return os.NewSyscallError("flock", err)
		case time.Since(begin) > patience:
			if pid := holder(dir); pid != 0 {
				return fmt.Errorf("%w (process %d)", ErrInUse, pid)
			}
			return ErrInUse
		}
	}
}

// lockHolder returns a process that holds a lock on the folder, or 0 if the kernel does not tell,
// as in a container.
func holder(dir *os.File) int {
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
