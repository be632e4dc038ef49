package remote

// Known is how many attempts have not been forgotten.
func (r *Remote) Known() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.entries)
}
