package access_test

import (
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

func TestNamesOfHosts(t *testing.T) {
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

// FuzzHosts: what is allowed names one of the set, and nothing more.
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
