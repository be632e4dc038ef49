package outputs

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/messages"
)

// TestKeepFree: what would leave less than the reserve is refused before anything is
// written, also by appends that are under way together.
func TestKeepFree(t *testing.T) {
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
	if _, err := s.Append(key, part()); !errors.Is(err, ErrNoRoom) {
		t.Errorf("append: %v, want ErrNoRoom", err)
	}
	if _, err := s.fs.Stat(s.path(1)); err == nil {
		t.Error("a file was made")
	}
	s.KeepFree(func(int64) int64 { return free / 2 })
	if _, err := s.Append(key, part()); err != nil {
		t.Error(err)
	}
	leave, err := s.admit(free / 2) // more than is free beside the reserve, with a little more
	if err == nil {
		defer leave()
		if _, err := s.admit(free / 4); !errors.Is(err, ErrNoRoom) {
			t.Errorf("two at a time: %v", err)
		}
	}
	if n := s.pending.Load(); err != nil && n != 0 {
		t.Errorf("%d bytes are pending", n)
	}
}

// TestReserve: it leaves what the store may need at once, which is some seven times its
// memtable of 1, 4, 16 or 32 MiB and a segment, also on a small disk.
func TestReserve(t *testing.T) {
	for total, want := range map[int64]int64{20 << 20: 10 << 20, 64 << 20: 40 << 20, 400 << 20: 100 << 20, 4 << 30: 1 << 30, 1 << 40: 1280 << 20} {
		if got := Reserve(total); got != want {
			t.Errorf("of %d MiB: %d MiB, want %d", total>>20, got>>20, want>>20)
		}
	}
}
