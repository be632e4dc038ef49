package access_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/http/access"
)

func hosts(t testing.TB, names ...string) *access.Hosts {
	t.Helper()
	h, err := access.NewHosts(names...)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestHostsAllow(t *testing.T) {
	h := hosts(t, append(access.LoopbackHosts(), "Caravan.Example.", "10.1.2.3")...)
	for host, want := range map[string]bool{
		"localhost": true, "localhost:2503": true, "LOCALHOST:1": true, "localhost.": true, "localhost.:2503": true,
		"localhost:": true, "127.0.0.1": true, "127.0.0.1:2503": true, "127.0.0.1.": true, "[::1]": true, "[::1]:2503": true,
		"[0:0:0:0:0:0:0:1]:80": true, "caravan.example": true, "caravan.EXAMPLE.:443": true, "10.1.2.3:9": true,

		"": false, ":": false, ":2503": false, "evil.example": false, "evil.example:2503": false, "localhost.evil.example": false,
		"evil-localhost": false, "127.0.0.1.evil.example": false, "localhost:2503:2503": false, "localhost:port": false,
		"localhost:123456": false, "localhost..": false, "user@localhost": false, "localhost@evil.example": false, "localhost,evil.example": false,
		" localhost": false, "localhost ": false, "localhost/": false, "localhost#": false, "127.0.0.2": false, "127.1": false, "2130706433": false,
		"0x7f.1": false, "::1": false, "[::1": false, "::1]": false, "[]": false, "[]:1": false, "[::1%lo]": false, "[::1%25lo]": false, "[::1]x": false,
		"[127.0.0.1]": false, "[::ffff:127.0.0.1]": false, "[localhost]": false, "0.0.0.0": false, "[::]": false,
		"a.localhost": false, "löcalhost": false, "localhost\x00": false, strings.Repeat("a", 300): false,
	} {
		if got := h.Allows([]byte(host)); got != want {
			t.Errorf("Host %q: %v, want %v", host, got, want)
		}
	}
	var anything *access.Hosts
	if !anything.Allows([]byte("evil.example")) {
		t.Error("a nil set allows every name")
	}
	if n := testing.AllocsPerRun(100, func() { h.Allows([]byte("Localhost:2503")) }); n > 0 {
		t.Errorf("%v allocations for each request", n)
	}
}

func TestParseHostName(t *testing.T) {
	for _, bad := range []string{"", ".", "a..b", "http://a", "a:80", "a/b", "*", "*.a", "[a]", "[::1]:80", "::1%lo", "a b", strings.Repeat("a", 254)} {
		if name, err := access.ParseHostName(bad); err == nil {
			t.Errorf("%q is taken as %q", bad, name)
		}
	}
	for given, want := range map[string]string{"A.b.": "a.b", "[::1]": "::1", "0:0::1": "::1", "1.2.3.4": "1.2.3.4", "my_host": "my_host"} {
		if name, err := access.ParseHostName(given); err != nil || name != want {
			t.Errorf("%q: %q, %v", given, name, err)
		}
	}
}

// FuzzHosts: an allowed host names a member of the set.
func FuzzHosts(f *testing.F) {
	for _, s := range []string{"localhost", "[::1]:2503", "LOCALHOST.:1", "evil.example", "[::1%25a]", "127.0.0.1:", ":", "[", "]:1"} {
		f.Add(s)
	}
	h := hosts(f, access.LoopbackHosts()...)
	f.Fuzz(func(t *testing.T, host string) {
		if !h.Allows([]byte(host)) {
			return
		}
		name := strings.ToLower(host)
		if i := strings.LastIndexByte(name, ':'); i >= 0 && !strings.HasSuffix(name, "]") {
			if strings.Trim(name[i+1:], "0123456789") != "" {
				t.Fatalf("%q has a port that is not a number", host)
			}
			name = name[:i]
		}
		name, err := access.ParseHostName(name)
		if err != nil || name != "localhost" && name != "127.0.0.1" && name != "::1" {
			t.Fatalf("%q is allowed as %q: %v", host, name, err)
		}
	})
}

func TestOriginsCheck(t *testing.T) {
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
