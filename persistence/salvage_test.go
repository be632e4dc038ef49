package persistence_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
	"github.com/caravan-dag/caravan/persistence/journaltest"
)

// offline reads a closed store without changing it.
func offline(t *testing.T, dir string) *persistence.Offline {
	t.Helper()
	o, err := persistence.OpenOffline(t.Context(), dir, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	})
	return o
}

// findings are all damages that an offline store knows.
func findings(t *testing.T, o *persistence.Offline) string {
	t.Helper()
	all := append([]error(nil), o.DamagedFiles...)
	err := o.ScanRows(func(_ messages.RunID, _ bool, err error) { all = append(all, err) }, func(messages.RunID, bool) {})
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(errors.Join(all...))
}

// TestOfflineCarriesOutStagedBatches: a batch that was committed in parts, and not carried
// out, is read as the next start would read it; one that lacks a part is damage; one that
// was not committed is nothing.
func TestOfflineCarriesOutStagedBatches(t *testing.T) {
	for name, c := range map[string]struct {
		marked bool
		spoil  func(*persistence.Badger) error
		want   string // of the findings
		shards uint64
	}{
		"not committed": {false, nil, "<nil>", 16},
		"committed":     {true, nil, "<nil>", 99},
		"a part is missing": {true, func(s *persistence.Badger) error {
			return persistence.DeleteRow(s, []byte("x\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x01"))
		}, "staged batch 1: stored value is corrupt:", 16},
		"all parts are missing": {true, func(s *persistence.Badger) error {
			for _, k := range persistence.Keys(s) {
				if k[0] == 'x' {
					if err := persistence.DeleteRow(s, k); err != nil {
						return err
					}
				}
			}
			return nil
		}, "staged batch 1: stored value is corrupt: all ", 16},
		"a part is changed": {true, func(s *persistence.Badger) error {
			return persistence.SetBare(s, []byte("x\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x01"), []byte("rotten"))
		}, "wrong checksum", 16},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := badgerAt(t, dir)
			journaltest.MustAppend(t, s, journaltest.NewRun(1, "", "spec"))
			if err := persistence.HalfStage(s, c.marked); err != nil {
				t.Fatal(err)
			}
			if c.spoil != nil {
				if err := c.spoil(s); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			o := offline(t, dir)
			if got := findings(t, o); !strings.Contains(got, c.want) {
				t.Errorf("found: %s", got)
			}
			if o.UnboundedLoss != (c.spoil != nil) {
				t.Errorf("rows that nobody can name are missing: %v", o.UnboundedLoss)
			}
			if got, err := persistence.Meta(o.Badger, "shards"); err != nil || got != c.shards {
				t.Errorf("%d shards, want %d: %v", got, c.shards, err)
			}
			if st, err := o.Load(1); err != nil || string(st.Definition) != "spec" {
				t.Errorf("run 1: %v", err)
			}
		})
	}
}

// TestSalvageKeepsKeysAndClock: idempotency keys of deleted runs, the time until which they
// stay, and the mark of the server's clock are in the new store.
func TestSalvageKeepsKeysAndClock(t *testing.T) {
	dir := t.TempDir()
	s := badgerAt(t, dir)
	const runs = 40
	var ids []messages.RunID
	for run := range messages.RunID(runs) {
		b := journaltest.NewRun(run, "", "spec")
		b.Create.IdempotencyKey = fmt.Sprint("key", run)
		b.Summary.State = dag.RunCompleted
		journaltest.MustAppend(t, s, b)
		ids = append(ids, run)
	}
	for i, run := range ids[:runs-1] { // the last one stays
		if err := s.Delete([]messages.RunID{run}, int64(1000+i)); err != nil {
			t.Fatal(err)
		}
	}
	mark := persistence.ClockMark{Steady: 500, Wall: 700, Boot: 900, BootID: "boot", Owed: true}
	if err := s.SetClockMark(mark); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	o, into := offline(t, dir), badgerAt(t, t.TempDir())
	if err := o.CopyRun(runs-1, into); err != nil {
		t.Fatal(err)
	}
	if n, err := o.CopyKeys(into); n != runs-1 || err != nil {
		t.Fatalf("%d keys: %v", n, err)
	}
	if n := into.KeptKeyCount(); n != runs-1 {
		t.Errorf("%d keys are counted", n)
	}
	if got, ok, err := into.ClockMark(); !ok || err != nil || got != mark {
		t.Errorf("the mark: %+v, %v", got, err)
	}
	for _, run := range ids {
		if got, _, ok, err := into.LookUpKey(fmt.Sprint("key", run)); !ok || got != run || err != nil {
			t.Errorf("key %d: run %d, %v, %v", run, got, ok, err)
		}
	}
	if n, err := into.ExpireKeys(1009, 1_000_000, 1000); n != 10 || err != nil {
		t.Errorf("%d keys expired: %v", n, err)
	}
	if _, _, ok, err := into.LookUpKey("key9"); ok || err != nil {
		t.Errorf("an expired key is there: %v", err)
	}
	if _, _, ok, err := into.LookUpKey("key10"); !ok || err != nil {
		t.Errorf("a key that stays is gone: %v", err)
	}
}
