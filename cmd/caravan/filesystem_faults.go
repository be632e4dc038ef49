//go:build faults

package main

import (
	"path/filepath"

	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/internal/vfs"
)

// fileSystem is the machine's, with the faults that a test writes into the script
// DATA.faults, beside the data folder: the server and its worker, whose environment is
// clean, both follow it. Only binaries for tests are built with it.
func fileSystem(data string) vfs.FS {
	if path, err := filepath.Abs(data); err == nil {
		data = path
	}
	return faults.Follow(vfs.OS{}, data+".faults")
}
