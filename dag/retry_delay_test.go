package dag

import (
	"math"
	"testing"
	"time"
)

func TestRetryDelay(t *testing.T) {
	const most = time.Duration(math.MaxInt64)
	for _, c := range []struct {
		name   string
		policy RetryPolicy
		n      uint32
		want   time.Duration
	}{
		{"no interval", RetryPolicy{Backoff: 2}, 1, 0},
		{"negative interval", RetryPolicy{Interval: -1}, 1, 0},
		{"before any retry", RetryPolicy{Interval: time.Second}, 0, 0},
		{"fixed", RetryPolicy{Interval: time.Second}, 9, time.Second},
		{"factor 1", RetryPolicy{Interval: time.Second, Backoff: 1}, 9, time.Second},
		{"factor below 1", RetryPolicy{Interval: time.Second, Backoff: 0.5}, 9, time.Second},
		{"no number", RetryPolicy{Interval: time.Second, Backoff: math.NaN()}, 9, time.Second},
		{"first", RetryPolicy{Interval: time.Second, Backoff: 2}, 1, time.Second},
		{"second", RetryPolicy{Interval: time.Second, Backoff: 2}, 2, 2 * time.Second},
		{"fourth", RetryPolicy{Interval: time.Second, Backoff: 2}, 4, 8 * time.Second},
		{"fraction", RetryPolicy{Interval: time.Second, Backoff: 1.5}, 3, 2250 * time.Millisecond},
		{"capped", RetryPolicy{Interval: time.Second, Backoff: 2, MaxInterval: 5 * time.Second}, 4, 5 * time.Second},
		{"first capped", RetryPolicy{Interval: time.Second, MaxInterval: time.Millisecond}, 1, time.Millisecond},
		{"beyond int64", RetryPolicy{Interval: time.Second, Backoff: 2}, 1000, most},
		{"beyond float64", RetryPolicy{Interval: time.Second, Backoff: math.MaxFloat64}, math.MaxUint32, most},
		{"infinite, capped", RetryPolicy{Interval: time.Second, Backoff: math.Inf(1), MaxInterval: time.Hour}, 2, time.Hour},
	} {
		if got := c.policy.Delay(c.n); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestAddSaturated(t *testing.T) {
	for _, c := range [][3]int64{
		{1, 2, 3},
		{math.MaxInt64 - 1, 1, math.MaxInt64},
		{math.MaxInt64 - 1, 2, math.MaxInt64},
		{1, math.MaxInt64, math.MaxInt64},
		{-5, math.MaxInt64, math.MaxInt64 - 5},
	} {
		if got := addSaturated(c[0], c[1]); got != c[2] {
			t.Errorf("addSaturated(%d, %d) = %d, want %d", c[0], c[1], got, c[2])
		}
	}
}
