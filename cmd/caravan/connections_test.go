package main

import "testing"

func TestConnectionsWithin(t *testing.T) {
	for descriptors, want := range map[uint64]int{0: 8, 64: 8, 256: 64, 1024: 308, 20_000: 7591, 1 << 63: 419021} {
		got := connectionsWithin(descriptors)
		if got != want {
			t.Errorf("%d descriptors: %d connections, want %d", descriptors, got, want)
		}
		if got > 8 && uint64(got+got/4)*2+minReserved > descriptors {
			t.Errorf("%d descriptors: %d connections leave fewer than %d", descriptors, got, minReserved)
		}
	}
}
