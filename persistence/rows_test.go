package persistence_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
	"github.com/caravan-dag/caravan/persistence/journaltest"
)

// fullRun writes a run with rows of every kind, those of several parts too.
func fullRun(t *testing.T, s persistence.Store, run messages.RunID, state dag.RunState) {
	t.Helper()
	rng := rand.New(rand.NewPCG(uint64(run), 1))
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	sum := func(state dag.RunState) *messages.Summary {
		return &messages.Summary{ID: run, Tag: fmt.Sprint("tag", run), State: state, Tasks: 3000, Counts: messages.Counts{3000}}
	}
	chunk := func(i uint32) persistence.Chunk { return persistence.Chunk{Index: i, Data: random(40)} }
	journaltest.MustAppend(t, s,
		&persistence.Batch{Run: run, Seq: 1, Records: random(10), Summary: sum(dag.RunQueued),
			Create: &persistence.Creation{Definition: random(500 << 10), IdempotencyKey: fmt.Sprint("key", run), BodyHash: [32]byte{1}}},
		&persistence.Batch{Run: run, Seq: 2, Records: random(20), Set: &persistence.GeneratedSet{N: 1, JSON: random(300 << 10)}, Summary: sum(dag.RunRunning),
			Attempts: []messages.AttemptRecord{{Task: 1, Attempt: 1}, {Task: 2000, Attempt: 1}}},
		&persistence.Batch{Run: run, Seq: 3, Records: random(20), Set: &persistence.GeneratedSet{N: 2, JSON: random(30)}},
		&persistence.Batch{Run: run, Seq: 4, Records: random(30), Snapshot: &persistence.SnapshotPart{Chunks: []persistence.Chunk{chunk(0), chunk(2)}}},
		&persistence.Batch{Run: run, Seq: 5, Records: random(30), Snapshot: &persistence.SnapshotPart{Chunks: []persistence.Chunk{chunk(1)}, Header: random(250 << 10), Cut: 5}},
		&persistence.Batch{Run: run, Seq: 6, Records: random(300 << 10), Attempts: []messages.AttemptRecord{{Task: 1, Attempt: 2}}},
		&persistence.Batch{Run: run, Seq: 7, Records: random(12), Summary: sum(state), Attempts: []messages.AttemptRecord{{Task: 1, Attempt: 3}}},
	)
}

// describeRun reads all that is stored of a run.
func describeRun(s persistence.Store, run messages.RunID) (string, error) {
	st, err := s.Load(run)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(bytes.Join(append([][]byte{st.Definition, st.Header}, st.Records...), []byte("|")))
	text := fmt.Sprintf("%+v %x %d", st.Summary, sum, st.NextSeq)
	for _, set := range st.Sets {
		text += fmt.Sprintf(" %d %x", set.N, sha256.Sum256(set.JSON))
	}
	for _, c := range st.Chunks {
		text += fmt.Sprintf(" %d %x", c.Index, c.Data)
	}
	err = s.Attempts(run, 0, 3000, func(a *messages.AttemptRecord) bool {
		text += fmt.Sprintf(" %d/%d", a.Task, a.Attempt)
		return true
	})
	if err != nil {
		return "", err
	}
	of, _, ok, err := s.LookUpKey(fmt.Sprint("key", run))
	return text + fmt.Sprint(of, ok), err
}

// TestDamageOfEveryRowIsFound damages each row of a run: no reader ever gets anything else than
// what was written, and the error names the run.
func TestDamageOfEveryRowIsFound(t *testing.T) {
	t.Parallel()
	states := []dag.RunState{dag.RunPaused, dag.RunCompleted}
	if testing.Short() {
		states = states[:1]
	}
	for _, state := range states {
		s, err := persistence.OpenStore(persistence.WithSmallMemtables(persistence.Config{Dir: t.TempDir()}))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		fullRun(t, s, 1, state)
		fullRun(t, s, 2, state)
		whole, err := describeRun(s, 1)
		if err != nil {
			t.Fatal(err)
		}
		other, err := describeRun(s, 2)
		if err != nil {
			t.Fatal(err)
		}
		keys := map[string][]byte{}
		kinds := map[byte]int{}
		for _, k := range persistence.AllKeys(s) {
			if len(k) >= 9 && k[0] != 'm' && bytes.Equal(k[1:9], []byte{0, 0, 0, 0, 0, 0, 0, 1}) {
				keys[string(k)] = persistence.RawRow(s, k)
				kinds[k[0]]++
			}
		}
		if kinds['d'] < 2 || kinds['g'] < 3 || kinds['j'] < 3 || kinds['h'] < 2 || kinds['c'] != 3 || kinds['a'] != 4 || kinds['u']+kinds['s'] != 1 {
			t.Fatalf("rows of a run: %v", kinds)
		}
		for k, v := range keys {
			try := func(what string, do func() error) {
				if err := do(); err != nil {
					t.Fatal(err)
				}
				got, err := describeRun(s, 1)
				switch {
				case err == nil && got != whole:
					t.Errorf("%s, %q %s: something else is read", state, k, what)
				case err == nil && k[0] != 'j' && k[0] != 'a':
					t.Errorf("%s, %q %s: not found", state, k, what)
				case err != nil && !strings.Contains(err.Error(), "run 1: ") && !strings.Contains(err.Error(), "not found"):
					t.Errorf("%s, %q %s: %v", state, k, what, err)
				case err != nil && s.Damaged() == nil && k[0] != 'u' && k[0] != 's':
					t.Errorf("%s, %q %s: nobody is told", state, k, what)
				}
				if got, err := describeRun(s, 2); err != nil || got != other {
					t.Errorf("%s, %q %s: the other run: %v", state, k, what, err)
				}
				if err := persistence.SetRawRow(s, []byte(k), v); err != nil {
					t.Fatal(err)
				}
			}
			for _, at := range []int{0, len(v) / 2, len(v) - 1} {
				try(fmt.Sprintf("changed at %d", at), func() error {
					b := bytes.Clone(v)
					b[at] ^= 4
					return persistence.SetRawRow(s, []byte(k), b)
				})
			}
			if k[0] != 'a' && (k[0] != 'j' || state == dag.RunCompleted) { // the last ones: see docs
				try("missing", func() error { return persistence.DeleteRow(s, []byte(k)) })
			}
			for k2, v2 := range keys {
				if k2 != k && k2[0] == k[0] {
					try("exchanged", func() error { return persistence.SetRawRow(s, []byte(k), v2) })
					break
				}
			}
		}
		if got, err := describeRun(s, 1); err != nil || got != whole {
			t.Errorf("put right again: %v", err)
		}
	}
}

// TestOlderSnapshotChunkIsFound: a chunk as it was before it was written again is not taken for the
// newest.
func TestOlderSnapshotChunkIsFound(t *testing.T) {
	s, err := persistence.OpenStore(persistence.WithSmallMemtables(persistence.Config{Dir: t.TempDir()}))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	fullRun(t, s, 1, dag.RunPaused)
	key := []byte("c\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x02")
	old := persistence.RawRow(s, key)
	journaltest.MustAppend(t, s, &persistence.Batch{Run: 1, Seq: 8, Records: []byte("r"), Snapshot: &persistence.SnapshotPart{
		Chunks: []persistence.Chunk{{Index: 2, Data: []byte("newer")}}, Header: []byte("h"), Cut: 9}})
	if _, err := describeRun(s, 1); err != nil {
		t.Fatal(err)
	}
	if err := persistence.SetRawRow(s, key, old); err != nil {
		t.Fatal(err)
	}
	if _, err := describeRun(s, 1); err == nil || !strings.Contains(err.Error(), "run 1: snapshot chunk 2") {
		t.Error(err)
	}
}

// stored is a value as a row of this key has it, with its checksum.
func stored(key, value []byte) []byte {
	table := crc32.MakeTable(crc32.Castagnoli)
	return binary.LittleEndian.AppendUint32(value, crc32.Update(crc32.Checksum(key, table), table, value))
}

// TestRestoreRefusesMalformedKeys: rows whose keys are too short for what they say, with right
// checksums, are refused by their names.
func TestRestoreRefusesMalformedKeys(t *testing.T) {
	for _, key := range []string{"u", "ux", "s", "sx", "x", "y", "z", "zzzz", "e", "t12345678", "k", "m"} {
		err := persistence.Restore(persistence.WithSmallMemtables(persistence.Config{Dir: t.TempDir()}), func(yield func(key, value []byte) error) error {
			return yield([]byte(key), stored([]byte(key), nil))
		})
		if err == nil || !strings.Contains(err.Error(), `row "`+key+`"`) {
			t.Errorf("key %q: %v", key, err)
		}
	}
}

// TestRestoreChecksTheClockMark: a mark of the clock with which no server starts is found, and
// refused by a restore.
func TestRestoreChecksTheClockMark(t *testing.T) {
	for _, value := range []string{"", "\xff", "\x01"} {
		if err := persistence.CheckRow([]byte("mmark"), stored([]byte("mmark"), []byte(value))); err == nil || !strings.Contains(err.Error(), "meta row mark") {
			t.Errorf("%q: %v", value, err)
		}
	}
	dir := t.TempDir()
	s := badgerAt(t, dir)
	if err := persistence.SetRawRow(s, []byte("mmark"), stored([]byte("mmark"), []byte("\xff"))); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.ClockMark(); err == nil || !strings.Contains(err.Error(), "caravan check") {
		t.Errorf("the server does not say what to do: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if text := findings(t, offline(t, dir)); !strings.Contains(text, "meta row mark") {
		t.Errorf("the findings: %s", text)
	}
}

// FuzzMalformedKeys: a store that holds a row of any key, of right checksum, opens again, and
// what reads rows takes it; a check names it.
func FuzzMalformedKeys(f *testing.F) {
	for _, typ := range "muⱯsdgjhcatkexyz" {
		f.Add([]byte(string(typ)))
		f.Add([]byte(string(typ) + "1234567"))
		f.Add([]byte(string(typ) + "1234567890"))
	}
	f.Fuzz(func(t *testing.T, key []byte) {
		if len(key) == 0 || len(key) > 100 {
			return
		}
		_ = persistence.CheckRow(key, stored(key, nil))
		persistence.ParseKeys(key)
	})
}
