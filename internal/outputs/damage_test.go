package outputs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
)

// tryRead reads a stream from off to its end. What was read before an error is compared
// by the caller.
func (s *Store) tryRead(id ID, out messages.Output, off int64) ([]byte, error) {
	l, err := s.Log(id, out)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	var got []byte
	buf := make([]byte, 10_000)
	for {
		n, err := l.ReadAt(buf, off)
		got, off = append(got, buf[:n]...), off+int64(n)
		if err == io.EOF {
			return got, nil
		}
		if err != nil {
			return got, err
		}
	}
}

// TestEveryFlippedBitIsDetected: whichever bit of an output file changes, no read returns bytes that
// were not written. The streams that hold the bit are errors which name the file and a
// place in it; the others are as they were.
func TestEveryFlippedBitIsDetected(t *testing.T) {
	s := open(t)
	rng := rand.New(rand.NewPCG(1, 2))
	text := make([]byte, 3*blockBytes/2)
	for i := range text {
		text[i] = byte(rng.Uint32())
	}
	first := s.put(t, 1, string(text))
	second := s.put(t, 1, "second, and short")
	name := s.path(1)
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	places := []int64{0, 5, 30, headerBytes - 1, headerBytes, headerBytes + blockBytes - 1, headerBytes + blockBytes, headerBytes + blockBytes + 3,
		headerBytes + blockBytes + 4, second.Offset - 1, second.Offset, second.Offset + 8, second.Offset + headerBytes + 3, int64(len(whole)) - 1}
	for range 200 {
		places = append(places, rng.Int64N(int64(len(whole))))
	}
	for _, at := range places {
		damaged := slices.Clone(whole)
		damaged[at] ^= 1 << rng.IntN(8)
		if err := os.WriteFile(name, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		found := 0
		for _, stream := range []struct {
			out  messages.Output
			text []byte
		}{{first, text}, {second, []byte("second, and short")}} {
			got, err := s.tryRead(one(1), stream.out, 0)
			hit := at >= stream.out.Offset && at < stream.out.Offset+sectionBytes(stream.out.Size)
			var damage *DamageError
			switch {
			case !bytes.HasPrefix(stream.text, got):
				t.Fatalf("byte %d: altered bytes were read", at)
			case !hit && (err != nil || len(got) != len(stream.text)):
				t.Errorf("byte %d: the stream at %d, which is whole: %d bytes, %v", at, stream.out.Offset, len(got), err)
			case hit && (!errors.As(err, &damage) || damage.File != name || damage.Offset < stream.out.Offset || damage.Offset > at):
				t.Errorf("byte %d: the stream at %d: %v", at, stream.out.Offset, err)
			case hit:
				found++
			}
		}
		if found != 1 {
			t.Errorf("byte %d: found in %d streams", at, found)
		}
	}
	if err := os.WriteFile(name, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := s.tryRead(one(1), first, 0); err != nil || !bytes.Equal(got, text) {
		t.Errorf("the whole file: %d bytes, %v", len(got), err)
	}
}

// TestDamageAffectsOnlyItsBlock: what lies in other blocks is read, also with a cut, and Verify
// finds what a later read would.
func TestDamageAffectsOnlyItsBlock(t *testing.T) {
	s := open(t)
	kept := strings.Repeat("0123456789abcdef", 3*blockBytes/16)
	at, err := s.Append(one(1).Key, part(kept))
	if err != nil {
		t.Fatal(err)
	}
	const size = 10 * blockBytes // of which the middle is cut
	out := messages.Output{Size: size, Head: blockBytes, Tail: 2 * blockBytes, Offset: at[0]}
	f, err := os.OpenFile(s.path(1), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("X"), blockAt(at[0], 1)+100); err != nil { // the tail's first block
		t.Fatal(err)
	}
	l, err := s.Log(one(1), out)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	buf := make([]byte, 100)
	for _, off := range []int64{0, blockBytes - 100, size - blockBytes, size - 100} {
		if n, err := l.ReadAt(buf, off); n != 100 || err != nil && err != io.EOF || string(buf[:16]) != kept[off%16:off%16+16] && off%16 == 0 {
			t.Errorf("at %d: %d, %v: %q", off, n, err, buf[:16])
		}
	}
	if err := s.Damaged(); err != nil {
		t.Errorf("damaged before anything read it: %v", err)
	}
	damage := fmt.Sprintf("output file %s is damaged at offset %d: block 1 of 65536 bytes does not match its checksum (stdout of run 1, task 3, attempt 2)",
		s.path(1), blockAt(at[0], 1))
	if n, err := l.ReadAt(buf, size-2*blockBytes); n != 0 || err == nil || err.Error() != damage {
		t.Errorf("%d, %v; want %s", n, err, damage)
	}
	if err := s.Damaged(); err == nil || err.Error() != damage {
		t.Errorf("the store says %v, want %s", err, damage)
	}
	verify := l.(interface{ Verify(int64) error }).Verify
	for off, want := range map[int64]bool{0: true, blockBytes: true, size - 2*blockBytes: true, size - blockBytes - 1: true, size - blockBytes: false, size: false} {
		if err := verify(off); (err != nil) != want {
			t.Errorf("verified from %d on: %v", off, err)
		}
	}
}

// TestSectionsOfOtherAttemptsAreRefused: a file or a section in another one's place is named, though all its
// checksums are right.
func TestSectionsOfOtherAttemptsAreRefused(t *testing.T) {
	s := open(t)
	mine := s.put(t, 1, "mine")
	s.put(t, 2, "else")
	s.put(t, 2, strings.Repeat("more", 100))
	other, err := os.ReadFile(s.path(2))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.path(1), other, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		id   ID
		out  messages.Output
		want string
	}{
		{one(1), mine, "is damaged at offset 0: the bytes are stdout of run 2, task 3, attempt 2 (stdout of run 1, task 3, attempt 2)"},
		{ID{one(2).Key, messages.Stderr}, mine, "the bytes are stdout of run 2"},
		{one(2), messages.Output{Size: 3, Head: 3}, "the header has 4 bytes at offset 0, the record has 3"},
		{one(2), messages.Output{Size: 4, Head: 4, Offset: 10}, "is damaged at offset 10: the header does not match its checksum"},
		{one(2), messages.Output{Size: 4, Head: 4, Offset: 1000}, "is damaged at offset 1000: the file is too short"},
	} {
		if _, err := s.tryRead(c.id, c.out, 0); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v; want %s", err, c.want)
		}
		var seen *messages.Error
		if _, err := s.tryRead(c.id, c.out, 0); !errors.As(err, &seen) || seen.Code != messages.Damaged || seen.Text != err.Error() {
			t.Errorf("a user sees %v", seen)
		}
	}
}

func TestTruncatedFileIsDamage(t *testing.T) {
	s := open(t)
	for i, size := range []int64{0, 10, headerBytes, headerBytes + 100, blockAt(0, 1), blockAt(0, 1) + blockBytes} {
		run := messages.RunID(i)
		out := s.put(t, run, strings.Repeat("x", 2*blockBytes))
		if err := os.Truncate(s.path(run), size); err != nil {
			t.Fatal(err)
		}
		_, err := s.tryRead(one(run), out, 0)
		if want := fmt.Sprintf("output file %s is damaged at offset %d: the file is too short", s.path(run), size); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v; want %s", err, want)
		}
	}
}

func TestVerifyAndForEachRun(t *testing.T) {
	s := open(t)
	long := strings.Repeat("y", 2*blockBytes)
	refs := []Ref{{one(1), s.put(t, 1, long)}, {one(1), s.put(t, 1, "good")}, {one(1), messages.Output{Size: 2, Head: 2, Inline: []byte("in")}}, {one(1), messages.Output{}}}
	verify := func(run messages.RunID) (found []string) {
		t.Helper()
		if err := Verify(s.dir, run, slices.Values(refs), func(e *DamageError) { found = append(found, e.Error()) }); err != nil {
			t.Fatal(err)
		}
		return found
	}
	if found := verify(1); found != nil {
		t.Error(found)
	}
	f, err := os.OpenFile(s.path(1), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for block := range int64(2) {
		if _, err := f.WriteAt([]byte("z"), blockAt(0, block)); err != nil {
			t.Fatal(err)
		}
	}
	if found := verify(1); len(found) != 1 || !strings.Contains(found[0], fmt.Sprintf("at offset %d: block 0", blockAt(0, 0))) {
		t.Error(found)
	}
	if found := verify(2); len(found) != 2 || !strings.Contains(found[1], "the file is missing") {
		t.Error(found)
	}
	for _, name := range []string{"0/1.txt", "0/01.out", "0/1000.out", "stray"} {
		if err := os.WriteFile(filepath.Join(s.dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.put(t, 1000, "x")
	var runs []messages.RunID // strangers are skipped
	err = s.ForEachRun(func(run messages.RunID) error { runs = append(runs, run); return nil })
	if err != nil || !slices.Equal(runs, []messages.RunID{1, 1000}) {
		t.Errorf("%v %v", runs, err)
	}
}

// TestPowerFailure: when Append has returned, the bytes and the names that lead to them
// are on the device. The file is new, is the second one of its folder, and is old.
func TestPowerFailure(t *testing.T) {
	data := t.TempDir()
	disk, err := faults.NewDisk(data)
	if err != nil {
		t.Fatal(err)
	}
	s, err := OpenFS(disk, filepath.Join(data, "output"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i, run := range []messages.RunID{7, 8, 1008, 7} {
		text := fmt.Sprintf("output %d of run %d", i, run)
		out := s.put(t, run, text)
		left := filepath.Join(t.TempDir(), "left")
		if err := disk.PowerCut(left, nil); err != nil {
			t.Fatal(err)
		}
		after, err := Open(filepath.Join(left, "output"))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := after.tryRead(one(run), out, 0); err != nil || string(got) != text {
			t.Errorf("%q, %v; want %q", got, err, text)
		}
		after.Close()
	}
}

// TestFailedSyncOfTheNameFailsTheAppend: without it no output may be referred to.
func TestFailedSyncOfTheNameFailsTheAppend(t *testing.T) {
	for n := range 2 { // the file's folder, and the folder's
		disk := faults.New(vfs.OS{})
		s, err := OpenFS(disk, filepath.Join(t.TempDir(), "output"))
		if err != nil {
			t.Fatal(err)
		}
		disk.Add(faults.Rule{Op: faults.SyncDir, N: n + 1})
		if _, err := s.Append(one(1).Key, part("x")); !errors.Is(err, faults.ErrInjected) {
			t.Errorf("%v", err)
		}
		s.Close()
	}
}

// TestVerifyReportsUnreadableFiles: an output file that cannot be opened is damage that names it.
func TestVerifyReportsUnreadableFiles(t *testing.T) {
	for kind, spoil := range map[string]func(path string) error{
		"folder": func(path string) error { return os.Mkdir(path, 0o700) },
		"pipe":   func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"link":   func(path string) error { return os.Symlink("/etc/passwd", path) },
	} {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "0", "7.out")
			if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := spoil(path); err != nil {
				t.Fatal(err)
			}
			var found []*DamageError
			err := Verify(dir, 7, slices.Values[[]Ref](nil), func(d *DamageError) { found = append(found, d) })
			if err != nil || len(found) != 1 || found[0].File != path || !strings.Contains(found[0].Error(), "(run 7)") {
				t.Errorf("%v, %v", found, err)
			}
		})
	}
}

// TestOffsetsAndSizesAreChecked: a negative offset or size is an error. It is not damage, and changes nothing.
func TestOffsetsAndSizesAreChecked(t *testing.T) {
	s := open(t)
	id := one(1)
	for _, length := range []int64{-1, MaxKept + 1, math.MaxInt64} {
		if offsets, err := s.Append(id.Key, Part{Body: strings.NewReader("text"), Length: length}); err == nil {
			t.Errorf("%d bytes were stored at %d", length, offsets)
		}
	}
	if s.Has(id, messages.Output{Size: 4, Head: 4}) {
		t.Error("an append that was refused made a file")
	}
	offsets, err := s.Append(id.Key, Part{Body: strings.NewReader("text"), Length: 4})
	if err != nil || offsets[0] != 0 {
		t.Fatal(offsets, err)
	}
	section, err := s.OpenSection(id, messages.Output{Size: 4, Head: 4})
	if err != nil {
		t.Fatal(err)
	}
	defer section.Close()
	for _, off := range []int64{-1, -100000, math.MinInt64} {
		if n, err := section.ReadAt(make([]byte, 4), off); n != 0 || err == nil || err == io.EOF {
			t.Errorf("a read at %d: %d bytes, %v", off, n, err)
		}
		if err := section.Verify(off); err == nil {
			t.Errorf("a section is whole from %d on", off)
		}
	}
	if err := s.Damaged(); err != nil {
		t.Error(err)
	}
}
