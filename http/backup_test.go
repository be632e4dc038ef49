package http

import (
	"context"
	"io"
	"strings"
	"testing"
)

// TestBackup: one at a time; one that fails breaks off; without any it is 404.
func TestBackup(t *testing.T) {
	refusedWith(t, serve(t, &fakeEngine{}).get("/v1/backup"), 404, "does not make backups")
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
	refusedWith(t, s.get("/v1/backup"), 503, "another backup")
	goOn <- nil
	if r := <-first; r.status != 200 || len(r.body) != 100_000 {
		t.Errorf("%d, %d bytes", r.status, len(r.body))
	}
}

// TestNoPageMakesABrowserSaveABackup: a page can have its window open any address. What a
// browser saves or reads without end is refused then; a document is shown.
func TestNoPageMakesABrowserSaveABackup(t *testing.T) {
	e := seedEngine(t)
	e.feed = newFakeFeed()
	close(e.feed.news) // streams end at once
	close(e.feed.runs)
	made := 0
	s := serve(t, e, func(c *Config) {
		c.Backup = func(_ context.Context, w io.Writer) error {
			made++
			_, err := io.WriteString(w, "all")
			return err
		}
	})
	open := func(target, site string) reply {
		return s.do("GET", target, "", "Sec-Fetch-Site: "+site, "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document", "Accept: text/html,*/*;q=0.8")
	}
	bulk := map[string]string{}
	for _, rt := range s.routes() {
		target := strings.NewReplacer("{run}", "0", "{task}", "simple_0").Replace(rt.path)
		if rt.method != "GET" || strings.Contains(target, "{") {
			continue
		}
		own := open(target, "same-origin")
		if own.status >= 400 {
			continue
		}
		shown := strings.Contains(own.header.Get("Content-Type"), "json") || strings.HasPrefix(own.header.Get("Content-Type"), "text/html") ||
			strings.HasPrefix(own.header.Get("Content-Type"), "text/plain")
		for _, site := range []string{"cross-site", "same-site"} {
			switch r := open(target, site); {
			case shown && r.status != own.status:
				t.Errorf("%s from another %s page: %d %s", target, site, r.status, r.body)
			case !shown:
				bulk[rt.path] = target
				refusedWith(t, r, 403, "cross-site request")
			}
		}
	}
	if len(bulk) < 3 || bulk["/v1/backup"] == "" {
		t.Errorf("only these are files: %v", bulk)
	}
	made = 0
	refusedWith(t, s.do("GET", "/v1/backup", "", "Accept: text/html,application/xhtml+xml,*/*;q=0.8"), 403, "does not name the page")
	if made != 0 {
		t.Error("a backup was made")
	}
	for _, header := range [][]string{nil, {"Accept: */*"}, {"Sec-Fetch-Site: none", "Sec-Fetch-Mode: navigate", "Accept: text/html"}} {
		eventually(t, "a backup is made", func() bool { return s.do("GET", "/v1/backup", "", header...).body == "all" })
	}
}
