package executor_test

import "syscall"

// blocks is how many bytes of storage a file takes.
func blocks(path string) int64 {
	var st syscall.Stat_t
	if syscall.Stat(path, &st) != nil {
		return 0
	}
	return st.Blocks * 512
}
