package commitlog_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/persistence/commitlog"
)

const maxRowsBytes = 3000

// small makes segments of 16 KiB and more, so that tests see many.
func small(fs vfs.FS) commitlog.Options {
	return commitlog.Options{FS: fs, SegmentSize: 32 << 10, MaxRowsBytes: maxRowsBytes}
}

func open(t testing.TB, dir string, fs vfs.FS) *commitlog.Log {
	t.Helper()
	l, err := commitlog.Open(dir, small(fs))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(false) })
	return l
}

// recordOf is the content of record n: a few rows of up to maxRowsBytes bytes in all.
func recordOf(n uint64) *commitlog.RecordBuilder {
	rng := rand.New(rand.NewPCG(n, 7))
	g := new(commitlog.RecordBuilder)
	g.Reset()
	for range 1 + rng.IntN(3) {
		key := fmt.Appendf(nil, "key %d", rng.IntN(20))
		if rng.IntN(4) == 0 {
			g.Delete(key)
			continue
		}
		g.Set(key, bytes.Repeat([]byte{byte(n), byte(n >> 8), byte(rng.Uint32())}, rng.IntN(300)))
	}
	return g
}

func appendAndSync(l *commitlog.Log, n uint64) error {
	if err := l.Append(n, recordOf(n)); err != nil {
		return err
	}
	return l.Sync()
}

func fill(t testing.TB, l *commitlog.Log, upto uint64) {
	t.Helper()
	for n := l.Last() + 1; n <= upto; n++ {
		if err := appendAndSync(l, n); err != nil {
			t.Fatal(err)
		}
	}
}

// contents are the numbers that Replay gives, each compared with what was written.
func contents(t testing.TB, l *commitlog.Log) (numbers []uint64) {
	t.Helper()
	if err := l.Replay(func(n uint64, b []byte) error {
		if !bytes.Equal(b, recordOf(n).Bytes()) {
			return fmt.Errorf("record %d has other rows", n)
		}
		numbers = append(numbers, n)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return numbers
}

func numbers(from, to uint64) (all []uint64) {
	for n := from; n <= to; n++ {
		all = append(all, n)
	}
	return all
}

// files are the names in a folder that match.
func files(t testing.TB, dir, pattern string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if ok, _ := filepath.Match(pattern, e.Name()); ok {
			names = append(names, e.Name())
		}
	}
	return names
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestReplayGivesUnretiredRecords: the appended records after those that were retired come back, over
// many segments, closed cleanly or not.
func TestReplayGivesUnretiredRecords(t *testing.T) {
	for _, clean := range []bool{false, true} {
		dir := filepath.Join(t.TempDir(), "log")
		want := uint64(0)
		for round := range uint64(8) {
			l := open(t, dir, nil)
			if got := contents(t, l); !slices.Equal(got, numbers(l.Applied()+1, want)) {
				t.Fatalf("round %d: %v, want %d to %d", round, got, l.Applied()+1, want)
			}
			want += 1 + round*17
			fill(t, l, want)
			if round%2 == 1 {
				must(t, l.Retire(want-round*3))
			}
			must(t, l.Close(clean))
			r, err := commitlog.Verify(vfs.OS{}, dir)
			if err != nil || r.Last != want || r.Acknowledged != want || r.Closed != clean || r.Records != int(r.Last-r.First)+1 {
				t.Fatalf("%+v, %v", r, err)
			}
		}
	}
}

// TestSegmentsAreReused: a log that is retired does not grow, and its files are
// written over.
func TestSegmentsAreReused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	f := faults.New(vfs.OS{})
	l := open(t, dir, f)
	contents(t, l)
	most := 0
	for n := uint64(1); n <= 3000; n++ {
		must(t, appendAndSync(l, n))
		if n == 1000 {
			f.Reset()
		}
		if n%20 == 0 {
			must(t, l.Retire(n-10))
			most = max(most, len(files(t, dir, "*.log")))
		}
	}
	if most > 4 || l.LiveBytes() > 64<<10 {
		t.Errorf("%d segments, %d bytes are live", most, l.LiveBytes())
	}
	for _, c := range f.Calls() {
		if c.Op == faults.Create {
			t.Fatalf("%s was made: no file is used again", c.Path)
		}
	}
	must(t, l.Close(false))
	l = open(t, dir, nil)
	if got := contents(t, l); !slices.Equal(got, numbers(2991, 3000)) {
		t.Errorf("%v", got)
	}
}

// TestSparesAreBounded: of many segments that become free at once, five files are kept, and an
// open keeps no more.
func TestSparesAreBounded(t *testing.T) {
	const most = 5
	dir := filepath.Join(t.TempDir(), "log")
	l := open(t, dir, nil)
	contents(t, l)
	last := uint64(0)
	for len(files(t, dir, "*.log")) < most+6 { // the first is smaller, the last two are in use
		last++
		must(t, appendAndSync(l, last))
	}
	must(t, l.Retire(last))
	if n := len(files(t, dir, "*.spare")); n != most {
		t.Errorf("%d files are kept, want %d", n, most)
	}
	must(t, l.Close(false))
	for n := range 3 {
		must(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("%010d.spare", 9000+n)), make([]byte, small(nil).SegmentSize), 0o600))
	}
	open(t, dir, nil)
	if n := len(files(t, dir, "*.spare")); n != most {
		t.Errorf("%d files are kept at the open, want %d", n, most)
	}
}

// TestSegmentIsMadeWhileTheLastIsFilled: zeros that went to the device at once would hold up the
// commits of that time. Retire and Close do not wait for the next segment.
func TestSegmentIsMadeWhileTheLastIsFilled(t *testing.T) {
	dir := t.TempDir()
	const segment, slice = 8 << 20, 128 << 10
	l, err := commitlog.Open(dir, commitlog.Options{SegmentSize: segment, MaxRowsBytes: 64 << 10})
	must(t, err)
	const first, next = segment / 16, segment / 4
	g := new(commitlog.RecordBuilder)
	filled := 0
	for n := uint64(1); filled < first*3/4; n++ {
		g.Reset()
		g.Set([]byte("key"), make([]byte, 10_000))
		must(t, l.Append(n, g))
		must(t, l.Sync())
		filled += 10_000
		for _, name := range files(t, dir, "*.new") {
			info, err := os.Stat(filepath.Join(dir, name))
			must(t, err)
			seen := info.Size()
			// It begins at a quarter and is there at 13/16; here are a page of the header and
			// what the records take besides their rows, so a slice more may be there.
			if allowed := int64(max(0, filled-first/4))*next/(first*9/16) + 2*slice; seen > allowed {
				t.Fatalf("%d bytes of the next segment are made when %d of %d are filled, want at most %d", seen, filled, first, allowed)
			}
		}
	}
	testenv.Eventually(t, "the next segment is being made before it is needed", func() bool {
		return len(files(t, dir, "*.new"))+len(files(t, dir, "*.log")) == 2
	})
	must(t, l.Retire(3))
	must(t, l.Close(false))
}

// TestFilesAreSyncedBeforeUse: before the first record is written to a segment, its
// content and then its name were synced.
func TestFilesAreSyncedBeforeUse(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	f := faults.New(vfs.OS{})
	l := open(t, dir, f)
	contents(t, l)
	for n := uint64(1); n <= 500; n++ {
		must(t, appendAndSync(l, n))
		if n%20 == 0 {
			must(t, l.Retire(n-5))
		}
	}
	must(t, l.Close(true))
	// A segment is written through the descriptor of its draft, so by the draft's name.
	content := map[string]bool{} // was synced since the header was written, by draft
	named := map[string]bool{}   // its new name was synced, by draft
	var renamed []string
	used := map[string]bool{}
	for _, c := range f.Calls() {
		draft := strings.HasSuffix(c.Path, ".new") || strings.HasSuffix(c.Path, ".spare")
		switch {
		case c.Op == faults.SyncDir && c.Path == dir:
			for _, path := range renamed {
				named[path] = true
			}
			renamed = nil
		case !draft:
		case c.Op == faults.Sync:
			content[c.Path] = true
		case c.Op == faults.Rename && strings.HasSuffix(c.To, ".log"):
			if !content[c.Path] {
				t.Fatalf("%s gets its name %s before it is synced", c.Path, c.To)
			}
			renamed = append(renamed, c.Path)
		case c.Op == faults.Write && content[c.Path] && c.Off > 0: // a record
			used[c.Path] = true
			if !named[c.Path] {
				t.Fatalf("a record is written to %s, whose name is not synced", c.Path)
			}
		}
	}
	if len(used) < 5 {
		t.Errorf("only %d segments were seen", len(used))
	}
}

// TestFailureIsFinal: after a failed write or sync the log does not try again.
func TestFailureIsFinal(t *testing.T) {
	for _, rule := range []faults.Rule{
		{Op: faults.Sync, Path: "*.new", N: 5},
		{Op: faults.Write, Path: "*.new", N: 9, Err: os.ErrDeadlineExceeded, Short: 100},
		{Op: faults.Write, Path: "state", N: 7},
		{Op: faults.SyncDir, N: 4},
		{Op: faults.Create, Path: "*.new", N: 3},
		{Op: faults.Rename, Path: "0000000002.log", N: 1},
	} {
		dir := filepath.Join(t.TempDir(), "log")
		f := faults.New(vfs.OS{})
		f.Add(rule)
		o := small(f)
		alarms := make(chan error, 10)
		o.Alarm = func(err error) { alarms <- err }
		l, err := commitlog.Open(dir, o)
		must(t, err)
		contents(t, l)
		n := uint64(1)
		for ; err == nil && n < 1000; n++ {
			err = appendAndSync(l, n)
		}
		if !errors.Is(err, commitlog.ErrFailed) {
			t.Fatalf("%+v: no failure: %v", rule, err)
		}
		calls := f.Calls()
		before := len(calls)
		f.Reset()
		if err := l.Sync(); !errors.Is(err, commitlog.ErrFailed) {
			t.Errorf("%+v: a sync after it: %v", rule, err)
		}
		if err := l.Append(n, recordOf(n)); !errors.Is(err, commitlog.ErrFailed) {
			t.Errorf("%+v: an append after it: %v", rule, err)
		}
		if err := l.Retire(1); !errors.Is(err, commitlog.ErrFailed) {
			t.Errorf("%+v: a retirement after it: %v", rule, err)
		}
		last := l.Last()
		l.Close(true)
		making := "" // the segment that is being filled with zeros, which goes on
		for i, c := range append(calls, f.Calls()...) {
			switch {
			case c.Op == faults.Create && strings.HasSuffix(c.Path, ".new"):
				making = c.Path
			case c.Op == faults.Rename && c.Path == making:
				making = ""
			case i < before:
			case c.Op == faults.Write && c.Off >= 4096 && c.Path != making, c.Op == faults.Sync && c.Path == filepath.Join(dir, "state"):
				t.Errorf("%+v: %s of %s after the failure", rule, c.Op, c.Path)
			}
		}
		l = open(t, dir, nil)
		if got := contents(t, l); len(got) < int(last) || len(got) > int(last)+1 {
			t.Errorf("%+v: %d records are left of %d", rule, len(got), last)
		}
	}
}

func TestOpenRefusesALogInUse(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	open(t, dir, nil)
	if _, err := commitlog.Open(dir, small(nil)); !errors.Is(err, vfs.ErrLocked) {
		t.Errorf("a second one: %v", err)
	}
}

func TestMisusePanics(t *testing.T) {
	l := open(t, filepath.Join(t.TempDir(), "log"), nil)
	contents(t, l)
	fill(t, l, 3)
	if err := l.Append(4, func() *commitlog.RecordBuilder {
		g := recordOf(4)
		g.Set([]byte("k"), make([]byte, maxRowsBytes))
		return g
	}()); err == nil || errors.Is(err, commitlog.ErrFailed) {
		t.Errorf("a record that is too long: %v", err)
	}
	panics := func(what string, fn func()) {
		t.Helper()
		defer func() {
			if recover() == nil {
				t.Errorf("%s: no panic", what)
			}
		}()
		fn()
	}
	panics("a gap", func() { _ = l.Append(5, recordOf(5)) })
	panics("the same again", func() { _ = l.Append(3, recordOf(3)) })
	panics("a second replay", func() { contents(t, l) })
	panics("what is not there is retired", func() { _ = l.Retire(9) })
	must(t, l.Append(4, recordOf(4)))
	panics("two that are not synced", func() { _ = l.Append(5, recordOf(5)) })
}

func TestRowsRoundTrip(t *testing.T) {
	var g commitlog.RecordBuilder
	if g.Bytes() != nil {
		t.Error("an empty group has rows")
	}
	g.Reset()
	g.Grow(100)
	g.Set([]byte("a"), nil)
	g.Delete([]byte("b"))
	g.Set([]byte("c"), []byte("value"))
	got := ""
	must(t, commitlog.EachRow(g.Bytes(), func(r commitlog.Row) error {
		got += fmt.Sprintf("%s %s %v;", r.Key, r.Value, r.Delete)
		return nil
	}))
	if got != "a  false;b  true;c value false;" {
		t.Error(got)
	}
	for n := range g.Bytes() {
		_ = commitlog.EachRow(g.Bytes()[:n], func(commitlog.Row) error { return nil })
	}
	if err := commitlog.EachRow(g.Bytes()[:len(g.Bytes())-1], func(commitlog.Row) error { return nil }); err == nil {
		t.Error("cut rows were taken")
	}
}
