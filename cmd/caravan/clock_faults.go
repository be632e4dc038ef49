//go:build faults

package main

import (
	"os"
	"strings"
	"time"

	"github.com/caravan-dag/caravan/actors"
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
