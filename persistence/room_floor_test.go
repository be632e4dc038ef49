package persistence

import (
	"testing"
	"time"
)

// TestSoftFloor: new runs are refused while others still have room, and groups go on.
func TestSoftFloor(t *testing.T) {
	free := int64(0)
	r := newRoom(Config{SoftFreeFloor: func(total int64) int64 { return total / 4 }})
	r.memTable, r.now = 1<<20, func() time.Time { return time.Time{}.Add(time.Duration(free)) } // never fresh
	r.statfs = func(string) (int64, int64, error) { return free, 400 << 20, nil }
	for _, c := range []struct {
		free       int64
		soft, hard bool
	}{{101 << 20, true, true}, {99 << 20, false, true}, {1 << 20, false, false}} {
		free = c.free
		r.at, r.pausing = time.Time{}, func(time.Duration) {}
		if err := r.checkSoft(); (err == nil) != c.soft {
			t.Errorf("with %d MiB free new runs: %v", free>>20, err)
		}
		if err := r.check(0); (err == nil) != c.hard {
			t.Errorf("with %d MiB free a group: %v", free>>20, err)
		}
	}
}

// TestCommitsLookSometimes: where much is free, not each of thousands of commits a second asks
// the file system; where little is, each one does.
func TestCommitsLookSometimes(t *testing.T) {
	asked, free, now := 0, int64(1<<30), time.Unix(1000, 0)
	r := newRoom(Config{memory: 1 << 20, HardFreeBytes: 100 << 20, statfs: func(string) (int64, int64, error) { asked++; return free, 2 << 30, nil }})
	r.now = func() time.Time { now = now.Add(time.Millisecond); return now }
	check := func(want int) {
		t.Helper()
		asked = 0
		for range 60 {
			if err := r.check(1000); err != nil {
				t.Fatal(err)
			}
		}
		if asked != want {
			t.Errorf("%d of 60 commits have asked, want %d", asked, want)
		}
	}
	check(10)
	free = 150 << 20
	now = now.Add(time.Second)
	check(60)
}
