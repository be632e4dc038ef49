package remote

import "time"

// LeavingWithin sets how long the process of a worker that ended in order may still be there.
func LeavingWithin(c *Config, d time.Duration) { c.exitGrace = d }

// Known is how many attempts have not been forgotten.
func (r *Remote) Known() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.attempts)
}
