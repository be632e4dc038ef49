//go:build !faults

package main

import "github.com/caravan-dag/caravan/internal/vfs"

// fileSystem is how the files of a data folder are read and written: the machine's.
func fileSystem(string) vfs.FS { return vfs.OS{} }
