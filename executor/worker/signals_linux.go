package worker

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// ignoreEnds has the kernel send this process no signal when a child ends: Go's runtime
// handles every SIGCHLD on whichever thread it finds, which interrupts that in what it
// waits for, and nobody here asks for them. Children are still waited for, as they would
// not be if the signal were set to be ignored.
func ignoreEnds() {
	var byDefault struct {
		handler, flags, restorer uintptr
		mask                     uint64
	}
	// An error leaves things as they are.
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGCHLD), uintptr(unsafe.Pointer(&byDefault)), 0,
		unsafe.Sizeof(byDefault.mask), 0, 0)
}
