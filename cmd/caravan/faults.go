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

// engineClock returns the system clock with an adjustable wall clock, for tests: the file named by
// CARAVAN_FAULT_CLOCK holds the duration to add.
func engineClock() actors.Clock {
	return faultyClock{actors.SystemClock(), os.Getenv("CARAVAN_FAULT_CLOCK")}
}

type faultyClock struct {
	actors.Clock
	path string
}

// Now implements actors.Clock.
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
