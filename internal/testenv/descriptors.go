package testenv

import (
	"slices"

	"golang.org/x/sys/unix"
)

// LeaveDescriptors makes this process able to open n more descriptors, until restore is called. The
// limit bounds their numbers, and each open takes the lowest free one, so the first n free numbers stay
// below it. Open descriptors with higher numbers go on.
//
// The limit holds for the whole process: a test that uses it must not run in parallel with others, and
// its own goroutines open files too.
func LeaveDescriptors(t TB, n int) (restore func()) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatalf("descriptor limit: %v", err)
	}
	var free []int
	var err error
	for range n + 1 {
		var fd int
		if fd, err = unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 0); err != nil {
			break
		}
		free = append(free, fd)
	}
	for _, fd := range free {
		unix.Close(fd)
	}
	low := limit
	if err == nil {
		low.Cur = uint64(slices.Max(free))
		err = unix.Setrlimit(unix.RLIMIT_NOFILE, &low)
	}
	if err != nil {
		t.Fatalf("leave %d descriptors: %v", n, err)
	}
	return func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatalf("restore the descriptor limit: %v", err)
		}
	}
}
