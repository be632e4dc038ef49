package raftlog

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/internal/vfs"
)

func openTestLog(t *testing.T, files vfs.FS, fail func(error)) *logStore {
	t.Helper()
	s, err := openLog(files, t.TempDir(), 1<<20, newLibraryLogger(discardLogger()), func() int64 { return 1 }, fail)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.close() })
	return s
}

func rowsLog(index uint64) *raft.Log {
	return &raft.Log{Index: index, Term: 1, Type: raft.LogCommand, Data: encodeEntry(rowsEntry, 1, []byte("rows"))}
}

// TestLogErrorIsLatched proves that after one failed sync every write returns the error and reaches no
// file, although the disk answers again. raft-wal itself would go on. What was synced can be read.
func TestLogErrorIsLatched(t *testing.T) {
	files := faults.New(vfs.OS{})
	failures := 0
	s := openTestLog(t, files, func(error) { failures++ })
	if err := s.StoreLog(rowsLog(1)); err != nil {
		t.Fatal(err)
	}
	files.Add(faults.Rule{Op: faults.Sync, N: 1})
	if err := s.StoreLog(rowsLog(2)); !errors.Is(err, faults.ErrInjected) {
		t.Fatal(err)
	}
	files.Reset()
	for _, err := range []error{s.StoreLog(rowsLog(2)), s.StoreLogs([]*raft.Log{rowsLog(2), rowsLog(3)}), s.DeleteRange(1, 1)} {
		if !errors.Is(err, faults.ErrInjected) {
			t.Errorf("write after a failed sync: %v", err)
		}
	}
	for _, call := range files.Calls() {
		if call.Op == faults.Write || call.Op == faults.Sync {
			t.Errorf("after a failed sync: %+v", call)
		}
	}
	var log raft.Log
	if err := s.GetLog(1, &log); err != nil {
		t.Error(err)
	}
	if last, err := s.LastIndex(); err != nil || last != 1 {
		t.Errorf("last entry %d, %v", last, err)
	}
	if failures != 1 {
		t.Errorf("%d failures were reported", failures)
	}
}

// TestDamagedEntriesAreRefused proves the checks of sums: before an entry is stored, which has no effect
// on the store, and when it is read, which ends the group.
func TestDamagedEntriesAreRefused(t *testing.T) {
	failures := 0
	s := openTestLog(t, vfs.OS{}, func(error) { failures++ })
	damaged := rowsLog(1)
	damaged.Data[headerLength]++
	if err := s.StoreLog(damaged); !errors.Is(err, errBadSum) || failures > 0 {
		t.Errorf("a damaged entry is stored: %v", err)
	}
	// Past the check, as if the disk had damaged it.
	if err := s.wal.StoreLog(damaged); err != nil {
		t.Fatal(err)
	}
	var log raft.Log
	if err := s.GetLog(1, &log); !errors.Is(err, errBadSum) || failures != 1 {
		t.Errorf("a damaged entry is read: %v", err)
	}
	if err := s.GetLog(2, &log); err != raft.ErrLogNotFound || failures != 1 {
		t.Errorf("a missing entry: %v", err)
	}
}

// TestTrimStopsAtTheFloor proves that a trim leaves the entries from the floor on, and that the whole log
// can go all the same, as it does for a snapshot.
func TestTrimStopsAtTheFloor(t *testing.T) {
	s := openTestLog(t, vfs.OS{}, func(err error) { t.Error(err) })
	for i := range uint64(20) {
		if err := s.StoreLog(rowsLog(i + 1)); err != nil {
			t.Fatal(err)
		}
	}
	first := func(want uint64) {
		t.Helper()
		if got, err := s.FirstIndex(); err != nil || got != want {
			t.Errorf("first entry %d, %v; want %d", got, err, want)
		}
	}
	s.setFloor(8)
	for _, high := range []uint64{5, 12, 12} {
		if err := s.DeleteRange(1, high); err != nil {
			t.Fatal(err)
		}
	}
	first(8)
	if err := s.DeleteRange(15, 20); err != nil { // a suffix that conflicts
		t.Fatal(err)
	}
	if last, err := s.LastIndex(); err != nil || last != 14 {
		t.Errorf("last entry %d, %v", last, err)
	}
	if err := s.DeleteRange(8, 14); err != nil {
		t.Fatal(err)
	}
	first(0)
}

// TestShortenedLogIsReadableLater proves that the entries before a removed end can be read after a
// restart. raft-wal seals the last segment then, and forgets its index.
func TestShortenedLogIsReadableLater(t *testing.T) {
	dir := t.TempDir()
	open := func() *logStore {
		t.Helper()
		s, err := openLog(vfs.OS{}, dir, 1<<20, newLibraryLogger(discardLogger()), func() int64 { return 1 }, func(err error) { t.Error(err) })
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	store := func(from, to, term uint64) {
		t.Helper()
		for i := from; i <= to; i++ {
			log := rowsLog(i)
			log.Term = term
			if err := s.StoreLog(log); err != nil {
				t.Fatal(err)
			}
		}
	}
	shorten := func(from, to uint64) {
		t.Helper()
		if err := s.DeleteRange(from, to); err != nil {
			t.Fatal(err)
		}
	}
	store(1, 20, 1)
	shorten(15, 20)
	store(15, 18, 2)
	shorten(17, 18)
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	s = open()
	store(17, 19, 3)
	shorten(10, 19) // in a segment that was opened so
	store(10, 12, 4)
	s.close()
	s = open()
	defer s.close()
	if last, err := s.LastIndex(); err != nil || last != 12 {
		t.Errorf("last entry %d, %v", last, err)
	}
	for i := uint64(1); i <= 12; i++ {
		var log raft.Log
		want := uint64(1)
		if i >= 10 {
			want = 4
		}
		if err := s.GetLog(i, &log); err != nil || log.Term != want || log.Index != i {
			t.Errorf("entry %d: term %d, want %d, %v", i, log.Term, want, err)
		}
	}
}

// TestWatchClock proves that the watch's clock stands still while the process does not run.
func TestWatchClock(t *testing.T) {
	settings := DefaultSettings()
	w := newWatch(&settings)
	start := w.clock()
	now := w.lastTick
	for range 10 {
		now = now.Add(settings.Tick)
		w.advanceClock(now)
	}
	if got := time.Duration(w.clock() - start); got != 10*settings.Tick {
		t.Errorf("10 ticks of %v took %v", settings.Tick, got)
	}
	w.advanceClock(now.Add(65 * time.Second)) // SIGSTOP, SIGCONT
	if got := time.Duration(w.clock() - start); got != 12*settings.Tick {
		t.Errorf("a stop counts as %v", got-10*settings.Tick)
	}
}

// TestQueueIsNoStall proves that the watch counts from the last proposal that was applied: the oldest one
// of a long queue may be old.
func TestQueueIsNoStall(t *testing.T) {
	settings := DefaultSettings()
	w := newWatch(&settings)
	now := w.lastTick
	pass := func(d time.Duration) {
		for range d / settings.Tick {
			now = now.Add(settings.Tick)
			w.advanceClock(now)
		}
	}
	still := func(want time.Duration) {
		t.Helper()
		if got := time.Duration(w.stillFor()); got != want {
			t.Errorf("still for %v, want %v", got, want)
		}
	}
	still(0)
	w.beginFlight() // the last of the queue
	for range 10 {
		pass(time.Second)
		w.endFlight(w.beginFlight(), true)
		still(0)
	}
	pass(time.Second)
	w.endFlight(w.beginFlight(), false) // refused
	still(time.Second)
}

// TestEntries proves that an entry comes back as it was, and that any damage is found.
func TestEntries(t *testing.T) {
	data := encodeEntry(rowsEntry, 1<<40+7, []byte("some rows"))
	e, err := decodeEntry(data)
	if err != nil || e.kind != rowsEntry || e.epoch != 1<<40+7 || string(e.body) != "some rows" {
		t.Errorf("%+v, %v", e, err)
	}
	for bit := range 8 * len(data) {
		damaged := append([]byte(nil), data...)
		damaged[bit/8] ^= 1 << (bit % 8)
		if _, err := decodeEntry(damaged); err == nil {
			t.Errorf("bit %d: the damage is not found", bit)
		}
	}
	if _, err := decodeEntry(data[:headerLength-1]); err == nil {
		t.Error("a short entry is decoded")
	}
	if _, err := decodeEntry(encodeEntry(9, 1, nil)); !errors.Is(err, errUnknownEntry) {
		t.Error(err)
	}
}

// TestPowerFailure cuts the power at each sync of a log that grows over several segments and is trimmed.
// What is found later has every entry that was stored, from one of the last two trims on.
func TestPowerFailure(t *testing.T) {
	dir, cuts := t.TempDir(), t.TempDir()
	disk, err := faults.NewDisk(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := faults.New(disk)
	open := func(fsys vfs.FS, dir string) *logStore {
		t.Helper()
		s, err := openLog(fsys, dir, 2<<10, newLibraryLogger(discardLogger()), func() int64 { return 1 }, func(err error) { t.Error(err) })
		if err != nil {
			t.Fatalf("%s: %v", dir, err)
		}
		return s
	}
	var stored, trimmed, trimming uint64
	var mu sync.Mutex // raft-wal makes the next segment on a goroutine of its own
	count := 0
	rng := rand.New(rand.NewPCG(1, 2))
	cut := func(survivors *rand.Rand) {
		count++
		into := filepath.Join(cuts, strconv.Itoa(count))
		if err := disk.PowerCut(into, survivors); err != nil {
			t.Error(err)
			return
		}
		found := open(vfs.OS{}, into)
		defer found.close()
		first, _ := found.FirstIndex()
		last, _ := found.LastIndex()
		if stored > 0 && (last < stored || first != trimmed+1 && first != trimming+1) {
			t.Errorf("cut %d: entries %d to %d; %d were stored, %d trimmed, then %d", count, first, last, stored, trimmed, trimming)
		}
		for i := max(first, 1); i <= last; i++ {
			var log raft.Log
			if err := found.GetLog(i, &log); err != nil {
				t.Errorf("cut %d: %v", count, err)
			}
		}
		if err := found.StoreLog(rowsLog(last + 1)); err != nil { // the log goes on
			t.Errorf("cut %d: %v", count, err)
		}
	}
	check := func(faults.Call) {
		mu.Lock()
		defer mu.Unlock()
		cut(nil)
		cut(rng) // some of what was not synced is there
	}
	set := func(value *uint64, to uint64) {
		mu.Lock()
		*value = to
		mu.Unlock()
	}
	s := open(files, dir)
	defer s.close()
	files.Add(faults.Rule{Op: faults.Sync, Do: check})
	files.Add(faults.Rule{Op: faults.SyncDir, Do: check})
	for i := uint64(1); i <= 150; i++ {
		if err := s.StoreLog(rowsLog(i)); err != nil {
			t.Fatal(err)
		}
		set(&stored, i)
		if i%40 == 0 {
			set(&trimming, i-10)
			if err := s.DeleteRange(1, i-10); err != nil {
				t.Fatal(err)
			}
			set(&trimmed, i-10)
		}
		if i%25 == 0 { // the end is removed, and written again
			set(&stored, i-3)
			if err := s.DeleteRange(i-2, i); err != nil {
				t.Fatal(err)
			}
			for j := i - 2; j <= i; j++ {
				if err := s.StoreLog(rowsLog(j)); err != nil {
					t.Fatal(err)
				}
				set(&stored, j)
			}
		}
	}
	if count < 300 {
		t.Errorf("only %d cuts", count)
	}
}

// TestTornLastAppendOfASegment proves that a log goes on if the append that seals a segment was torn: its
// index is there, and a part of its entry is not. The entry was not acknowledged.
func TestTornLastAppendOfASegment(t *testing.T) {
	dir := t.TempDir()
	files := faults.New(vfs.OS{})
	open := func() *logStore {
		t.Helper()
		s, err := openLog(files, dir, 2<<10, newLibraryLogger(discardLogger()), func() int64 { return 1 }, func(error) {})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	files.Add(faults.Rule{Op: faults.Sync, Path: segmentListFile + ".new"}) // the process ends before the next segment
	var last uint64
	for i := uint64(1); s.StoreLog(rowsLog(i)) == nil; i++ {
		last = i
	}
	s.close()
	files.Reset()
	segments, err := filepath.Glob(filepath.Join(dir, "*.wal"))
	if err != nil || len(segments) != 1 {
		t.Fatal(segments, err)
	}
	data, err := os.ReadFile(segments[0])
	if err != nil {
		t.Fatal(err)
	}
	data[bytes.LastIndex(data, []byte("rows"))]++
	copy(data[scanSegment(data).index:], bytes.Repeat([]byte{0xff}, 8))
	if err := os.WriteFile(segments[0], data, 0o600); err != nil {
		t.Fatal(err)
	}
	s = open()
	defer s.close()
	if found, err := s.LastIndex(); err != nil || found != last-1 {
		t.Errorf("last entry %d, %v; want %d", found, err, last-1)
	}
	for i := last; i < last+100; i++ {
		if err := s.StoreLog(rowsLog(i)); err != nil {
			t.Fatal(err)
		}
	}
	for i := uint64(1); i < last+100; i++ {
		var log raft.Log
		if err := s.GetLog(i, &log); err != nil || log.Index != i {
			t.Errorf("entry %d: %d, %v", i, log.Index, err)
		}
	}
}
