//go:build !faults

package main

import (
	"github.com/caravan-dag/caravan/actors"
	"github.com/caravan-dag/caravan/internal/vfs"
)

// engineClock returns nil: the engine uses the system clock.
func engineClock() actors.Clock { return nil }

// fileSystem returns the files of the operating system.
func fileSystem(string) vfs.FS { return vfs.OS{} }
