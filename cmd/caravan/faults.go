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

// engineClock is the machine's clock, with a wall clock that a test sets: by the duration
// in the file that CARAVAN_FAULT_CLOCK names. Only binaries for tests are built with it.
func engineClock() actors.Clock {
	return faultyClock{actors.SystemClock(), os.Getenv("CARAVAN_FAULT_CLOCK")}
}

type faultyClock struct {
	actors.Clock
	path string
}

// Now is part of actors.Clock.
func (c faultyClock) Now() (wall, monotonic int64) {
	wall, monotonic = c.Clock.Now()
	if text, err := os.ReadFile(c.path); err == nil {
		step, _ := time.ParseDuration(strings.TrimSpace(string(text)))
		wall += int64(step)
	}
	return wall, monotonic
}

// fileSystem is the machine's file system with the faults that a test writes into the script
// DATA.faults. The server and its worker both follow the script: a worker gets a clean
// environment, so a variable would not reach it. Only binaries for tests are built with it.
func fileSystem(data string) vfs.FS {
	if path, err := filepath.Abs(data); err == nil {
		data = path
	}
	return faults.Follow(vfs.OS{}, data+".faults")
}
