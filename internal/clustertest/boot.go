package clustertest

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// bootIDPath is where the kernel says which start of the machine this is. A worker keeps its journal
// in the page cache and relies on this ID: after a restart of the machine the journal proves nothing.
const bootIDPath = "/proc/sys/kernel/random/boot_id"

// bootID is the ID that a node's processes see in place of the machine's. A power cut changes it.
type bootID struct {
	path string // of the file with the ID
	disk string // where the node's disk is mounted
}

// newBootID gives a node an ID of its own.
func newBootID(dir, node, disk string) (*bootID, error) {
	b := &bootID{filepath.Join(dir, node+".boot_id"), disk}
	return b, b.renew()
}

// renew makes another ID for the processes that start from now on. Running ones keep theirs, because
// the new file has another inode.
func (b *bootID) renew() error {
	var id [16]byte
	if _, err := rand.Read(id[:]); err != nil {
		return err
	}
	text := fmt.Sprintf("%x-%x-%x-%x-%x\n", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
	if err := os.WriteFile(b.path+".new", []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(b.path+".new", b.path)
}

// coverFile moves the calling thread into a mount namespace where the file of the kernel is covered by
// that of the node. The namespace begins with a copy of all mounts.
func (b *bootID) coverFile() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("new mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("keep the mounts of a node inside: %w", err)
	}
	if err := unix.Mount(b.path, bootIDPath, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("cover %s: %w", bootIDPath, err)
	}
	return b.detachOtherDisks()
}

// detachOtherDisks unmounts the loop devices of other nodes and tests in the namespace of the calling
// thread. A copy of a mount keeps its file system alive, and a disk that is mounted again after a
// power cut must not be.
func (b *bootID) detachOtherDisks() error {
	text, err := os.ReadFile("/proc/thread-self/mounts")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[0], "/dev/loop") && f[1] != b.disk {
			// It may have been unmounted since, from the namespace that this one was copied from.
			_ = unix.Unmount(f[1], unix.MNT_DETACH)
		}
	}
	return nil
}
