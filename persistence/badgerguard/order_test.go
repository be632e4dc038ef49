package badgerguard_test

import (
	"path/filepath"
	"testing"

	"github.com/caravan-dag/caravan/persistence/badgerguard"
)

// TestInventoryIsReadFirst: a manifest that grows while a live folder is verified, and an
// inventory that is written of it, are not taken for a manifest that has lost its end.
func TestInventoryIsReadFirst(t *testing.T) {
	dir := t.TempDir()
	makeFolder(t, dir, 1, 500, 1)
	take(t, dir)
	manifest, inventory := filepath.Join(dir, "MANIFEST"), filepath.Join(dir, "INVENTORY")
	shorter, before := read(t, manifest), read(t, inventory)
	makeFolder(t, dir, 1, 500, 2)
	take(t, dir)
	longer, text := read(t, manifest), read(t, inventory)
	if len(longer) <= len(shorter) {
		t.Fatalf("the manifest had %d bytes and has %d", len(shorter), len(longer))
	}
	write(t, manifest, shorter)
	write(t, inventory, before)
	r, err := badgerguard.Verify(t.Context(), dir, badgerguard.Between(badgerguard.VerifyOptions{}, func() {
		write(t, manifest, longer)
		write(t, inventory, text)
	}))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Err(); err != nil || r.Stale != nil {
		t.Errorf("a manifest that has grown: %v, %v", err, r.Stale)
	}
}
