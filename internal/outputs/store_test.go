package outputs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
)

func TestMain(m *testing.M) { testenv.VerifyNoLeaks(m) }

func open(t testing.TB) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "a", "output"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if len(s.files) != 0 || s.idle.Len() != 0 {
			t.Errorf("%d files are open after Close, %d idle", len(s.files), s.idle.Len())
		}
	})
	return s
}

// one is the stream that tests write to a run's file.
func one(run messages.RunID) ID { return ID{Key: messages.AttemptKey{Run: run, Task: 3, Attempt: 2}} }

// part is a stdout of a text.
func part(text string) Part {
	return Part{Stream: messages.Stdout, Body: strings.NewReader(text), Length: int64(len(text))}
}

// put writes the text and returns its Output, uncut.
func (s *Store) put(t testing.TB, run messages.RunID, text string) messages.Output {
	t.Helper()
	at, err := s.Append(one(run).Key, part(text))
	if err != nil {
		t.Fatal(err)
	}
	return messages.Output{Size: int64(len(text)), Head: int64(len(text)), Offset: at[0]}
}

// get reads a stream as a client would, in pieces, with "<cut>" for what is not kept.
func (s *Store) get(t testing.TB, run messages.RunID, out messages.Output, piece int) string {
	t.Helper()
	l, err := s.Log(one(run), out)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var b strings.Builder
	buf := make([]byte, piece)
	for off := int64(0); ; {
		n, err := l.ReadAt(buf, off)
		b.Write(buf[:n])
		off += int64(n)
		switch err {
		case nil:
		case io.EOF:
			return b.String()
		case messages.ErrCut:
			b.WriteString("<cut>")
			off = l.Kept(off)
		default:
			t.Fatalf("at %d: %v", off, err)
		}
	}
}

func TestAppendedPartsAreReadBack(t *testing.T) {
	s := open(t)
	a := s.put(t, 12345, "first")
	b := s.put(t, 12345, "second")
	other := s.put(t, 3, "third")
	if a.Offset != 0 || b.Offset != sectionBytes(5) || other.Offset != 0 {
		t.Errorf("offsets %d %d %d", a.Offset, b.Offset, other.Offset)
	}
	for _, c := range []struct {
		run  messages.RunID
		out  messages.Output
		text string
	}{{12345, a, "first"}, {12345, b, "second"}, {3, other, "third"}} {
		for _, piece := range []int{1, 3, 100} {
			if got := s.get(t, c.run, c.out, piece); got != c.text {
				t.Errorf("%q, want %q", got, c.text)
			}
		}
	}
	st, err := os.Stat(filepath.Join(s.dir, "12", "12345.out"))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st, err)
	}
	if st, err := os.Stat(s.dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("%v %v", st, err)
	}
}

func TestReopenedStoreAppendsAtTheEnd(t *testing.T) {
	s := open(t)
	a := s.put(t, 1, "before")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Open(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	b := again.put(t, 1, "after")
	if got := again.get(t, 1, a, 9) + again.get(t, 1, b, 9); got != "beforeafter" || b.Offset != sectionBytes(6) {
		t.Errorf("%q at %d", got, b.Offset)
	}
}

func TestLogOfTruncatedOutput(t *testing.T) {
	s := open(t)
	at, err := s.Append(one(1).Key, part("HEADtail!"))
	if err != nil {
		t.Fatal(err)
	}
	inFile := messages.Output{Size: 100, Head: 4, Tail: 5, Offset: at[0]}
	inline := messages.Output{Size: 100, Head: 4, Tail: 5, Inline: []byte("HEADtail!")}
	for name, out := range map[string]messages.Output{"file": inFile, "inline": inline} {
		for _, piece := range []int{1, 2, 1000} {
			if got := s.get(t, 1, out, piece); got != "HEAD<cut>tail!" {
				t.Errorf("%s: %q", name, got)
			}
		}
		l, err := s.Log(one(1), out)
		if err != nil {
			t.Fatal(err)
		}
		if l.Size() != 100 || l.Live() {
			t.Errorf("%s: size %d, live %t", name, l.Size(), l.Live())
		}
		for off, want := range map[int64]int64{-3: 0, 0: 0, 3: 3, 4: 95, 50: 95, 94: 95, 95: 95, 99: 99, 100: 100, 500: 100} {
			if got := l.Kept(off); got != want {
				t.Errorf("%s: kept from %d: %d, want %d", name, off, got, want)
			}
		}
		buf := make([]byte, 10)
		for _, c := range []struct {
			off  int64
			text string
			err  error
		}{
			{2, "AD", nil}, {4, "", messages.ErrCut}, {94, "", messages.ErrCut}, {97, "il!", io.EOF}, {100, "", io.EOF}, {900, "", io.EOF},
		} {
			if n, err := l.ReadAt(buf, c.off); string(buf[:n]) != c.text || err != c.err {
				t.Errorf("%s: at %d: %q %v, want %q %v", name, c.off, buf[:n], err, c.text, c.err)
			}
		}
		for range 2 {
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestLogWithoutBytes(t *testing.T) {
	s := open(t)
	if got := s.get(t, 77, messages.Output{}, 10); got != "" {
		t.Errorf("%q", got)
	}
	var damage *DamageError
	if _, err := s.Log(one(77), messages.Output{Size: 5, Head: 5}); !errors.As(err, &damage) || damage.File != s.path(77) || damage.Reason != "the file is missing" {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(s.path(77)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("reading made a file: %v", err)
	}
}

// Many appends at once, to few runs and to more runs than files stay open: each
// reads back what it wrote.
func TestConcurrentAppendsDoNotOverlap(t *testing.T) {
	s := open(t)
	const writers, each = 8, 30
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 1))
			for i := range each {
				run := messages.RunID(rng.IntN(3))
				if i%2 == 0 {
					run = messages.RunID(rng.IntN(2 * maxOpen))
				}
				text := strings.Repeat(fmt.Sprintf("%d-%d,", w, i), 1+rng.IntN(3000))
				out := s.put(t, run, text)
				if got := s.get(t, run, out, 4096); got != text {
					t.Errorf("run %d: %d bytes read, %d written", run, len(got), len(text))
				}
			}
		})
	}
	wg.Wait()
	if len(s.files) > maxOpen {
		t.Errorf("%d files are open", len(s.files))
	}
}

func TestAppendOfManyBlocks(t *testing.T) {
	s := open(t)
	text := bytes.Repeat([]byte("0123456789abcde\n"), len(sectionBuffer{})/8)
	at, err := s.Append(one(1).Key, Part{Length: int64(len(text)), Body: io.MultiReader(
		bytes.NewReader(text[:1000]), io.NewSectionReader(bytes.NewReader(text), 1000, int64(len(text))-1000))})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.get(t, 1, messages.Output{Size: int64(len(text)), Head: int64(len(text)), Offset: at[0]}, 1<<20); got != string(text) {
		t.Error("read something else")
	}
}

func TestPartsWithAWrongLength(t *testing.T) {
	s := open(t)
	short := part("short")
	short.Length = 100
	if _, err := s.Append(one(1).Key, short); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%v", err)
	}
	if a := s.put(t, 1, "next"); a.Offset != 0 || s.get(t, 1, a, 9) != "next" {
		t.Errorf("at %d", a.Offset)
	}
	long := part("longer")
	long.Length = 4
	at, err := s.Append(one(1).Key, long)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.get(t, 1, messages.Output{Size: 4, Head: 4, Offset: at[0]}, 9); got != "long" {
		t.Errorf("%q", got)
	}
	if _, err := s.Append(one(1).Key, Part{Body: iotest.ErrReader(iotest.ErrTimeout), Length: 1}); !errors.Is(err, iotest.ErrTimeout) || !strings.Contains(err.Error(), "run 1") {
		t.Errorf("%v", err)
	}
}

func TestRemoveLeavesOpenLogsReadable(t *testing.T) {
	s := open(t)
	out := s.put(t, 1, "text")
	l, err := s.Log(one(1), out)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // a file in use, no file
		if err := s.Remove(1); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Log(one(1), out); err == nil || !strings.Contains(err.Error(), "the file is missing") {
		t.Errorf("%v", err)
	}
	buf := make([]byte, 4)
	if _, err := l.ReadAt(buf, 0); err != nil || string(buf) != "text" {
		t.Errorf("a reader of the removed file: %q %v", buf, err)
	}
	l.Close()
	s.put(t, 2, "x")
	if err := s.Remove(2); err != nil { // an idle file
		t.Fatal(err)
	}
	if again := s.put(t, 1, "new"); again.Offset != 0 || s.get(t, 1, again, 9) != "new" {
		t.Errorf("%+v", again)
	}
}

func TestClosedStoreRefusesWork(t *testing.T) {
	s := open(t)
	out := s.put(t, 1, "text")
	l, err := s.Log(one(1), out)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Append(one(1).Key, part("x")); err != ErrClosed {
		t.Errorf("%v", err)
	}
	if _, err := s.Log(one(1), out); err != ErrClosed {
		t.Errorf("%v", err)
	}
	buf := make([]byte, 4)
	if _, err := l.ReadAt(buf, 0); err != nil || string(buf) != "text" {
		t.Errorf("an open reader: %q %v", buf, err)
	}
	l.Close()
	if len(s.files) != 0 {
		t.Error("the last user left the file open")
	}
}

// Where nothing can be written Append says so, and goes on once it can.
func TestUnwritableFolderIsAnError(t *testing.T) {
	s := open(t)
	if err := os.WriteFile(filepath.Join(s.dir, "0"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Append(one(7).Key, part("x")); err == nil || !strings.Contains(err.Error(), "output of run 7") {
		t.Errorf("%v", err)
	}
	if err := s.Remove(7); err == nil {
		t.Error("removed from a folder that is none")
	}
	os.Remove(filepath.Join(s.dir, "0"))
	s.put(t, 7, "x")
	// A file that takes nothing.
	f, err := s.acquire(7, true)
	if err != nil {
		t.Fatal(err)
	}
	good := f.f
	f.f, err = s.fs.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Append(one(7).Key, part("lost")); err == nil || !strings.Contains(err.Error(), "output of run 7") {
		t.Errorf("%v", err)
	}
	f.f.Close()
	f.f = good
	s.release(f)
	if out := s.put(t, 7, "kept"); out.Offset != sectionBytes(1) || s.get(t, 7, out, 10) != "kept" {
		t.Errorf("%+v", out)
	}
	if _, err := Open(filepath.Join(s.path(7), "x")); err == nil {
		t.Error("a folder under a file was opened")
	}
}

// A file whose sync has failed once takes nothing any more: what the kernel dropped is
// not known.
func TestFailedSyncIsFinal(t *testing.T) {
	disk := faults.New(vfs.OS{})
	s, err := OpenFS(disk, filepath.Join(t.TempDir(), "output"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	disk.Add(faults.Rule{Op: faults.Sync, N: 1, Err: unix.EIO})
	for range 2 {
		if _, err := s.Append(one(1).Key, part("x")); !errors.Is(err, unix.EIO) {
			t.Errorf("%v", err)
		}
	}
}

// TestKeepFreeRefusesAppends: what would leave less than the reserve is refused before anything is
// written, also by appends that are under way together.
func TestKeepFreeRefusesAppends(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	free := int64(st.Bavail) * st.Bsize
	key := messages.AttemptKey{Run: 1, Task: 1, Attempt: 1}
	part := func() Part { return Part{Stream: messages.Stdout, Length: 5, Body: strings.NewReader("hello")} }
	s.KeepFree(func(int64) int64 { return 2 * free })
	if _, err := s.Append(key, part()); !errors.Is(err, ErrDiskNearlyFull) {
		t.Errorf("append: %v, want ErrNoRoom", err)
	}
	if _, err := s.fs.Stat(s.path(1)); err == nil {
		t.Error("a file was made")
	}
	s.KeepFree(func(int64) int64 { return free / 2 })
	if _, err := s.Append(key, part()); err != nil {
		t.Error(err)
	}
	leave, err := s.admitAppend(free / 2) // more than is free beside the reserve, with a little more
	if err == nil {
		defer leave()
		if _, err := s.admitAppend(free / 4); !errors.Is(err, ErrDiskNearlyFull) {
			t.Errorf("two at a time: %v", err)
		}
	}
	if n := s.pending.Load(); err != nil && n != 0 {
		t.Errorf("%d bytes are pending", n)
	}
}

// TestJournalReserveGrowsWithTheDisk: it leaves what the store may need at once, which is some seven times its
// memtable of 1, 4, 16 or 32 MiB and a segment, also on a small disk.
func TestJournalReserveGrowsWithTheDisk(t *testing.T) {
	for total, want := range map[int64]int64{20 << 20: 10 << 20, 64 << 20: 40 << 20, 400 << 20: 100 << 20, 4 << 30: 1 << 30, 1 << 40: 1280 << 20} {
		if got := JournalReserve(total); got != want {
			t.Errorf("of %d MiB: %d MiB, want %d", total>>20, got>>20, want>>20)
		}
	}
}

// TestTwoStoresAppendToOneFile is two processes as far as the kernel's locks go: each
// store has its own open file.
func TestTwoStoresAppendToOneFile(t *testing.T) {
	dir := t.TempDir()
	type kept struct {
		at   int64
		body []byte
	}
	var mu sync.Mutex
	var all []kept
	var wg sync.WaitGroup
	for writer := range 4 {
		s, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		wg.Go(func() {
			for i := range 20 {
				body := bytes.Repeat([]byte{byte('a' + writer)}, 1000+i*writer)
				at, err := s.Append(one(1).Key, Part{Body: bytes.NewReader(body), Length: int64(len(body))})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				all = append(all, kept{at[0], body})
				mu.Unlock()
				if i%5 == 0 {
					s.CloseIdle()
				}
			}
		})
	}
	wg.Wait()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, k := range all {
		log, err := s.Log(one(1), messages.Output{Size: int64(len(k.body)), Head: int64(len(k.body)), Offset: k.at})
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(k.body))
		if _, err := log.ReadAt(got, 0); err != nil && err.Error() != "EOF" || !bytes.Equal(got, k.body) {
			t.Errorf("at %d: %d bytes of %q are not what was written: %v", k.at, len(k.body), k.body[0], err)
		}
		log.Close()
	}
}
