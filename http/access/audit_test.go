package access_test

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode"

	"github.com/caravan-dag/caravan/http/access"
)

// auditOf opens a log and returns what counts lost entries.
func auditOf(t *testing.T, path string, logs *bytes.Buffer) (*access.Audit, *atomic.Int64) {
	t.Helper()
	lost := new(atomic.Int64)
	a, err := access.OpenAudit(path, slog.New(slog.NewTextHandler(logs, nil)), func(n int) { lost.Add(int64(n)) })
	if err != nil {
		t.Fatal(err)
	}
	return a, lost
}

func entriesOf(t *testing.T, path string) (out []access.Entry) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(text) {
		var e access.Entry
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		out = append(out, e)
	}
	return out
}

func TestAuditEntries(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit")
	var logs bytes.Buffer
	a, lost := auditOf(t, path, &logs)
	run := uint64(7)
	a.Record(access.Entry{Time: time.Now(), Status: 200, Method: "DELETE", Route: "/x", Run: &run, Task: "a\nb\x1b[31m", Token: "ci"})
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := a.Reopen(); err != nil {
		t.Fatal(err)
	}
	a.Record(access.Entry{Time: time.Now(), Status: 200, Method: "PATCH"})
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	old := entriesOf(t, path+".1")
	if len(old) != 1 || *old[0].Run != 7 || old[0].Task != "a\nb\x1b[31m" || old[0].Token != "ci" {
		t.Errorf("%+v", old)
	}
	if now := entriesOf(t, path); len(now) != 1 || now[0].Method != "PATCH" {
		t.Errorf("%+v", now)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info.Mode(), err)
	}
	if lost.Load() != 0 || logs.Len() > 0 {
		t.Errorf("%d lost, %s", lost.Load(), &logs)
	}
	var none *access.Audit
	none.Record(access.Entry{})
	if none.Close() != nil {
		t.Error("a nil log closes")
	}
}

// TestRefusalsInTheAuditLogAreBounded: anybody can cause them.
func TestRefusalsInTheAuditLogAreBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit")
	a, _ := auditOf(t, path, new(bytes.Buffer))
	at := time.Unix(1_800_000_000, 0)
	for range 1000 {
		a.Record(access.Entry{Time: at, Status: 401})
		a.Record(access.Entry{Time: at, Status: 200})
	}
	a.Record(access.Entry{Time: at.Add(time.Second), Status: 403})
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	count := map[int]int{}
	var last access.Entry
	for _, e := range entriesOf(t, path) {
		count[e.Status]++
		last = e
	}
	if count[401] != 100 || count[200] != 1000 || last.Suppressed != 900 {
		t.Errorf("%v, then %+v", count, last)
	}
}

// TestUnknownCallersDoNotHideKnownOnes: a flood of refusals without a token takes no line away
// from the refusals of known callers, and one known caller does not take lines from another.
func TestUnknownCallersDoNotHideKnownOnes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit")
	a, _ := auditOf(t, path, new(bytes.Buffer))
	at, uid := time.Unix(1_800_000_000, 0), 1000
	for range 3000 {
		a.Record(access.Entry{Time: at, Status: 401, Address: "192.0.2.7:1"})
		a.Record(access.Entry{Time: at, Status: 403, Token: "noisy"})
	}
	for range 20 {
		a.Record(access.Entry{Time: at, Status: 403, Method: "DELETE", Token: "ci"})
		a.Record(access.Entry{Time: at, Status: 401, Method: "DELETE", Certificate: "CN=build"})
		a.Record(access.Entry{Time: at, Status: 403, Method: "DELETE", UID: &uid, Address: "unix"})
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	count, suppressed := map[string]int{}, 0
	for _, e := range entriesOf(t, path) {
		count[e.Token+e.Certificate]++
		suppressed += e.Suppressed
	}
	if count[""] != 100+20 || count["noisy"] != 1000 || count["ci"] != 20 || count["CN=build"] != 20 || suppressed != 2900+2000 {
		t.Errorf("%v, %d suppressed", count, suppressed)
	}
}

func TestFailingAuditIsCounted(t *testing.T) {
	dir := t.TempDir()
	for path, want := range map[string]string{
		dir: "audit log", dir + "/none/audit": "no such file", "/dev/null": "not a plain file",
	} {
		if _, err := access.OpenAudit(path, slog.Default(), nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
	path := filepath.Join(dir, "audit")
	if err := os.WriteFile(path, nil, 0o606); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o606); err != nil {
		t.Fatal(err)
	}
	if _, err := access.OpenAudit(path, slog.Default(), nil); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Error(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if _, err := access.OpenAudit(link, slog.Default(), nil); err == nil || !strings.Contains(err.Error(), "symbolic link") {
		t.Error(err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	a, lost := auditOf(t, path, new(bytes.Buffer))
	big := access.Entry{Status: 200, Path: strings.Repeat("x", 1<<20)}
	records := 100
	if testing.Short() {
		records = 20
	}
	for range records {
		a.Record(big) // faster than a disk may be: what does not fit is counted
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if n := len(entriesOf(t, path)) + int(lost.Load()); n != records {
		t.Errorf("%d of %d entries", n, records)
	}
}

func TestAppendPrintable(t *testing.T) {
	for text, want := range map[string]string{
		`{"a":"é✓ 😀"}`:                   `{"a":"é✓ 😀"}`,
		"\u009b31m":                      `\u009b31m`, // CSI
		"a\u007f":                        `a\u007f`,
		"\u00ad\u202e\u2066\u200b\ufeff": `\u00ad\u202e\u2066\u200b\ufeff`,
		"\u2028\u2029":                   `\u2028\u2029`,
		"\U000e0041x":                    `\udb40\udc41x`,
		"x\xff\xc2":                      `x\ufffd\ufffd`,
		"\ufffd":                         "\ufffd",
		"a\nb\tc":                        "a\nb" + `\u0009c`,
	} {
		if got := string(access.AppendPrintable([]byte("<"), []byte(text))); got != "<"+want {
			t.Errorf("%+q: %+q, want %+q", text, got, "<"+want)
		}
	}
}

// TestAuditLogIsPrintable: no member of a line can move a terminal's cursor or hide text.
func TestAuditLogIsPrintable(t *testing.T) {
	const evil = "\x00\x1b[2K\x7f\u0085\u009b31m\u00ad\u200b\u202e\u2028\u2029\ufeff\U000e0041"
	path := filepath.Join(t.TempDir(), "audit")
	a, _ := auditOf(t, path, new(bytes.Buffer))
	a.Record(access.Entry{
		Time: time.Now(), Status: 200, Method: evil, Route: evil, Path: evil + "\xff", Task: evil, Token: evil,
		Certificate: evil, Address: evil, Error: evil,
	})
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range string(bytes.TrimSuffix(text, []byte("\n"))) {
		if unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) {
			t.Errorf("%U is raw in %+q", r, text)
		}
	}
	var members map[string]any
	if err := json.Unmarshal(text, &members); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"method", "route", "task", "token", "certificate", "address", "error"} {
		if members[name] != evil {
			t.Errorf("%s: %+q", name, members[name])
		}
	}
	if members["path"] != evil+"\ufffd" {
		t.Errorf("path: %+q", members["path"])
	}
}
