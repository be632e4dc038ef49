package badgerguard

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dgraph-io/badger/v4"
)

// badgerSource returns a source file of the Badger that is compiled in.
func badgerSource(t *testing.T, name string) string {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/dgraph-io/badger/v4").Output()
	if err != nil {
		t.Skipf("the go command does not find the sources of Badger: %v", err)
	}
	b, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func openManaged(t testing.TB, opts badger.Options) *badger.DB {
	t.Helper()
	db, err := badger.OpenManaged(opts.WithLogger(nil))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// mutation sets or deletes one row.
type mutation struct {
	Key, Value []byte
	Delete     bool
}

// commit commits mutations as one transaction of this number.
func commit(t testing.TB, db *badger.DB, number uint64, mutations ...mutation) {
	t.Helper()
	txn := db.NewTransactionAt(number-1, true)
	defer txn.Discard()
	for _, m := range mutations {
		var err error
		if m.Delete {
			err = txn.Delete(m.Key)
		} else {
			err = txn.Set(m.Key, m.Value)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := txn.CommitAt(number, nil); err != nil {
		t.Fatal(err)
	}
}

// TestLockIsBadgers: the lock of LockFolder and that of an open Badger exclude each other, and each
// names the process.
func TestLockIsBadgers(t *testing.T) {
	dir := t.TempDir()
	db := openManaged(t, Options(dir, 4<<20))
	if _, err := LockFolder(dir); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("Badger has the folder: %v", err)
	}
	_, err := badger.OpenManaged(Options(dir, 4<<20).WithLogger(nil))
	if err == nil || !errors.Is(OpenError(dir, err), ErrInUse) {
		t.Errorf("a second Badger: %v is not recognized", err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	unlock, err := LockFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	if db, err := badger.OpenManaged(Options(dir, 4<<20).WithLogger(nil)); err == nil {
		db.Close()
		t.Error("Badger opens a folder that is locked")
	}
	if err := unlock(); err != nil {
		t.Error(err)
	}
}

// TestTablesHoldRowsWithoutBadgersLogs: tables alone hold all that they report as flushed, so the
// files that RemoveUnsyncedFiles deletes may go; and these are all files besides the tables.
func TestTablesHoldRowsWithoutBadgersLogs(t *testing.T) {
	dir := t.TempDir()
	db := openManaged(t, Options(dir, 1<<20))
	number := uint64(0)
	for NewestFlushed(db.Tables()) < 3 {
		number++
		commit(t, db, number, mutation{Key: fmt.Appendf(nil, "%08d", number), Value: make([]byte, 10<<10)})
	}
	flushed := NewestFlushed(db.Tables())
	copied := copyFolder(t, dir) // what a crash leaves
	if err := RemoveUnsyncedFiles(copied, true); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(copied)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		switch name := e.Name(); {
		case strings.HasSuffix(name, tableSuffix), name == manifestName, name == registryName, name == "LOCK":
		default:
			t.Errorf("Badger has a file %s, whose content this package does not know", name)
		}
	}
	again := openManaged(t, Options(copied, 1<<20))
	txn := again.NewTransactionAt(number, false)
	defer txn.Discard()
	for n := uint64(1); n < flushed; n++ { // of the newest one tables may have a part
		if _, err := txn.Get(fmt.Appendf(nil, "%08d", n)); err != nil {
			t.Fatalf("tables have commits up to %d, and not %d: %v", flushed, n, err)
		}
	}
	empty := t.TempDir()
	if err := RemoveUnsyncedFiles(empty, true); err == nil {
		t.Error("a missing manifest is accepted")
	}
}

// TestCompactionDropsADamagedBlock shows a limit of verification: a compaction takes a damaged block for the
// end of its table, as an iterator does. It deletes the table, so the damage can be found only before.
func TestCompactionDropsADamagedBlock(t *testing.T) {
	dir := t.TempDir()
	opts := Options(dir, 1<<20).WithNumCompactors(0) // Flatten compacts, and it alone
	const tables, rows = 3, 100
	for table := range tables {
		db := openManaged(t, opts)
		var mutations []mutation
		for row := range rows {
			value := make([]byte, 1<<10)
			_, _ = rand.NewChaCha8([32]byte{byte(table), byte(row)}).Read(value)
			mutations = append(mutations, mutation{Key: fmt.Appendf(nil, "%d-%04d", table, row), Value: value})
		}
		commit(t, db, uint64(table+1), mutations...)
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	damages := func() int {
		r, err := Verify(t.Context(), dir, VerifyOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return len(r.Damage)
	}
	path := filepath.Join(dir, tableName(1))
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if n := damages(); n != 1 {
		t.Fatalf("%d damages before the compaction", n)
	}
	db := openManaged(t, opts)
	if err := db.Flatten(1); err != nil {
		t.Fatal(err)
	}
	left := 0
	txn := db.NewTransactionAt(tables, false)
	it := txn.NewIterator(badger.DefaultIteratorOptions)
	for it.Rewind(); it.Valid(); it.Next() {
		left++
	}
	it.Close()
	txn.Discard()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if n := damages(); n != 0 || left >= tables*rows || left < (tables-1)*rows {
		t.Errorf("the compaction leaves %d damages and %d rows of %d: doc.go and docs/operations.md say otherwise", n, left, tables*rows)
	}
}

// copyFolder copies a folder that Badger may change in the meantime.
func copyFolder(t *testing.T, dir string) string {
	t.Helper()
	for try := 0; ; try++ {
		copied := filepath.Join(t.TempDir(), "copy")
		err := os.CopyFS(copied, os.DirFS(dir))
		if err == nil {
			var r *Report
			if r, err = Verify(t.Context(), copied, VerifyOptions{}); err == nil {
				err = r.Err()
			}
		}
		if err == nil {
			return copied
		}
		if try == 100 {
			t.Fatal(err)
		}
	}
}
