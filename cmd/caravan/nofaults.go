//go:build !faults

package main

import (
	"github.com/caravan-dag/caravan/actors"
	"github.com/caravan-dag/caravan/internal/vfs"
)

// This file is what faults.go is without the build tag: the program as it is released.

// engineClock returns nil: the engine uses the system clock.
func engineClock() actors.Clock { return nil }

// fileSystem returns the files of the operating system, for any data folder.
func fileSystem(string) vfs.FS { return vfs.OS{} }
