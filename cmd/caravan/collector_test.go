package main

import (
	"runtime"
	"runtime/debug"
	"testing"
)

// percent is what the runtime's collector is set to.
func percent() int {
	p := debug.SetGCPercent(100)
	debug.SetGCPercent(p)
	return p
}

func TestCollectorSpares(t *testing.T) {
	for _, before := range []int{150, spareGarbage - 1, -1} {
		own := debug.SetGCPercent(before)
		want := spareGarbage
		if before >= 0 {
			want = min(before, spareGarbage)
		}
		c := newCollector(0)
		if got := percent(); got != before {
			t.Errorf("from %d: %d percent at first", before, got)
		}
		first, second := c.spare(), c.spare()
		if got := percent(); got != want {
			t.Errorf("from %d: %d percent, want %d", before, got, want)
		}
		first()
		if got := percent(); got != want {
			t.Errorf("from %d, with one user left: %d percent, want %d", before, got, want)
		}
		second()
		if got := percent(); got != before {
			t.Errorf("from %d: %d percent afterwards", before, got)
		}
		debug.SetGCPercent(own)
	}
}

// TestCollectorKeepsTheFloor: a small heap grows to the floor, a large one by percent.
func TestCollectorKeepsTheFloor(t *testing.T) {
	own := debug.SetGCPercent(150)
	t.Cleanup(func() { debug.SetGCPercent(own) })
	c := &collector{floor: 200 << 20, usual: 150, now: 150}
	for _, tc := range []struct {
		live int64
		want int
	}{{40 << 20, 400}, {41 << 20, 400}, {50 << 20, 300}, {80 << 20, 150}, {1 << 30, 150}, {40 << 20, 400}} {
		c.collected(tc.live)
		if got := percent(); got != tc.want {
			t.Errorf("%d MiB live: %d percent, want %d", tc.live>>20, got, tc.want)
		}
	}
	end := c.spare()
	if got := percent(); got != spareGarbage {
		t.Errorf("while somebody asks for less: %d percent", got)
	}
	end()
	if got := percent(); got != 400 {
		t.Errorf("afterwards: %d percent", got)
	}
}

// TestCollectorFollows: it learns what lives from the runtime, after each collection.
func TestCollectorFollows(t *testing.T) {
	own := debug.SetGCPercent(150)
	t.Cleanup(func() { debug.SetGCPercent(own) })
	c := newCollector(1 << 40)
	for percent() == 150 {
		runtime.GC()
	}
	c.mu.Lock()
	c.floor = 0
	c.mu.Unlock()
	for percent() != 150 {
		runtime.GC()
	}
}
