package e2e

import (
	"encoding/binary"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dgraph-io/badger/v4"
)

// TestRottenSummaryOfAnUnfinishedRun: tables are whole, and a run that is paused has a summary
// that is not. The server refuses to start; it names the folder and the run, and says what to do,
// which helps.
func TestRottenSummaryOfAnUnfinishedRun(t *testing.T) {
	t.Parallel()
	s, run := stopped(t, "true")
	data := s.Config().Data
	db := filepath.Join(data, "db")
	rotSummary(t, db, run)
	_, errs, code := runBinary(t, nil, "serve", "--listen", "127.0.0.1:0", "--data", data)
	for _, want := range []string{"data folder " + db, fmt.Sprintf("run %d: summary: stored value is corrupt", run), "`caravan check`", "`caravan salvage`"} {
		if code != 1 || !strings.Contains(errs, want) {
			t.Errorf("exit %d, without %q: %s", code, want, errs)
		}
	}
	if r, code, text := offline(t, "check", data); code != 1 || !slices.Equal(r.Damaged, []uint64{run}) {
		t.Errorf("check: %d, %s", code, text)
	}
	into := filepath.Join(t.TempDir(), "into")
	if r, code, text := offline(t, "salvage", data, into); code != 0 || !slices.Equal(r.LeftOut, []uint64{run}) {
		t.Errorf("salvage: %d, %s", code, text)
	}
	if r, code, text := offline(t, "check", into); code != 0 || !r.Whole {
		t.Errorf("check of what was salvaged: %d, %s", code, text)
	}
}

// rotSummary changes a bit in the summary of an unfinished run, in a table that is whole.
func rotSummary(t *testing.T, dir string, run uint64) {
	t.Helper()
	db, err := badger.OpenManaged(badger.DefaultOptions(dir).WithLogger(nil).WithMemTableSize(1 << 20).WithValueLogFileSize(1 << 20).WithValueThreshold(1 << 10))
	if err != nil {
		t.Fatal(err)
	}
	txn := db.NewTransactionAt(math.MaxUint64, true)
	defer txn.Discard()
	key := binary.BigEndian.AppendUint64([]byte{'u'}, run)
	item, err := txn.Get(key)
	if err != nil {
		t.Fatal(err)
	}
	value, err := item.ValueCopy(nil)
	if err != nil {
		t.Fatal(err)
	}
	value[1] ^= 4
	if err := txn.Set(key, value); err != nil {
		t.Fatal(err)
	}
	if err := txn.CommitAt(db.MaxVersion(), nil); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}
