package persistence

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// openFilled is a store with n rows of round 0.
func openFilled(t *testing.T, n int) (s *RunStore, round func(int)) {
	t.Helper()
	s, err := OpenStore(Config{Dir: filepath.Join(t.TempDir(), "db"), memTable: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	round = func(r int) {
		ops := make([]mutation, n)
		for i := range ops {
			ops[i] = sealRow(fmt.Appendf(nil, "?%05d", i), fmt.Appendf(nil, "%d %0200d", r, i))
		}
		for part := range slices.Chunk(ops, 500) {
			if err := s.commitRows(part); err != nil { // bare rows, as deletions are
				t.Fatal(err)
			}
		}
	}
	round(0)
	return s, round
}

// TestBackupIsOneCommit: what is committed while rows are read is not among them, and a
// store that is restored of them has the same rows.
func TestBackupIsOneCommit(t *testing.T) {
	t.Parallel()
	s, round := openFilled(t, 4000) // with the rounds below more than a memtable holds
	want, err := Dump(s)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "db")
	err = s.Backup(func(m *ReadView) error {
		at, seen := m.CommitNumber(), 0
		return Restore(Config{Dir: dir, memTable: 4 << 20}, func(yield func(key, value []byte) error) error {
			err := m.Rows(context.Background(), func(key, value []byte) error {
				if seen++; seen%1000 == 0 { // commits go on
					round(seen)
				}
				return yield(key, value)
			})
			if s.timestamps.acquire() == at {
				t.Error("nothing was committed meanwhile")
			}
			return err
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	r, err := OpenStore(Config{Dir: dir, memTable: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := Dump(r); err != nil || !slices.Equal(got, want) {
		t.Errorf("%d rows, want %d; %v", len(got), len(want), err)
	}
	if now, err := Dump(s); err != nil || slices.Equal(now, want) {
		t.Errorf("the store itself has not changed: %v", err)
	}
}

// TestRowsEndWithTheirContext: the reader of a view ends soon after its context, and a copy then lacks its end.
func TestRowsEndWithTheirContext(t *testing.T) {
	s, _ := openFilled(t, 3000)
	gone := errors.New("the receiver has left")
	err := s.Backup(func(m *ReadView) error {
		ctx, cancel := context.WithCancelCause(t.Context())
		read := 0
		err := m.Rows(ctx, func(_, _ []byte) error {
			if read++; read == 500 {
				cancel(gone)
			}
			return nil
		})
		if !errors.Is(err, gone) || read < 500 || read > 500+rowsPerLook {
			t.Errorf("%d rows were read, %v", read, err)
		}
		if err := m.VerifyTables(ctx); !errors.Is(err, gone) && !errors.Is(err, context.Canceled) {
			t.Errorf("tables are verified: %v", err)
		}
		var stream bytes.Buffer
		if err := m.WriteCopy(ctx, &stream); !errors.Is(err, gone) {
			t.Errorf("a copy: %v", err)
		}
		if _, err := InstallCopy(filepath.Join(t.TempDir(), "db"), &stream); !errors.Is(err, errCopy) {
			t.Errorf("its installation: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestBackupRefusesADamagedRow: a row whose checksum is wrong ends a backup, and a restore.
func TestBackupRefusesADamagedRow(t *testing.T) {
	s, _ := openFilled(t, 10)
	bad := mutation{Key: []byte("?00003"), Value: []byte("something else")}
	if err := s.commitRows([]mutation{bad}); err != nil {
		t.Fatal(err)
	}
	err := s.Backup(func(m *ReadView) error { return m.Rows(context.Background(), func(_, _ []byte) error { return nil }) })
	if !errors.Is(err, errCorrupt) || !strings.Contains(err.Error(), "?00003") {
		t.Errorf("backup: %v", err)
	}
	err = Restore(Config{Dir: filepath.Join(t.TempDir(), "db")}, func(yield func(key, value []byte) error) error {
		return yield(bad.Key, bad.Value)
	})
	if !errors.Is(err, errCorrupt) {
		t.Errorf("restore: %v", err)
	}
}
