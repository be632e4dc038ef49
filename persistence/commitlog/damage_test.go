package commitlog_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	iofs "io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/persistence/commitlog"
)

// copyOf copies the files of a log.
func copyOf(t testing.TB, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "log")
	must(t, os.CopyFS(to, os.DirFS(dir)))
	return to
}

// scanLog opens what may be damaged, and returns what it has, or the error.
func scanLog(t testing.TB, dir string) ([]uint64, error) {
	t.Helper()
	l, err := commitlog.Open(dir, small(nil))
	if err != nil {
		return nil, err
	}
	defer l.Close(false)
	return contents(t, l), nil
}

// makeLog makes a log of a few segments, some of them used again, with records 1..last. Records after
// applied must be there.
func makeLog(t testing.TB, last, applied uint64, clean bool) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "log")
	l := open(t, dir, nil)
	contents(t, l)
	for n := uint64(1); n <= last; n++ {
		must(t, appendAndSync(l, n))
		if n%10 == 0 && n <= applied {
			must(t, l.Retire(n))
		}
	}
	must(t, l.Close(clean))
	return dir
}

// TestEveryDamagedByteIsFound damages each byte of a small log (with -short some of them) in turn. Each
// damage is refused, with the file and an offset that is not after it, or it loses no record. That
// holds for the log of a killed process, too: the log knows what it has acknowledged.
func TestEveryDamagedByteIsFound(t *testing.T) {
	for _, clean := range []bool{true, false} {
		dir := makeLog(t, 40, 30, clean)
		want, err := scanLog(t, copyOf(t, dir))
		if err != nil || !slices.Equal(want, numbers(31, 40)) {
			t.Fatalf("%v, %v", want, err)
		}
		refused, harmless := map[string]int{}, map[string]int{}
		for _, name := range append(files(t, dir, "*.log"), "state") {
			whole, err := os.ReadFile(filepath.Join(dir, name))
			must(t, err)
			to := copyOf(t, dir)
			path := filepath.Join(to, name)
			file, err := os.OpenFile(path, os.O_RDWR, 0)
			must(t, err)
			defer file.Close()
			end := len(bytes.TrimRight(whole, "\x00"))
			for i := 0; i < len(whole); i += sample(23) {
				if i > end+64 && i%97 != 0 { // the log has not written there
					continue
				}
				_, err := file.WriteAt([]byte{whole[i] ^ 1<<(i%8)}, int64(i))
				must(t, err)
				var found *commitlog.DamageError
				r, err := commitlog.Verify(vfs.OS{}, to)
				switch {
				case err == nil:
					harmless[name]++
					if r.Last != 40 || r.First > 31 {
						t.Fatalf("clean %v: %s, byte %d: %+v", clean, name, i, r)
					}
				case errors.As(err, &found):
					refused[name]++
					if found.File != path || found.Offset > int64(i) {
						t.Fatalf("clean %v: %s, byte %d: %v", clean, name, i, err)
					}
				default:
					t.Fatalf("clean %v: %s, byte %d: %v", clean, name, i, err)
				}
				_, err = file.WriteAt(whole[i:i+1], int64(i))
				must(t, err)
			}
		}
		t.Logf("clean %v: refused %v, harmless %v", clean, refused, harmless)
		for _, name := range files(t, dir, "*.log")[:1] {
			if refused[name] < 4<<10/sample(23) {
				t.Errorf("%s: %d damages were refused", name, refused[name])
			}
		}
		if refused["state"] != 0 { // all is there twice
			t.Errorf("the state: %d refused", refused["state"])
		}
	}
}

// sample is 1, or n with -short: one of so many cases is tried.
func sample(n int) int {
	if testing.Short() {
		return n
	}
	return 1
}

// TestDamagedSectorsAreFound: zeroed and strange sectors, and cut files.
func TestDamagedSectorsAreFound(t *testing.T) {
	dir := makeLog(t, 200, 0, false)
	rng := rand.New(rand.NewPCG(3, 4))
	names := append(files(t, dir, "*.log"), "state")
	refused := 0
	for round := range 300 / sample(10) {
		to := copyOf(t, dir)
		name := names[rng.IntN(len(names))]
		path := filepath.Join(to, name)
		b, err := os.ReadFile(path)
		must(t, err)
		at := rng.IntN(len(b)/512) * 512
		switch round % 3 {
		case 0:
			clear(b[at:min(len(b), at+512<<rng.IntN(6))])
		case 1:
			for i := at; i < at+512; i++ {
				b[i] = byte(rng.Uint32())
			}
		case 2:
			b = b[:at]
		}
		must(t, os.WriteFile(path, b, 0o600))
		got, err := scanLog(t, to)
		var found *commitlog.DamageError
		switch {
		case errors.As(err, &found):
			refused++
			if found.File != path {
				t.Fatalf("%s at %d: %v", name, at, err)
			}
		case err != nil || !slices.Equal(got, numbers(1, 200)):
			t.Fatalf("round %d: %s at %d: %d records, %v", round, name, at, len(got), err)
		}
	}
	if refused < 150/sample(10) {
		t.Errorf("only %d of %d were refused", refused, 300/sample(10))
	}
}

func TestMissingAndForeignFilesAreFound(t *testing.T) {
	dir := makeLog(t, 200, 0, false)
	other := makeLog(t, 200, 0, false)
	names := files(t, dir, "*.log")
	if len(names) < 4 {
		t.Fatalf("%d segments", len(names))
	}
	refuse := func(what, path string, change func(to string) error) {
		t.Helper()
		to := copyOf(t, dir)
		must(t, change(to))
		_, err := scanLog(t, to)
		var found *commitlog.DamageError
		if !errors.As(err, &found) || filepath.Base(found.File) != path {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, name := range names[:len(names)-1] {
		refuse("without "+name, name, func(to string) error { return os.Remove(filepath.Join(to, name)) })
	}
	refuse("without the last ones", names[len(names)-3], func(to string) error {
		return errors.Join(os.Remove(filepath.Join(to, names[len(names)-1])), os.Remove(filepath.Join(to, names[len(names)-2])))
	})
	last := names[len(names)-2]
	refuse("with a foreign segment", last, func(to string) error {
		b, err := os.ReadFile(filepath.Join(other, last))
		return errors.Join(err, os.WriteFile(filepath.Join(to, last), b, 0o600))
	})
	refuse("with a segment twice", names[1], func(to string) error {
		b, err := os.ReadFile(filepath.Join(to, names[2]))
		return errors.Join(err, os.WriteFile(filepath.Join(to, names[1]), b, 0o600))
	})
	refuse("without a state", "state", func(to string) error { return os.Remove(filepath.Join(to, "state")) })
	refuse("with a foreign state", names[0], func(to string) error {
		b, err := os.ReadFile(filepath.Join(other, "state"))
		return errors.Join(err, os.WriteFile(filepath.Join(to, "state"), b, 0o600))
	})
	refuse("without any segment", "0000000001.log", func(to string) error {
		for _, name := range names {
			must(t, os.Remove(filepath.Join(to, name)))
		}
		return nil
	})
	if _, err := commitlog.Verify(vfs.OS{}, t.TempDir()); !errors.Is(err, iofs.ErrNotExist) {
		t.Errorf("no log: %v", err)
	}
}

// TestOtherFormatIsNotDamage: a program that is too old, or too new, for a log says so. It does not take
// the log for damaged, which would invite its user to salvage it.
func TestOtherFormatIsNotDamage(t *testing.T) {
	dir := makeLog(t, 20, 0, false)
	castagnoli := crc32.MakeTable(crc32.Castagnoli)
	seal := func(b []byte) { // with the checksum in the last four bytes
		binary.LittleEndian.PutUint32(b[8:], 9)
		binary.LittleEndian.PutUint32(b[len(b)-4:], crc32.Checksum(b[:len(b)-4], castagnoli))
	}
	for name, change := range map[string]func(b []byte){
		"state": func(b []byte) {
			seal(b[:60])
			seal(b[4096 : 4096+60])
		},
		"0000000001.log": func(b []byte) { seal(b[:4096]) },
	} {
		to := copyOf(t, dir)
		path := filepath.Join(to, name)
		b, err := os.ReadFile(path)
		must(t, err)
		change(b)
		must(t, os.WriteFile(path, b, 0o600))
		_, err = commitlog.Verify(vfs.OS{}, to)
		var found *commitlog.DamageError
		if err == nil || errors.As(err, &found) || !strings.Contains(err.Error(), path+": format 9, this program reads format 1") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestReplayGivesRecordsBeforeDamage: what lies before the damage can be had.
func TestReplayGivesRecordsBeforeDamage(t *testing.T) {
	dir := makeLog(t, 100, 0, false)
	name := filepath.Join(dir, files(t, dir, "*.log")[1])
	b, err := os.ReadFile(name)
	must(t, err)
	b[len(b)/2] ^= 1
	must(t, os.WriteFile(name, b, 0o600))
	last := uint64(0)
	err = commitlog.Replay(vfs.OS{}, dir, func(n uint64, _ []byte) error { last = n; return nil })
	var found *commitlog.DamageError
	if !errors.As(err, &found) || !strings.Contains(err.Error(), fmt.Sprint("record ", last+1, " is damaged")) {
		t.Errorf("up to %d, then %v", last, err)
	}
}

// TestTornTailIsCut: each way to cut the record that was under way is a torn tail, and what
// comes later is written over it.
func TestTornTailIsCut(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	f := faults.New(vfs.OS{})
	l := open(t, dir, f)
	contents(t, l)
	fill(t, l, 20)
	f.Add(faults.Rule{Op: faults.Sync, Path: "0000*.new"})
	if err := appendAndSync(l, 21); err == nil {
		t.Fatal("no failure")
	}
	l.Close(false)
	name := files(t, dir, "*.log")[0]
	for _, n := range files(t, dir, "*.log") {
		if b, _ := os.ReadFile(filepath.Join(dir, n)); len(b) > 0 && slices.ContainsFunc(b[4096:], func(c byte) bool { return c != 0 }) {
			name = n
		}
	}
	r, err := commitlog.Verify(vfs.OS{}, dir)
	if err != nil || r.Last != 21 || r.Acknowledged != 20 {
		t.Fatalf("%+v, %v", r, err)
	}
	whole, err := os.ReadFile(filepath.Join(dir, name))
	must(t, err)
	end := len(whole)
	for whole[end-1] == 0 {
		end--
	}
	for cut := 1; cut < len(recordOf(21).Bytes()); cut += 41 {
		to := copyOf(t, dir)
		b := slices.Clone(whole)
		clear(b[end-cut : end])
		must(t, os.WriteFile(filepath.Join(to, name), b, 0o600))
		got, err := scanLog(t, to)
		if err != nil || !slices.Equal(got, numbers(1, 20)) && !slices.Equal(got, numbers(1, 21)) {
			t.Fatalf("%d bytes are missing: %v, %v", cut, got, err)
		}
		l := open(t, to, nil)
		contents(t, l)
		fill(t, l, 30)
		must(t, l.Close(false))
		if got, err := scanLog(t, to); err != nil || !slices.Equal(got, numbers(1, 30)) {
			t.Fatalf("after a cut of %d bytes: %v, %v", cut, got, err)
		}
	}
}

// FuzzOpen: whatever lies in the files, opening ends, and what it takes is what was
// written.
func FuzzOpen(f *testing.F) {
	dir := makeLog(f, 25, 0, false)
	names := append(files(f, dir, "*.log"), "state")
	f.Add(uint8(0), uint16(4096), []byte("bytes"))
	f.Add(uint8(1), uint16(4100), []byte{0, 0, 0, 0})
	f.Add(uint8(9), uint16(16), []byte{1})
	f.Fuzz(func(t *testing.T, file uint8, at uint16, change []byte) {
		to := copyOf(t, dir)
		path := filepath.Join(to, names[int(file)%len(names)])
		b, err := os.ReadFile(path)
		must(t, err)
		changed := copy(b[int(at)%len(b):], change)
		must(t, os.WriteFile(path, b, 0o600))
		got, err := scanLog(t, to)
		if err == nil && !slices.Equal(got, numbers(1, 25)) {
			t.Errorf("%d bytes at %d of %s: %v", changed, at, path, got)
		}
	})
}

// FuzzRows: whatever is given, decoding ends.
func FuzzRows(f *testing.F) {
	f.Add(recordOf(1).Bytes())
	f.Add([]byte{1, 1, 'k', 200})
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		if err := commitlog.EachRow(b, func(r commitlog.Row) error { n += len(r.Key) + len(r.Value); return nil }); err == nil && n > len(b) {
			t.Errorf("%d bytes of rows in %d", n, len(b))
		}
	})
}

// TestMissingOnlySegmentIsFound: the file that had all records is gone, and the prepared one after it is
// there. The refusal names the missing one.
func TestMissingOnlySegmentIsFound(t *testing.T) {
	for _, clean := range []bool{true, false} {
		last := uint64(1)
		dir := makeLog(t, last, 0, clean)
		for len(files(t, dir, "*.log")) < 2 { // until a second one is prepared
			last++
			dir = makeLog(t, last, 0, clean)
		}
		must(t, os.Remove(filepath.Join(dir, "0000000001.log")))
		_, err := scanLog(t, dir)
		var damage *commitlog.DamageError
		if !errors.As(err, &damage) || filepath.Base(damage.File) != "0000000001.log" || !strings.Contains(err.Error(), "0000000002.log") {
			t.Errorf("%d records, closed cleanly %v: %v", last, clean, err)
		}
	}
}
