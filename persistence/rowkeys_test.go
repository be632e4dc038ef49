package persistence_test

import (
	"encoding/binary"
	"hash/crc32"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/persistence"
)

// stored is a value as a row of this key has it, with its checksum.
func stored(key, value []byte) []byte {
	table := crc32.MakeTable(crc32.Castagnoli)
	return binary.LittleEndian.AppendUint32(value, crc32.Update(crc32.Checksum(key, table), table, value))
}

// TestRestoreRefusesKeys: rows whose keys are too short for what they say, with right
// checksums, are refused by their names.
func TestRestoreRefusesKeys(t *testing.T) {
	for _, key := range []string{"u", "ux", "s", "sx", "x", "y", "z", "zzzz", "e", "t12345678", "k", "m"} {
		err := persistence.Restore(persistence.Small(persistence.Config{Dir: t.TempDir()}), func(yield func(key, value []byte) error) error {
			return yield([]byte(key), stored([]byte(key), nil))
		})
		if err == nil || !strings.Contains(err.Error(), `row "`+key+`"`) {
			t.Errorf("key %q: %v", key, err)
		}
	}
}

// TestMarkIsChecked: a mark of the clock with which no server starts is found, and refused by
// a restore.
func TestMarkIsChecked(t *testing.T) {
	for _, value := range []string{"", "\xff", "\x01"} {
		if err := persistence.CheckRow([]byte("mmark"), stored([]byte("mmark"), []byte(value))); err == nil || !strings.Contains(err.Error(), "meta row mark") {
			t.Errorf("%q: %v", value, err)
		}
	}
	dir := t.TempDir()
	s := badgerAt(t, dir)
	if err := persistence.SetBare(s, []byte("mmark"), stored([]byte("mmark"), []byte("\xff"))); err != nil {
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

// FuzzStrangeKeys: a store that holds a row of any key, of right checksum, opens again, and
// what reads rows takes it; a check names it.
func FuzzStrangeKeys(f *testing.F) {
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
