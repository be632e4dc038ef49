package remote

import "time"

// SetExitGrace sets how long the process of a worker that ended in order may still be there.
func SetExitGrace(c *Config, d time.Duration) { c.exitGrace = d }

// SetSlowRecovery sets after how long Healthy reports the recovery of a dead worker.
func SetSlowRecovery(c *Config, d time.Duration) { c.slowRecovery = d }

// SetDetachTimeout sets how long Detach waits for workers.
func SetDetachTimeout(c *Config, d time.Duration) { c.detachTimeout = d }

// TrackedAttempts returns how many attempts have not been forgotten.
func (r *Remote) TrackedAttempts() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.attempts)
}
