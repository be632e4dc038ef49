package http

import (
	"context"
	"io"
	"strings"
	"testing"
)

// TestBackup: one at a time; one that fails breaks off; without any it is 404.
func TestBackup(t *testing.T) {
	refusedWith(t, serve(t, &fakeEngine{}).get("/v1/backup"), 404, "makes no backups")
	begun, goOn := make(chan struct{}), make(chan error)
	s := serve(t, &fakeEngine{}, func(c *Config) {
		c.Backup = func(ctx context.Context, w io.Writer) error {
			if _, err := io.WriteString(w, strings.Repeat("x", 100_000)); err != nil {
				return err
			}
			close(begun)
			return <-goOn
		}
	})
	first := make(chan reply, 1)
	go func() { first <- s.get("/v1/backup") }()
	<-begun
	refusedWith(t, s.get("/v1/backup"), 503, "one at a time")
	goOn <- nil
	if r := <-first; r.status != 200 || len(r.body) != 100_000 {
		t.Errorf("%d, %d bytes", r.status, len(r.body))
	}
}
