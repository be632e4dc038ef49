package badgerguard

import (
	"path/filepath"
	"testing"
)

// TestCollectedTablesOpen: Badger opens links to tables of several folders as one folder, read-only,
// and finds the rows of each.
func TestCollectedTablesOpen(t *testing.T) {
	view := t.TempDir()
	all := NewCollection(view)
	for id := range uint64(3) {
		dir := t.TempDir()
		db := openManaged(t, Options(dir, 1<<20))
		commit(t, db, id+1, mutation{Key: idKey(id), Value: []byte("value")})
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		m, err := ReadManifest(dir)
		if err != nil {
			t.Fatal(err)
		}
		for id, e := range m.Tables {
			if err := all.Add(Path(dir, id), e); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := all.Finish(); err != nil {
		t.Fatal(err)
	}
	db := openManaged(t, Options(view, 1<<20).WithReadOnly(true).WithBypassLockGuard(true))
	txn := db.NewTransactionAt(db.MaxVersion(), false)
	defer txn.Discard()
	for id := range uint64(3) {
		if _, err := txn.Get(idKey(id)); err != nil {
			t.Errorf("row %d: %v", id, err)
		}
	}
	if names, _ := filepath.Glob(filepath.Join(view, "*"+tableSuffix)); len(names) != 3 {
		t.Errorf("%d tables in the folder, want 3", len(names))
	}
}
