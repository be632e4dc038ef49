package client_test

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/client"
)

// TestTokenStaysAtItsServer: a redirect to another host, port or scheme goes without it.
func TestTokenStaysAtItsServer(t *testing.T) {
	var got []string
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = append(got, "other "+r.Header.Get("Authorization"))
		fmt.Fprint(w, `{"version":"x"}`)
	}))
	defer other.Close()
	own := httptest.NewServer(nil)
	defer own.Close()
	target := other.URL
	own.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = append(got, "own "+r.Header.Get("Authorization"))
		if r.URL.Path == "/again" {
			fmt.Fprint(w, `{"version":"x"}`)
			return
		}
		http.Redirect(w, r, target, http.StatusTemporaryRedirect)
	})
	c, err := client.New(client.Config{Server: own.URL, Token: "secret", HTTPClient: own.Client()})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := c.Version(t.Context()); err != nil {
			t.Fatal(err)
		}
		target = "/again"
	}
	if s := strings.Join(got, ", "); s != "own Bearer secret, other , own Bearer secret, own Bearer secret" {
		t.Error(s)
	}
	if own.Client().CheckRedirect != nil {
		t.Error("the caller's own client was changed")
	}
}

func TestTokensTravelEncrypted(t *testing.T) {
	for server, sound := range map[string]bool{
		"http://127.0.0.1:1": true, "http://[::1]:1": true, "localhost:1": true, "https://a.example": true, "unix:/x": true, "unix:///x": true,
		"http://a.example": false, "192.0.2.1:1": false, "http://localhost.example": false, "http://127.0.0.1.example": false, "http://0.0.0.0:1": false,
	} {
		_, err := client.New(client.Config{Server: server, Token: "secret"})
		if (err == nil) != sound || err != nil && (!strings.Contains(err.Error(), "unencrypted") || strings.Contains(err.Error(), "secret")) {
			t.Errorf("%s: %v", server, err)
		}
		if _, err := client.New(client.Config{Server: server, Token: "secret", Insecure: true}); err != nil {
			t.Errorf("%s: %v", server, err)
		}
	}
	for _, bad := range []string{"x y", "a\r\nX: y", "ü", "a\x00"} {
		if _, err := client.New(client.Config{Token: bad}); err == nil || strings.Contains(err.Error(), bad) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := client.New(client.Config{Server: "http://user:pass@a.example"}); err == nil || strings.Contains(err.Error(), "pass@") {
		t.Errorf("%v", err)
	}
	if _, err := client.New(client.Config{Server: "unix:"}); err == nil {
		t.Error("a socket without a path")
	}
}

func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "localhost" {
			w.WriteHeader(421)
		}
		fmt.Fprint(w, `{"version":"x"}`)
	})}
	go srv.Serve(l)
	defer srv.Close()
	c, err := client.New(client.Config{Server: "unix:" + path})
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseIdle()
	if v, err := c.Version(t.Context()); err != nil || v.Version != "x" || c.Server() != "unix:"+path {
		t.Errorf("%v %v %s", v, err, c.Server())
	}
	c, err = client.New(client.Config{Server: "unix:" + path + "x", Retries: -1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Version(t.Context()); !errors.Is(err, client.ErrNoServer) || !strings.Contains(err.Error(), path+"x") {
		t.Error(err)
	}
}

func TestDenied(t *testing.T) {
	for _, status := range []int{401, 403, 421} {
		if !errors.Is(&client.Error{Status: status}, client.ErrDenied) {
			t.Error(status)
		}
	}
}

// TestLoadTLSNamesWhatIsMissing: a certificate without its key, and a key without its certificate.
func TestLoadTLSNamesWhatIsMissing(t *testing.T) {
	for _, c := range []struct{ cert, key, text string }{
		{"own.pem", "", "client certificate own.pem needs its key"},
		{"", "own.key", "client key own.key needs its certificate"},
	} {
		if _, err := client.LoadTLS("", c.cert, c.key); err == nil || err.Error() != c.text {
			t.Errorf("got %v, want %s", err, c.text)
		}
	}
	if config, err := client.LoadTLS("", "", ""); config != nil || err != nil {
		t.Errorf("without files: %v, %v", config, err)
	}
}
