package clustertls

// Recheck makes the next handshake look at the files, however soon it comes.
func Recheck(c *Credentials) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changes.Expire()
}
