package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
	"github.com/caravan-dag/caravan/internal/servertest"
)

// swap puts a FIFO where a file is; the function that it returns puts the file back.
func swap(t *testing.T, path string) (back func()) {
	t.Helper()
	if err := os.Rename(path, path+".kept"); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Rename(path+".kept", path); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFIFOsInTheDataFolder: a FIFO in place of any file is named, by a server and by the
// commands that read the folder; nothing waits for its other end.
func TestFIFOsInTheDataFolder(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t)
	s.Complete(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("true")}))
	data := s.Config().Data
	if _, _, err := s.Stop(e2etest.Patience); err != nil {
		t.Fatal(err)
	}
	if err := servertest.EndWorkers(data, e2etest.Patience); err != nil {
		t.Fatal(err)
	}
	both := []string{"db/log/state", "db/KEYREGISTRY", "db/MANIFEST"}
	for _, name := range append(both, "db/INVENTORY", "identity", "worker/workers") {
		path := filepath.Join(data, name)
		if _, err := os.Stat(path); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		back := swap(t, path)
		_, errs, code := runBinary(t, nil, "check", data)
		out, _, _ := runBinary(t, nil, "check", data, "-o", "json")
		if code == 0 && name != "identity" || !strings.Contains(errs+out, filepath.Base(name)) {
			t.Errorf("%s: check: exit %d: %s%s", name, code, errs, out)
		}
		for _, n := range both {
			if n != name {
				continue
			}
			_, errs, code := runBinary(t, nil, "serve", "--listen", "127.0.0.1:0", "--data", data)
			if code == 0 || code < 0 || !strings.Contains(errs, "FIFO") || !strings.Contains(errs, filepath.Base(name)) {
				t.Errorf("%s: serve: exit %d: %s", name, code, errs)
			}
		}
		back()
	}
}

// TestConfigurationIsARegularFile: nothing else is read, and nothing without a bound.
func TestConfigurationIsARegularFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	two := filepath.Join(dir, "two.yaml")
	if err := os.WriteFile(two, []byte("cores: 2\n---\ntoken-file: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ option, path, want string }{
		{"--config", "/dev/zero", "/dev/zero: it is a device"},
		{"--config", fifo, "it is a FIFO"},
		{"--config", two, "line 2, column 1: a second document"},
		{"--token-file", fifo, "it is a FIFO"},
		{"--token-file", "/dev/null", "/dev/null: it is a device"},
	} {
		_, errs, code := runBinary(t, nil, "serve", "--listen", "127.0.0.1:0", "--data", filepath.Join(dir, "data"), c.option, c.path)
		if code != 2 || !strings.Contains(errs, c.want) {
			t.Errorf("%s %s: exit %d: %s", c.option, c.path, code, errs)
		}
	}
	if _, errs, code := runBinary(t, nil, "token", "new", "a", "read", "--token-file", fifo); code == 0 || !strings.Contains(errs, "it is a FIFO") {
		t.Errorf("token new: exit %d: %s", code, errs)
	}
}

// TestTLSFilesThatAreNone: a FIFO in place of a TLS file, and an authority that is
// malformed, leave the old ones in force.
func TestTLSFilesThatAreNone(t *testing.T) {
	t.Parallel()
	ours := newAuthority(t, "ours")
	ours.server("first")
	ours.client("client")
	s, url := launchTLS(t, "--tls-cert", ours.path("server"), "--tls-key", ours.path("server-key"), "--tls-client-ca", ours.path("ca"))
	ca := filepath.Join(t.TempDir(), "ca.pem")
	text, err := os.ReadFile(ours.path("ca"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(ca, text, 0o600); err != nil {
		t.Fatal(err)
	}
	ls := func(ca string) (string, int) {
		_, errs, code := runBinary(t, nil, "ls", "--server", url, "--ca", ca, "--cert", ours.path("client"), "--key", ours.path("client-key"))
		return errs, code
	}
	for _, name := range []string{"server", "server-key", "ca"} {
		before := strings.Count(s.Log(), "it is a FIFO")
		back := swap(t, ours.path(name))
		e2etest.Eventually(t, name+": the log says so", func() bool {
			_, code := ls(ca)
			return code == 0 && strings.Count(s.Log(), "it is a FIFO") > before
		})
		back()
	}
	broken := append(append([]byte{}, text...), "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"...)
	if err := os.WriteFile(ours.path("ca"), broken, 0o600); err != nil {
		t.Fatal(err)
	}
	e2etest.Eventually(t, "the log says so", func() bool {
		_, code := ls(ca)
		return code == 0 && strings.Contains(s.Log(), "malformed PEM certificate")
	})
	if errs, code := ls(ours.path("ca")); code == 0 || !strings.Contains(errs, "malformed PEM certificate") {
		t.Errorf("the client takes it: exit %d: %s", code, errs)
	}
}
