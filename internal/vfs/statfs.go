package vfs

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Statfs returns the free space and the size of a folder's file system, in bytes.
func Statfs(dir string) (free, total int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, fmt.Errorf("statfs %s: %w", dir, err)
	}
	return int64(st.Bavail) * st.Bsize, int64(st.Blocks) * st.Bsize, nil
}
