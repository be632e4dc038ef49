//go:build faults

package main

import (
	"path/filepath"

	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/internal/vfs"
)

// fileSystem is the machine's file system with the faults that a test writes into the script
// DATA.faults. The server and its worker both follow the script: a worker gets a clean
// environment, so a variable would not reach it. Only binaries for tests are built with it.
func fileSystem(data string) vfs.FS {
	if path, err := filepath.Abs(data); err == nil {
		data = path
	}
	return faults.Follow(vfs.OS{}, data+".faults")
}
