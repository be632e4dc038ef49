//go:build faults

package main

import (
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/caravan-dag/caravan/actors"
	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/internal/vfs"
)

// This file and nofaults.go are the two variants of what a test can disturb: with the build tag
// faults the binary takes its wall clock and the errors of its files from the test (internal/e2e).
// Programs that are released are built without it.

// engineClock returns the system clock with an adjustable wall clock, for tests: the file named by
// CARAVAN_FAULT_CLOCK holds the duration to add.
func engineClock() actors.Clock {
	return faultyClock{actors.SystemClock(), os.Getenv("CARAVAN_FAULT_CLOCK")}
}

// faultyClock is a clock whose wall time the file at path shifts. The monotonic time stays right,
// as it does when an administrator sets the clock of a machine.
type faultyClock struct {
	actors.Clock
	path string // of a file with a duration, such as "-1h"; it may be missing
}

// Now implements actors.Clock. It reads the file at each call, so that a test changes the clock of a
// running server.
func (c faultyClock) Now() (wall, monotonic int64) {
	wall, monotonic = c.Clock.Now()
	if text, err := os.ReadFile(c.path); err == nil {
		step, _ := time.ParseDuration(strings.TrimSpace(string(text)))
		wall += int64(step)
	}
	return wall, monotonic
}

// fileSystem returns the operating system's files with the faults that the script DATA.faults
// describes. The server and its worker both follow the script. The script is a file, because an
// environment variable would not reach the worker.
func fileSystem(data string) vfs.FS {
	if path, err := filepath.Abs(data); err == nil {
		data = path
	}
	return faults.FollowScript(vfs.OS{}, data+".faults")
}
