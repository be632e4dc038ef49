//go:build !faults

package main

import (
	"github.com/caravan-dag/caravan/actors"
	"github.com/caravan-dag/caravan/internal/vfs"
)

// engineClock is the engine's clock: nil, the machine's.
func engineClock() actors.Clock { return nil }

// fileSystem is how the files of a data folder are read and written: the machine's.
func fileSystem(string) vfs.FS { return vfs.OS{} }
