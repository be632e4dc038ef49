package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// runBinary runs the binary and returns its output and exit code.
func runBinary(t *testing.T, env []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), e2etest.Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, e2etest.Binary(), args...)
	cmd.Env = append(os.Environ(), env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !asExitError(err, &exit) {
		t.Fatalf("%q: %v", args, err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func asExitError(err error, exit **exec.ExitError) bool {
	e, ok := err.(*exec.ExitError)
	*exit = e
	return ok
}

// newToken makes a token with the command line.
func newToken(t *testing.T, file, name, scopes string) string {
	t.Helper()
	out, errs, code := runBinary(t, nil, "token", "new", name, scopes, "--token-file", file)
	if code != 0 || !strings.HasPrefix(out, "caravan_") || strings.Contains(errs, strings.TrimSpace(out)) {
		t.Fatalf("exit %d: %s%s", code, out, errs)
	}
	return strings.TrimSpace(out)
}

// TestNonLoopbackNeedsAccessControl: beyond loopback addresses the server refuses to start without
// access control, unless --insecure is given.
func TestNonLoopbackNeedsAccessControl(t *testing.T) {
	t.Parallel()
	tokens := filepath.Join(t.TempDir(), "tokens")
	secret := newToken(t, tokens, "all", "read,submit,control")
	for _, address := range []string{"0.0.0.0:0", ":0", "[::]:0", "127.0.0.1:0,0.0.0.0:0"} {
		_, errs, code := runBinary(t, nil, "serve", "--data", t.TempDir(), "--listen", address)
		if code != 2 || !strings.Contains(errs, "--token-file") || !strings.Contains(errs, "--tls-client-ca") || !strings.Contains(errs, "--insecure") {
			t.Errorf("%s: exit %d: %s", address, code, errs)
		}
	}
	// The first address is for the harness, which uses only the loopback one.
	both := "127.0.0.1:0,0.0.0.0:0"
	listen := func(c *testenv.Config) { c.Listen = both }
	s := e2etest.Start(t, listen, e2etest.Args("--insecure"))
	if log := s.Log(); !strings.Contains(log, "level=WARN") || !strings.Contains(log, "INSECURE") {
		t.Errorf("no warning: %s", log)
	}
	s = e2etest.Start(t, listen, e2etest.Args("--token-file", tokens))
	if log := s.Log(); !strings.Contains(log, "unencrypted") {
		t.Errorf("no warning: %s", log)
	}
	s.Want(401, "GET", "/v1/dagruns", "")
	s.Want(200, "GET", "/ready", "")
	s.Want(200, "GET", "/v1/dagruns", "", "Authorization", "Bearer "+secret)
}

// TestTokens follows a token file from its first line to its reload, by command line and curl.
func TestTokens(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	tokens, audit := filepath.Join(dir, "tokens"), filepath.Join(dir, "audit")
	reader, submitter := newToken(t, tokens, "reader", "read"), newToken(t, tokens, "submitter", "submit,read")
	if _, errs, code := runBinary(t, nil, "token", "new", "reader", "read", "--token-file", tokens); code != 1 || !strings.Contains(errs, "used in line 1") {
		t.Errorf("exit %d: %s", code, errs)
	}
	s := e2etest.Start(t, e2etest.Args("--token-file", tokens, "--audit-log", audit))
	spec := filepath.Join(dir, "spec.json")
	if err := os.WriteFile(spec, []byte(`{"tasks":{"a":{"job":{"commandString":"env; true"}}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, errs, code := runBinary(t, nil, "ls", "--server", s.URL); code != 9 || !strings.Contains(errs, "a token is needed") {
		t.Errorf("exit %d: %s", code, errs)
	}
	secretFile := filepath.Join(dir, "secret")
	if err := os.WriteFile(secretFile, []byte(submitter+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, errs, code := runBinary(t, nil, "ls", "--server", s.URL, "--token-file", secretFile); code != 2 || !strings.Contains(errs, "chmod 600") {
		t.Errorf("exit %d: %s", code, errs)
	}
	if err := os.Chmod(secretFile, 0o600); err != nil {
		t.Fatal(err)
	}
	out, errs, code := runBinary(t, nil, "submit", "--wait", spec, "--server", s.URL, "--token-file", secretFile)
	if code != 0 {
		t.Errorf("exit %d: %s%s", code, out, errs)
	}
	if out, _, _ = runBinary(t, []string{"CARAVAN_TOKEN=" + reader}, "logs", "0", "a", "--server", s.URL); strings.Contains(out, submitter) || !strings.Contains(out, "PATH=") {
		t.Errorf("the task's environment: %s", out)
	}
	if _, errs, code := runBinary(t, []string{"CARAVAN_TOKEN=" + reader}, "submit", spec, "--server", s.URL); code != 9 || !strings.Contains(errs, "this needs submit") {
		t.Errorf("exit %d: %s", code, errs)
	}
	if _, errs, code := runBinary(t, []string{"CARAVAN_TOKEN=" + reader}, "ls", "--server", "http://192.0.2.1:2503"); code != 2 || !strings.Contains(errs, "unencrypted") {
		t.Errorf("exit %d: %s", code, errs)
	}

	// A file with a mistake keeps the old tokens; a valid one takes effect.
	text, err := os.ReadFile(tokens)
	if err != nil {
		t.Fatal(err)
	}
	hangUp := func(content, says string) {
		t.Helper()
		const last = "audit log reopened" // of what a reload says
		before, saidBefore := strings.Count(s.Log(), last), strings.Count(s.Log(), says)
		if err := os.WriteFile(tokens, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := s.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		e2etest.Eventually(t, "all is reloaded", func() bool { return strings.Count(s.Log(), last) > before })
		if strings.Count(s.Log(), says) == saidBefore {
			t.Errorf("the log does not say %q", says)
		}
	}
	hangUp(string(text)+"\nreader2 write sha256:0\n", "unknown scope")
	s.Want(200, "GET", "/v1/dagruns", "", "Authorization", "Bearer "+reader)
	if err := os.Rename(audit, audit+".1"); err != nil {
		t.Fatal(err)
	}
	hangUp(strings.Split(string(text), "\n")[1], "token file reloaded")
	s.Want(401, "DELETE", "/v1/dagrun/0", "", "Authorization", "Bearer "+reader)
	s.Want(200, "GET", "/v1/dagruns", "", "Authorization", "Bearer "+submitter)
	if code, _, err := s.Stop(e2etest.Patience); code != 0 || err != nil {
		t.Fatal(code, err)
	}
	old, err := os.ReadFile(audit + ".1")
	if err != nil {
		t.Fatal(err)
	}
	now, err := os.ReadFile(audit)
	if err != nil {
		t.Fatal(err)
	}
	all := string(old) + string(now)
	if !strings.Contains(string(old), `"run":0,"token":"submitter"`) || !strings.Contains(string(now), `"status":401,"method":"DELETE"`) {
		t.Errorf("audit log:\n%s---\n%s", old, now)
	}
	for _, secret := range []string{reader, submitter} {
		if strings.Contains(all+s.Log(), secret) {
			t.Error("a secret is in a log")
		}
	}
	for line := range strings.Lines(all) {
		if !json.Valid([]byte(line)) {
			t.Errorf("%q", line)
		}
	}
}

// TestUnixSocketAccess covers the mode of the socket, a socket that a killed server has left, a
// second server, and other users.
func TestUnixSocketAccess(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	listen := func(c *testenv.Config) { c.Listen = "127.0.0.1:0,unix:" + path }
	s := e2etest.Start(t, listen)
	if info, err := os.Stat(path); err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Fatal(info.Mode(), err)
	}
	if out, errs, code := runBinary(t, nil, "ls", "--server", "unix:"+path); code != 0 {
		t.Errorf("exit %d: %s%s", code, out, errs)
	}
	if _, errs, code := runBinary(t, nil, "serve", "--data", t.TempDir(), "--listen", "unix:"+path); code != 1 || !strings.Contains(errs, "is in use") {
		t.Errorf("exit %d: %s", code, errs)
	}
	s = s.Crash()
	if _, errs, code := runBinary(t, nil, "ls", "--server", "unix:"+path); code != 0 {
		t.Errorf("after a kill -9: exit %d: %s", code, errs)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, errs, code := runBinary(t, nil, "serve", "--data", t.TempDir(), "--listen", "unix:"+file); code != 1 || !strings.Contains(errs, "not a socket") {
		t.Errorf("exit %d: %s", code, errs)
	}
	if _, errs, code := runBinary(t, nil, "serve", "--data", t.TempDir(), "--listen", "unix:/tmp/"+strings.Repeat("x", 120)); code != 1 || !strings.Contains(errs, "too long") {
		t.Errorf("exit %d: %s", code, errs)
	}
	t.Run("other users", func(t *testing.T) { dialAsAnotherUser(t, path) })
	if code, _, err := s.Stop(e2etest.Patience); code != 0 || err != nil {
		t.Fatal(code, err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket stays after a regular end: %v", err)
	}
}

// dialAsAnotherUser opens the socket to everybody, which only its owner can do, and connects as
// another user.
func dialAsAnotherUser(t *testing.T, path string) {
	if os.Geteuid() != 0 {
		t.Skip("only root can be another user")
	}
	for dir := path; dir != "/"; dir = filepath.Dir(dir) {
		if info, err := os.Stat(dir); err != nil || dir != path && info.Mode().Perm()&0o005 != 0o005 && os.Chmod(dir, 0o755) != nil {
			t.Skipf("other users cannot reach %s", dir)
		}
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("curl is not installed")
	}
	cmd := exec.Command(curl, "-s", "--unix-socket", path, "http://localhost/v1/dagruns")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "user 65534 may not use this socket") {
		t.Errorf("%v: %s", err, out)
	}
}

// authority signs certificates for a test.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) *authority {
	a := &authority{t: t, dir: t.TempDir()}
	a.cert, a.key = a.sign(&x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, "ca")
	return a
}

func (a *authority) path(name string) string { return filepath.Join(a.dir, name+".pem") }

// sign makes NAME.pem and NAME-key.pem.
func (a *authority) sign(c *x509.Certificate, name string) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	if c.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62)); err != nil {
		a.t.Fatal(err)
	}
	if c.NotAfter.IsZero() {
		c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	parent, by := a.cert, a.key
	if parent == nil {
		parent, by = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, by)
	if err != nil {
		a.t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{name: {Type: "CERTIFICATE", Bytes: der}, name + "-key": {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(a.path(file), pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return out, key
}

func (a *authority) server(name string, change ...func(*x509.Certificate)) {
	c := &x509.Certificate{Subject: pkix.Name{CommonName: name}, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, f := range change {
		f(c)
	}
	a.sign(c, "server")
}

func (a *authority) client(name string, change ...func(*x509.Certificate)) {
	c := &x509.Certificate{Subject: pkix.Name{CommonName: name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	for _, f := range change {
		f(c)
	}
	a.sign(c, name)
}

func expired(c *x509.Certificate) {
	c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
}

// launchTLS starts a server that the harness cannot query, and returns its https address.
func launchTLS(t *testing.T, args ...string) (*testenv.Server, string) {
	t.Helper()
	s, err := testenv.Launch(testenv.Config{Binary: e2etest.Binary(), Data: t.TempDir(), Args: append([]string{"--cores", "2", "--memory-mb", "1000"}, args...)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, _, err := s.Stop(e2etest.Patience); err != nil {
			t.Error(err)
		}
		if err := testenv.EndWorkers(s.Config().Data, e2etest.Patience); err != nil {
			t.Error(err)
		}
	})
	e2etest.Eventually(t, "it is ready", func() bool { return strings.Contains(s.Log(), "msg=ready") })
	_, rest, _ := strings.Cut(s.Log(), "address=")
	address, _, _ := strings.Cut(rest, " ")
	return s, "https://" + address
}

func TestTLS(t *testing.T) {
	t.Parallel()
	ours, other := newAuthority(t, "ours"), newAuthority(t, "other")
	ours.server("first")
	s, url := launchTLS(t, "--tls-cert", ours.path("server"), "--tls-key", ours.path("server-key"))
	ls := func(args ...string) (string, int) {
		t.Helper()
		_, errs, code := runBinary(t, nil, append([]string{"ls", "--server", url}, args...)...)
		return errs, code
	}
	if errs, code := ls("--ca", ours.path("ca")); code != 0 {
		t.Errorf("exit %d: %s", code, errs)
	}
	if errs, code := ls("--ca", other.path("ca")); code != 7 || !strings.Contains(errs, "unknown authority") {
		t.Errorf("another authority: exit %d: %s", code, errs)
	}
	if errs, code := ls(); code != 7 {
		t.Errorf("the system's authorities: exit %d: %s", code, errs)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ours.cert)
	subject := func() string {
		c, err := tls.Dial("tcp", strings.TrimPrefix(url, "https://"), &tls.Config{RootCAs: pool, ServerName: "localhost"})
		if err != nil {
			return err.Error()
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].Subject.CommonName
	}
	if _, err := tls.Dial("tcp", strings.TrimPrefix(url, "https://"), &tls.Config{RootCAs: pool, MaxVersion: tls.VersionTLS11}); err == nil {
		t.Error("TLS 1.1 is spoken")
	}
	if resp, err := http.Get("http" + strings.TrimPrefix(url, "https") + "/v1/dagruns"); err == nil {
		resp.Body.Close()
		if resp.StatusCode == 200 {
			t.Error("it speaks plain HTTP, too")
		}
	}

	ours.server("second")
	e2etest.Eventually(t, "the new certificate is used", func() bool { return subject() == "second" })
	if err := os.WriteFile(ours.path("server"), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	e2etest.Eventually(t, "the log tells of the mistake", func() bool { return subject() == "second" && strings.Contains(s.Log(), "the old ones remain in use") })
	ours.server("third", expired)
	e2etest.Eventually(t, "clients refuse an expired one", func() bool { return strings.Contains(subject(), "expired") })
	ours.server("fourth", func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = []string{"elsewhere.example"}, nil })
	e2etest.Eventually(t, "clients refuse another name", func() bool {
		errs, code := ls("--ca", ours.path("ca"))
		return code == 7 && strings.Contains(errs, "valid for") || strings.Contains(errs, "IP SANs")
	})
}

func TestClientCertificates(t *testing.T) {
	t.Parallel()
	ours, other := newAuthority(t, "ours"), newAuthority(t, "other")
	ours.server("server")
	ours.client("reader")
	ours.client("stranger")
	ours.client("late", expired)
	other.client("reader")
	tokens := filepath.Join(t.TempDir(), "tokens")
	secret := newToken(t, tokens, "all", "read,submit,control")
	f, err := os.OpenFile(tokens, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintln(f, "machine read cert:reader"); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	with := []string{"--tls-cert", ours.path("server"), "--tls-key", ours.path("server-key"), "--tls-client-ca", ours.path("ca")}
	_, url := launchTLS(t, with...)
	_, locked := launchTLS(t, append(with, "--token-file", tokens)...)
	for _, c := range []struct {
		what, server, token string
		by                  *authority
		name                string
		args                []string
		code                int
	}{
		{"no certificate", url, "", nil, "", []string{"ls"}, 7},
		{"a certificate", url, "", ours, "stranger", []string{"kill", "0"}, 6},
		{"an expired one", url, "", ours, "late", []string{"ls"}, 7},
		{"one of another authority", url, "", other, "reader", []string{"ls"}, 7},
		{"one with a line", locked, "", ours, "reader", []string{"ls"}, 0},
		{"one with a line, beyond its scopes", locked, "", ours, "reader", []string{"kill", "0"}, 9},
		{"one without a line", locked, "", ours, "stranger", []string{"ls"}, 9},
		{"one without a line, and a token", locked, secret, ours, "stranger", []string{"kill", "0"}, 6},
		{"a token alone", locked, secret, nil, "", []string{"ls"}, 7},
	} {
		args := append(c.args, "--server", c.server, "--ca", ours.path("ca"))
		if c.by != nil {
			args = append(args, "--cert", c.by.path(c.name), "--key", c.by.path(c.name+"-key"))
		}
		out, errs, code := runBinary(t, []string{"CARAVAN_TOKEN=" + c.token}, args...)
		if code != c.code {
			t.Errorf("%s: exit %d, want %d: %s%s", c.what, code, c.code, out, errs)
		}
	}
}

// TestTasksCannotReadTheServer: the environment, command line, working folder and open files of the
// process that is a task's parent reveal nothing of the server.
func TestTasksCannotReadTheServer(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t, e2etest.Env("CARAVAN_TOKEN=secret-token", "AWS_SECRET_ACCESS_KEY=secret-key", "GOFLAGS=secret-flag"))
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{"look": e2etest.Sh(
		`tr '\0' '\n' </proc/$PPID/environ; tr '\0' ' ' </proc/$PPID/cmdline; ls -l /proc/$PPID/fd /proc/$PPID/cwd; env`)}))
	s.Await(run, "COMPLETED")
	out := s.Get(run).TaskAttempts["look"][0].OutputLog
	if strings.Contains(out, "secret") {
		t.Errorf("a task sees the server's secrets:\n%s", out)
	}
	allowed := []string{"PATH=", "HOME=", "LANG=", "TMPDIR=", "USER=", "GOGC=", "GOMAXPROCS=", "CARAVAN_WORKER="}
	pids := testenv.Workers(s.Config().Data)
	if len(pids) != 1 {
		t.Fatalf("workers: %v", pids)
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pids[0]))
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00") {
		known := false
		for _, a := range allowed {
			known = known || strings.HasPrefix(entry, a)
		}
		if !known {
			t.Errorf("the worker's environment holds %q", entry)
		}
	}
	// A process that is not dumpable belongs to root in /proc: tasks of the same user
	// cannot read its environment and memory.
	if os.Getuid() != 0 {
		if _, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", s.PID())); !os.IsPermission(err) {
			t.Errorf("a process of the same user can read the server's environment: %v", err)
		}
		return
	}
	t.Log("run as root, who can read everything: the server's environment is not tried")
}

// TestReloadEndsWaitingRequests: SIGHUP after a token was removed from the file ends the requests of
// that token, even while the server is idle: a long poll is answered 401, events and a followed log
// break off.
func TestReloadEndsWaitingRequests(t *testing.T) {
	t.Parallel()
	tokens := filepath.Join(t.TempDir(), "tokens")
	all, reader := newToken(t, tokens, "all", "read,submit,control"), newToken(t, tokens, "reader", "read")
	s := e2etest.Start(t, e2etest.Args("--token-file", tokens))
	s.Want(200, "POST", "/v1/dagrun", `{"tasks":{"a":{"job":{"command":["sleep","600"]}}}}`, "Authorization", "Bearer "+all)
	e2etest.Eventually(t, "the task runs", func() bool {
		return strings.Contains(string(s.Want(200, "GET", "/v1/dagrun/0/task/a/state", "", "Authorization", "Bearer "+all).Body), "RUNNING")
	})
	defer s.Want(200, "DELETE", "/v1/dagrun/0", "", "Authorization", "Bearer "+all)

	ctx, cancel := context.WithTimeout(t.Context(), e2etest.Patience)
	defer cancel()
	ask := func(path string) (*http.Response, error) {
		req, err := http.NewRequestWithContext(ctx, "GET", s.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+reader)
		return http.DefaultClient.Do(req)
	}
	polled := make(chan int, 1)
	go func() {
		resp, err := ask("/v1/dagrun/0/state?wait=60s&from=RUNNING")
		if err != nil {
			polled <- 0
			return
		}
		resp.Body.Close()
		polled <- resp.StatusCode
	}()
	streams := map[string]*http.Response{}
	for _, path := range []string{"/v1/dagrun/0/events", "/v1/events", "/v1/dagrun/0/task/a/log?follow=1"} {
		resp, err := ask(path)
		if err != nil || resp.StatusCode != 200 {
			t.Fatal(path, resp, err)
		}
		defer resp.Body.Close()
		streams[path] = resp
	}
	e2etest.Eventually(t, "all four wait", func() bool {
		return strings.Contains(string(s.Want(200, "GET", "/metrics", "", "Authorization", "Bearer "+all).Body), "\ncaravan_http_waiting_requests 4\n")
	})
	text, err := os.ReadFile(tokens)
	if err != nil {
		t.Fatal(err)
	}
	kept, _, _ := strings.Cut(string(text), "reader ")
	if err := os.WriteFile(tokens, []byte(kept), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if status := <-polled; status != 401 {
		t.Errorf("the long poll: %d", status)
	}
	for path, resp := range streams {
		if _, err := io.ReadAll(resp.Body); err == nil || ctx.Err() != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// markerGraph is a graph whose task makes a file: the proof that a command ran.
func markerGraph(path string) string {
	return fmt.Sprintf(`{"tasks":{"a":{"job":{"command":["touch",%q]}}}}`, path)
}

// sendRaw sends a request unchanged and returns the status of the response.
func sendRaw(t *testing.T, s *e2etest.Server, request string) int {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(s.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(e2etest.Patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte(request)); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("%q: %v", request, err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

// TestForeignWebPagesAreRefused sends what browsers send for pages of other origins, and what
// programs send.
func TestForeignWebPagesAreRefused(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t, e2etest.Args("--allow-host", "caravan.example", "--allow-host", "two.example,three.example"))
	spec := markerGraph(t.TempDir() + "/ran")
	post := func(headers ...string) string {
		return "POST /v1/dagrun HTTP/1.1\r\n" + strings.Join(headers, "\r\n") + fmt.Sprintf("\r\nContent-Length: %d\r\n\r\n%s", len(spec), spec)
	}
	const host, typed = "Host: localhost:2503", "Content-Type: application/json"
	for request, want := range map[string]int{
		post(host): 415,
		post(host, "Content-Type: text/plain;charset=UTF-8"):                                                       415,
		post(host, "Content-Type: application/x-www-form-urlencoded"):                                              415,
		post(host, "Origin: http://evil.example", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors"):         403,
		post(host, typed, "Origin: http://localhost:8000", "Sec-Fetch-Site: same-site"):                            403,
		post(host, typed, "Origin: null"):                                                                          403,
		post("Host: evil.example", typed):                                                                          421,
		"GET /v1/dagruns?all=1 HTTP/1.1\r\nHost: evil.example\r\n\r\n":                                             421,
		"DELETE /v1/dagrun/0 HTTP/1.1\r\nHost: evil.example:2503\r\n\r\n":                                          421,
		"GET http://evil.example/v1/dagruns HTTP/1.1\r\nHost: localhost\r\n\r\n":                                   421,
		"OPTIONS /v1/dagrun HTTP/1.1\r\n" + host + "\r\nOrigin: http://evil.example\r\n\r\n":                       403,
		"GET /v1/dagruns HTTP/1.1\r\nHost: three.example\r\n\r\n":                                                  200,
		"GET /v1/dagruns HTTP/1.1\r\nHost: CARAVAN.example.:443\r\n\r\n":                                           200,
		"POST /v1/dagrun HTTP/1.1\r\n" + host + "\r\nOrigin: null\r\n" + typed + "\r\nContent-Length: 999\r\n\r\n": 403, // the body never arrives
	} {
		if got := sendRaw(t, s, request); got != want {
			t.Errorf("%d, want %d: %q", got, want, request)
		}
	}
	if r := s.Want(200, "GET", "/v1/dagruns?all=1", ""); string(r.Body) != "[]" {
		t.Fatalf("a refused submission is there: %s", r.Body)
	}
	if got := sendRaw(t, s, post(host, typed, "Origin: http://localhost:2503", "Sec-Fetch-Site: same-origin")); got != 200 {
		t.Errorf("its own page: %d", got)
	}
	if got := sendRaw(t, s, post(host, "Content-Type: application/json; charset=utf-8", "User-Agent: Python-urllib/3.13")); got != 200 {
		t.Errorf("a program: %d", got)
	}
}
