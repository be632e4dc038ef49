package access_test

import (
	"errors"
	"testing"

	"github.com/caravan-dag/caravan/http/access"
)

func TestCheck(t *testing.T) {
	listed, err := access.NewOrigins("https://app.example", "http://localhost:3000")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what                           string
		host, origin, site, mode, dest string
		unsafe, bulk, allowed          bool
	}{
		{what: "a program", host: "localhost:2503", unsafe: true, allowed: true},
		{what: "its own page", host: "localhost:2503", origin: "http://localhost:2503", site: "same-origin", mode: "cors", unsafe: true, allowed: true},
		{what: "its own page behind TLS", host: "Caravan.Example", origin: "https://caravan.example", site: "same-origin", unsafe: true, allowed: true},
		{what: "a default port that one of both names", host: "caravan.example:443", origin: "https://caravan.example", unsafe: true, allowed: true},
		{what: "an old browser", host: "localhost:2503", origin: "http://localhost:2503", unsafe: true, allowed: true},
		{what: "typed by hand", host: "localhost:2503", site: "none", mode: "navigate", dest: "document", allowed: true},
		{what: "a link from elsewhere", host: "localhost:2503", site: "cross-site", mode: "navigate", dest: "document", allowed: true},
		{what: "a listed origin", host: "localhost:2503", origin: "https://app.example", site: "cross-site", mode: "cors", unsafe: true, allowed: true},
		{what: "a file, typed by hand", host: "localhost:2503", site: "none", mode: "navigate", dest: "document", bulk: true, allowed: true},
		{what: "a file, by a link of its own page", host: "localhost:2503", site: "same-origin", mode: "navigate", dest: "document", bulk: true, allowed: true},
		{what: "a file, for a listed origin", host: "localhost:2503", origin: "https://app.example", site: "cross-site", mode: "cors", bulk: true, allowed: true},
		{what: "a file, for a program", host: "localhost:2503", bulk: true, allowed: true},

		{what: "a file, by a page from elsewhere", host: "localhost:2503", site: "cross-site", mode: "navigate", dest: "document", bulk: true},
		{what: "a file, by a page of another port", host: "localhost:2503", site: "same-site", mode: "navigate", dest: "document", bulk: true},

		{what: "no-cors fetch, sendBeacon", host: "localhost:2503", origin: "http://evil.example", site: "cross-site", mode: "no-cors", unsafe: true},
		{what: "another port of this machine", host: "localhost:2503", origin: "http://localhost:8000", site: "same-site", mode: "no-cors", unsafe: true},
		{what: "a sandboxed page", host: "localhost:2503", origin: "null", site: "cross-site", unsafe: true},
		{what: "an old browser on another site", host: "localhost:2503", origin: "http://evil.example", unsafe: true},
		{what: "a browser that hides the origin", host: "localhost:2503", site: "cross-site", mode: "no-cors", unsafe: true},
		{what: "a form", host: "localhost:2503", origin: "http://evil.example", site: "cross-site", mode: "navigate", dest: "document", unsafe: true},
		{what: "a link that is no safe method", host: "localhost:2503", site: "cross-site", mode: "navigate", dest: "document", unsafe: true},
		{what: "an image", host: "localhost:2503", site: "cross-site", mode: "no-cors", dest: "image"},
		{what: "a frame", host: "localhost:2503", site: "cross-site", mode: "navigate", dest: "iframe"},
		{what: "an EventSource", host: "localhost:2503", origin: "http://evil.example", site: "cross-site", mode: "cors"},
		{what: "a WebSocket", host: "localhost:2503", origin: "http://evil.example", site: "cross-site", mode: "websocket"},
		{what: "another site of a listed host", host: "localhost:2503", origin: "http://app.example", site: "cross-site", unsafe: true},
		{what: "a site that is new", host: "localhost:2503", site: "somewhere", unsafe: true},
		{what: "another port", host: "localhost:2503", origin: "http://localhost", unsafe: true},
		{what: "a name that begins alike", host: "localhost", origin: "http://localhost.evil.example", unsafe: true},
		{what: "an extension", host: "localhost:2503", origin: "chrome-extension://localhost:2503", unsafe: true},
		{what: "an origin that is one by half", host: "", origin: "http://", unsafe: true},
		{what: "origins that disagree", host: "localhost:2503", origin: "http://evil.example", site: "same-origin", unsafe: true},
	} {
		f := access.Fetch{Host: []byte(c.host), Origin: []byte(c.origin), Site: []byte(c.site), Mode: []byte(c.mode), Dest: []byte(c.dest), Safe: !c.unsafe, Bulk: c.bulk}
		err := listed.Check(f)
		if (err == nil) != c.allowed || err != nil && !errors.Is(err, access.ErrCrossSite) {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	var none *access.Origins
	if none.Has([]byte("https://app.example")) || none.Check(access.Fetch{Origin: []byte("https://app.example"), Host: []byte("a")}) == nil {
		t.Error("a nil set is empty")
	}
}

func TestNewOrigins(t *testing.T) {
	for _, bad := range []string{"", "null", "*", "app.example", "https://", "https://a/", "https://a/b", "https://a?b", "ftp://a", "https://u@a", "https://a:443", "http://a:80"} {
		if _, err := access.NewOrigins(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}
