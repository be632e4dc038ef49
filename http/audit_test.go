package http

import (
	"bufio"
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/http/access"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// audited is an option of serve: changes and refusals are recorded. lines ends that and
// returns what is in the log.
func audited(t *testing.T) (option func(*Config), lines func(s *service) []string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "audit")
	var audit *access.Audit
	option = func(c *Config) {
		var err error
		if audit, err = access.OpenAudit(path, c.Logger, func(int) { t.Error("lost") }); err != nil {
			t.Fatal(err)
		}
		c.Access.Audit = audit
	}
	return option, func(s *service) []string {
		t.Helper()
		testenv.Eventually(t, "all are answered", func() bool { return s.inflight.Load() == 0 })
		if err := audit.Close(); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	}
}

// TestControlCharactersInTheAuditLog: an unknown caller cannot write to the terminal of a user who
// reads the log.
func TestControlCharactersInTheAuditLog(t *testing.T) {
	lock, secret, _ := withTokenFile(t)
	option, lines := audited(t)
	s := serve(t, contractEngine(t), lock, option)
	_, r := s.raw("GET /\xc2\x9b31mX\xe2\x80\xae\xff HTTP/1.1\r\nHost: localhost\r\n\r\n")
	refusedWith(t, s.answerTo(r), 401, "a token is needed")
	s.do("DELETE", "/v1/dagrun/2/task/a%C2%9Bb%E2%80%A8", "", bearer(secret[access.All]))
	got := lines(s)
	for i, want := range []string{`"path":"/\u009b31mX\u202e\ufffd"`, `"task":"a\u009bb\u2028"`} {
		if i >= len(got) || !strings.Contains(got[i], want) {
			t.Errorf("line %d of %+q has no %s", i, got, want)
		}
	}
	for _, r := range strings.Join(got, "") {
		if unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) {
			t.Errorf("%U is raw in %+q", r, got)
		}
	}
}

// TestAuditNamesTheUser: each line about a unix socket has the user at its other end, whatever
// the request was refused for.
func TestAuditNamesTheUser(t *testing.T) {
	lock, secret, _ := withTokenFile(t)
	option, lines := audited(t)
	s := serve(t, contractEngine(t), lock, option)
	l, err := net.Listen("unix", "@"+t.Name()+filepath.Base(t.TempDir())+secret[access.Read][:12])
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(&Entrance{Listener: l, Local: true}) }()
	say := func(request string) reply {
		t.Helper()
		c, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, request); err != nil {
			t.Fatal(err)
		}
		return s.answerTo(bufio.NewReader(c))
	}
	uids := []int{os.Geteuid(), os.Geteuid(), os.Geteuid()}
	read := "Authorization: Bearer " + secret[access.Read] + "\r\n"
	refusedWith(t, say("GET /v1/dagruns HTTP/1.1\r\nHost: x\r\nOrigin: http://evil.example\r\n"+read+"\r\n"), 403, "cross-site")
	refusedWith(t, say("GET /v1/dagruns HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer x\r\n\r\n"), 401, "")
	refusedWith(t, say("DELETE /v1/dagrun/2 HTTP/1.1\r\nHost: x\r\n"+read+"\r\n"), 403, "this needs control")
	if os.Geteuid() == 0 {
		const nobody = 65534
		asUser(t, nobody, func() {
			for _, path := range []string{"/v1/dagruns", "/ready"} {
				refusedWith(t, say("GET "+path+" HTTP/1.1\r\nHost: x\r\n\r\n"), 403, "may not use this socket")
				uids = append(uids, nobody)
			}
		})
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	got := lines(s)
	if len(got) != len(uids) {
		t.Fatalf("%d lines for %d requests: %q", len(got), len(uids), got)
	}
	for i, line := range got {
		var e access.Entry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		if e.Address != "unix" || e.UID == nil || *e.UID != uids[i] {
			t.Errorf("no address unix and uid %d in %s", uids[i], line)
		}
	}
	if !strings.Contains(got[0], `"token":"t-read"`) {
		t.Errorf("a cross-site request's token is not named: %s", got[0])
	}
}

// asUser calls f while this thread acts as another user, which only root may do.
func asUser(t *testing.T, uid uintptr, f func()) {
	t.Helper()
	const same = ^uintptr(0)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, same, uid, same); errno != 0 {
		t.Skip("cannot become another user: ", errno)
	}
	defer func() {
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, same, 0, same); errno != 0 {
			panic(errno)
		}
	}()
	f()
}

// TestFloodDoesNotHideRefusals: what a known token is refused is recorded while strangers
// send more than may be recorded of theirs.
func TestFloodDoesNotHideRefusals(t *testing.T) {
	lock, secret, _ := withTokenFile(t)
	option, lines := audited(t)
	s := serve(t, contractEngine(t), lock, option)
	flood := strings.Repeat("GET /v1/dagruns HTTP/1.1\r\nHost: x\r\n\r\n", 300)
	c, r := s.raw(flood)
	for range 300 {
		if got := s.answerTo(r); got.status != 401 {
			t.Fatalf("%d %s", got.status, got.body)
		}
	}
	_ = c.Close()
	for range 20 {
		refusedWith(t, s.do("DELETE", "/v1/dagrun/2", "", bearer(secret[access.Read])), 403, "this needs control")
	}
	recorded := 0
	for _, line := range lines(s) {
		if strings.Contains(line, `"method":"DELETE"`) && strings.Contains(line, `"token":"t-read"`) {
			recorded++
		}
	}
	if recorded != 20 {
		t.Errorf("%d of 20 refused changes are recorded", recorded)
	}
}
