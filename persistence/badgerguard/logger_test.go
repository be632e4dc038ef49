package badgerguard

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
)

// TestLoggerNoticesFailures: two of Badger's lines are failures that the store must not miss.
func TestLoggerNoticesFailures(t *testing.T) {
	var alarms []error
	l := NewLogger(slog.New(slog.DiscardHandler), func(err error) { alarms = append(alarms, err) })
	l.Errorf("Received err: %v. Cleaning up...", "x")
	l.Warningf("w %d", 1)
	l.Infof("i")
	l.Debugf("d")
	if len(alarms) != 0 || l.CorruptTable() != nil {
		t.Errorf("alarms %v, corrupt table %v", alarms, l.CorruptTable())
	}
	l.Errorf("error flushing memtable to disk: %v, retrying", "no space")
	if len(alarms) != 1 || !strings.Contains(alarms[0].Error(), "no space") {
		t.Errorf("alarms: %v", alarms)
	}
	l.Errorf("CHECKSUM_MISMATCH: table %d", 3)
	if err := l.CorruptTable(); err == nil || !strings.Contains(err.Error(), "table 3") {
		t.Errorf("corrupt table: %v", err)
	}
}

// TestBadgerStillLogsTheseLines: the texts that Logger looks for are those of the Badger that is
// compiled in.
func TestBadgerStillLogsTheseLines(t *testing.T) {
	t.Run("flush", func(t *testing.T) {
		// The line comes from a loop that retries for ever, so its text is looked up in the source.
		source := badgerSource(t, "db.go")
		if !strings.Contains(source, `"error flushing memtable to disk: `) {
			t.Error("db.go of Badger no longer logs a failed flush with this text")
		}
	})
	t.Run("a damaged table is refused or noticed", func(t *testing.T) {
		dir := t.TempDir()
		// Badger v4.9.6 refuses such a folder; its code that skips the table is still there.
		opts := Options(dir, 4<<20).WithChecksumVerificationMode(options.OnTableAndBlockRead)
		db, err := badger.OpenManaged(opts.WithLogger(nil))
		if err != nil {
			t.Fatal(err)
		}
		txn := db.NewTransactionAt(0, true)
		if err := txn.Set([]byte("key"), []byte(strings.Repeat("value", 1000))); err != nil {
			t.Fatal(err)
		}
		if err := txn.CommitAt(1, nil); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		names, _ := filepath.Glob(filepath.Join(dir, "*"+tableSuffix))
		if len(names) != 1 {
			t.Fatalf("%d tables", len(names))
		}
		b, err := os.ReadFile(names[0])
		if err != nil {
			t.Fatal(err)
		}
		b[10] ^= 1
		if err := os.WriteFile(names[0], b, 0o600); err != nil {
			t.Fatal(err)
		}
		l := NewLogger(slog.New(slog.DiscardHandler), func(error) {})
		if db, err := badger.OpenManaged(opts.WithLogger(l)); err == nil {
			db.Close()
			if l.CorruptTable() == nil {
				t.Error("Badger has left a damaged table out, and the logger has not noticed")
			}
		}
	})
}
