package dag

import (
	"math"
	"time"
)

// Delay returns how long a task waits before its n-th retry (1, 2, …):
// Interval * Backoff^(n-1), at most MaxInterval where that is set. It never
// overflows and is never negative.
func (p RetryPolicy) Delay(n uint32) time.Duration {
	if p.Interval <= 0 || n == 0 {
		return 0
	}
	delay := p.Interval
	if p.Backoff > 1 && n > 1 {
		f := float64(p.Interval) * math.Pow(p.Backoff, float64(n-1))
		delay = math.MaxInt64
		if f < math.MaxInt64 {
			delay = time.Duration(f)
		}
	}
	if p.MaxInterval > 0 {
		delay = min(delay, p.MaxInterval)
	}
	return delay
}

// addSaturated adds a duration (ns, not negative) to a time without overflow.
func addSaturated(at, d int64) int64 {
	if at > math.MaxInt64-d {
		return math.MaxInt64
	}
	return at + d
}
