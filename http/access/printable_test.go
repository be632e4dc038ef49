package access_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"
	"unicode"

	"github.com/caravan-dag/caravan/http/access"
)

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
