package access

import (
	"net/netip"
	"sync"
	"time"
)

// Rate bounds attempts: so many at once, and one more per interval. Each address has
// its own bound; an IPv6 network of 64 bits counts as one address.
type Rate struct {
	burst    int
	interval time.Duration
	mu       sync.Mutex
	used     map[netip.Addr]usage
	forgot   time.Time // when all addresses were looked through last
}

// usage is how many attempts an address had used up at a moment.
type usage struct {
	n  float64
	at time.Time
}

// maxAddresses bounds what is remembered; beyond it all other addresses share one bound.
const maxAddresses = 10_000

// NewRate returns a bound of burst attempts at once and one per interval.
func NewRate(burst int, interval time.Duration) *Rate {
	return &Rate{burst: burst, interval: interval, used: map[netip.Addr]usage{}}
}

// Allow counts an attempt, and tells whether it is within the bound.
func (r *Rate) Allow(from netip.Addr, now time.Time) bool {
	if from = from.Unmap().WithZone(""); from.Is6() {
		if network, err := from.Prefix(64); err == nil {
			from = network.Addr()
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	u, known := r.used[from]
	if !known && len(r.used) >= maxAddresses {
		if r.forget(now); len(r.used) >= maxAddresses {
			from = netip.Addr{}
			u = r.used[from]
		}
	}
	u.n = r.left(u, now)
	u.at = now
	allowed := u.n+1 <= float64(r.burst)
	if allowed {
		u.n++
	}
	r.used[from] = u
	return allowed
}

// left is what still counts of former attempts.
func (r *Rate) left(u usage, now time.Time) float64 {
	return max(0, u.n-float64(now.Sub(u.at))/float64(r.interval))
}

// forget drops addresses whose attempts no longer count, at most once per interval.
func (r *Rate) forget(now time.Time) {
	if now.Sub(r.forgot) < r.interval {
		return
	}
	r.forgot = now
	for from, u := range r.used {
		if r.left(u, now) == 0 {
			delete(r.used, from)
		}
	}
}
