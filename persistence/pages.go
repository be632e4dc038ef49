package persistence

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// smallPages has the kernel keep a file that this process has mapped in pages of 4 KiB.
// Of a mapped file that is written front to back it reads ahead, in pages that grow up to
// 2 MiB where the file system knows such, and a page goes to the device whole: a commit of
// a few hundred bytes then writes tens of KiB. What is read at random is not read ahead.
// Badger hands its mapping out to nobody, so it is looked up; that there is none is no
// error.
func smallPages(f *os.File) error {
	// The kernel's own name of the file, which is how it lists mappings.
	path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(f.Fd())))
	if err != nil {
		return err
	}
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer maps.Close()
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		line, ok := strings.CutSuffix(lines.Text(), " "+path)
		if !ok {
			continue
		}
		addresses, _, _ := strings.Cut(line, " ")
		from, to, _ := strings.Cut(addresses, "-")
		begin, err1 := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		if err := errors.Join(err1, err2); err != nil {
			return fmt.Errorf("mapping %q: %w", line, err)
		}
		_, _, errno := unix.Syscall(unix.SYS_MADVISE, uintptr(begin), uintptr(end-begin), unix.MADV_RANDOM)
		if errno != 0 {
			return fmt.Errorf("advice on the mapping of %s: %w", path, errno)
		}
	}
	return lines.Err()
}
