package persistence

import (
	"testing"
	"time"
)

// TestSoftFloor: new runs are refused while others still have room, and groups go on.
func TestSoftFloor(t *testing.T) {
	free := int64(0)
	r := newRoom(Config{SoftFloor: func(total int64) int64 { return total / 4 }})
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
