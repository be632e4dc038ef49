package tables_test

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestInventoryIsReadFirst: a manifest that grows while a live folder is verified, and an
// inventory that is written of it, are not taken for a manifest that has lost its end.
func TestInventoryIsReadFirst(t *testing.T) {
	dir := t.TempDir()
	makeFolder(t, dir, 1, 500, 1)
	manifest, inventory := filepath.Join(dir, "MANIFEST"), filepath.Join(dir, "INVENTORY")
	shorter := read(t, manifest)
	makeFolder(t, dir, 1, 500, 2)
	take(t, dir)
	longer, text := read(t, manifest), read(t, inventory)
	if len(longer) <= len(shorter) {
		t.Fatalf("the manifest had %d bytes and has %d", len(shorter), len(longer))
	}
	write(t, manifest, shorter)
	if err := os.Remove(inventory); err != nil {
		t.Fatal(err)
	}
	// A pipe: opening it to write returns once it is opened to read.
	if err := unix.Mkfifo(inventory, 0o600); err != nil {
		t.Skipf("no named pipe: %v", err)
	}
	ended := make(chan error, 1)
	go func() {
		f, err := os.OpenFile(inventory, os.O_WRONLY, 0)
		if err == nil {
			err = os.WriteFile(manifest, longer, 0o600)
			_, _ = f.Write(text)
			f.Close()
		}
		ended <- err
	}()
	r := verify(t, dir)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if err := r.Err(); err != nil || r.Stale != nil {
		t.Errorf("a manifest that has grown: %v, %v", err, r.Stale)
	}
}
