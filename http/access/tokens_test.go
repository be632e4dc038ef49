package access_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/http/access"
)

const someSum = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

func TestMistakesInATokenFileAreNamed(t *testing.T) {
	other := "sha256:" + strings.Repeat("ab", 32)
	for text, want := range map[string]string{
		"ci submit " + someSum + "\nci read " + other:      `line 2: name "ci" is used in line 1, too`,
		"a read " + someSum + "\n\n# x\nb read " + someSum: "line 4: the secret is that of line 1, too",
		"ci write " + someSum:                              `line 1: unknown scope "write": want read, submit, control`,
		"ci read,,submit " + someSum:                       `unknown scope ""`,
		"ci Read " + someSum:                               `unknown scope "Read"`,
		"ci read,read " + someSum:                          `scope "read" is given twice`,
		"ci read, submit " + someSum:                       "unknown scope",
		"ci read":                                          "line 1: want NAME SCOPES sha256:HEX",
		"ci read sha256:abc":                               `line 1: token "ci": sha256: must be followed by 64`,
		"ci read md5:" + strings.Repeat("a", 64):           `want sha256: and 64`,
		"ci read " + someSum + " more":                     `want sha256: and 64`,
		"ci read sha256:" + strings.Repeat("g", 64):        "64 hexadecimal digits",
		"ci read cert:":                                    "cert: and a common name",
		"a read cert:x\nb read cert:x":                     `line 2: certificate "x" has a line already`,
		"c/i read " + someSum:                              `token name "c/i"`,
		"caravan_secret read " + someSum:                   "not beginning with caravan_",
		strings.Repeat("n", 65) + " read " + someSum:       "1 to 64 characters",
		"\x00 read " + someSum:                             "token name",
	} {
		if _, err := access.ParseTokens([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
	var many strings.Builder
	for i := range 1001 {
		fmt.Fprintf(&many, "t%d read sha256:%064x\n", i, i)
	}
	if _, err := access.ParseTokens([]byte(many.String())); err == nil || !strings.Contains(err.Error(), "line 1001: more than 1000 tokens") {
		t.Error(err)
	}
	if _, err := access.ParseTokens([]byte("\r\n# nothing\r\n  \nci  read,submit\t" + strings.ToUpper(someSum[7:]) + "\n")); err == nil {
		t.Error("a hash needs its kind")
	}
	if _, err := access.ParseTokens([]byte("ci  read,submit\t" + someSum + "\r\n#\nmachine control cert:Build Machine 7")); err != nil {
		t.Error(err)
	}
}

// TestSecretsAreNotInErrors: a secret in the wrong place is not shown in a log.
func TestSecretsAreNotInErrors(t *testing.T) {
	secret := access.NewSecret()
	for _, text := range []string{"ci read " + secret, "ci read sha256:" + secret, secret + " read " + someSum, secret} {
		if _, err := access.ParseTokens([]byte(text)); err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%v", err)
		}
	}
}

func FuzzTokens(f *testing.F) {
	for _, s := range []string{"ci read " + someSum, "# c\n\na submit,control cert:x y", "a read sha256:", "\xff read " + someSum} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if _, err := access.ParseTokens(text); err != nil && !strings.HasPrefix(err.Error(), "line ") {
			t.Fatal(err)
		}
	})
}

func TestNewSecret(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		s := access.NewSecret()
		if !strings.HasPrefix(s, "caravan_") || len(s) != len("caravan_")+43 || seen[s] {
			t.Fatal(s)
		}
		seen[s] = true
	}
}

// keysOf is a token file with these lines.
func keysOf(t testing.TB, lines ...string) (*access.Keys, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tokens")
	write(t, path, lines...)
	k, err := access.OpenKeys(path)
	if err != nil {
		t.Fatal(err)
	}
	return k, path
}

func write(t testing.TB, path string, lines ...string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestKeys(t *testing.T) {
	a, b := access.NewSecret(), access.NewSecret()
	k, path := keysOf(t, access.TokenLine("a", access.Read, a), access.TokenLine("b", access.Submit|access.Control, b), "m read cert:Machine")
	who, ok := k.FindSecret([]byte(b))
	if !ok || who.Token != "b" || who.Scopes != access.Submit|access.Control || who.Scopes.String() != "submit,control" {
		t.Errorf("%+v %v", who, ok)
	}
	for _, wrong := range []string{"", "a", a[:len(a)-1], a + "x", strings.ToUpper(a), access.NewSecret()} {
		if who, ok := k.FindSecret([]byte(wrong)); ok || who.Scopes != 0 {
			t.Errorf("%q: %+v", wrong, who)
		}
	}
	if scopes, ok := k.CertificateScopes("Machine"); !ok || scopes != access.Read {
		t.Error(scopes, ok)
	}
	if _, ok := k.CertificateScopes("machine"); ok {
		t.Error("another common name")
	}

	write(t, path, access.TokenLine("a", access.Read, a), "b nonsense")
	if err := k.Reload(); err == nil || !strings.Contains(err.Error(), "line 2") || !strings.Contains(err.Error(), path) {
		t.Error(err)
	}
	if _, ok := k.FindSecret([]byte(b)); !ok {
		t.Error("a file with a mistake leaves the former tokens in force")
	}
	write(t, path, access.TokenLine("a", access.Read, a))
	if err := k.Reload(); err != nil {
		t.Fatal(err)
	}
	if _, ok := k.FindSecret([]byte(b)); ok {
		t.Error("a removed token is good")
	}
}

func TestPrivateFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "tokens")
	write(t, path, "x")
	for _, mode := range []os.FileMode{0o640, 0o604, 0o620, 0o602, 0o610, 0o644} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := access.ReadPrivateFile(path); err == nil || !strings.Contains(err.Error(), "chmod 600 "+path) {
			t.Errorf("mode %o: %v", mode, err)
		}
	}
	for _, mode := range []os.FileMode{0o600, 0o400, 0o700} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if text, err := access.ReadPrivateFile(path); err != nil || string(text) != "x" {
			t.Errorf("mode %o: %q, %v", mode, text, err)
		}
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(path, 65534, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := access.ReadPrivateFile(path); err == nil || !strings.Contains(err.Error(), "belongs to user 65534") {
			t.Error(err)
		}
		if err := os.Chown(path, 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	elsewhere := filepath.Join(t.TempDir(), "link")
	inside := filepath.Join(dir, "link")
	for _, link := range []string{elsewhere, inside} {
		if err := os.Symlink(path, link); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := access.ReadPrivateFile(elsewhere); err == nil || !strings.Contains(err.Error(), "symbolic link") {
		t.Error(err)
	}
	if _, err := access.ReadPrivateFile(inside); err != nil {
		t.Error(err)
	}
	if _, err := access.ReadPrivateFile(dir); err == nil || !strings.Contains(err.Error(), "is a folder") {
		t.Error(err)
	}
	if _, err := access.ReadPrivateFile(dir + "/none"); !os.IsNotExist(err) {
		t.Error(err)
	}
	if err := os.WriteFile(path, make([]byte, 1<<20+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := access.ReadPrivateFile(path); err == nil || !strings.Contains(err.Error(), "too large") {
		t.Error(err)
	}
}

func TestSessions(t *testing.T) {
	secret := access.NewSecret()
	k, path := keysOf(t, access.TokenLine("a", access.Read, secret))
	s := access.NewSessions(k)
	now := time.Now()
	if cookie, _, ok := s.Begin([]byte("wrong"), now); ok || cookie != "" {
		t.Error("a session without a token")
	}
	cookie, who, ok := s.Begin([]byte(secret), now)
	if !ok || who.Token != "a" || strings.Contains(cookie, secret) || len(cookie) < 43 {
		t.Fatal(cookie, who)
	}
	if who, ok := s.Find([]byte(cookie), now.Add(access.SessionTime-time.Second)); !ok || !who.Session || who.Scopes != access.Read {
		t.Errorf("%+v %v", who, ok)
	}
	for _, forged := range []string{"", "x", cookie + "x", cookie[1:], secret} {
		if _, ok := s.Find([]byte(forged), now); ok {
			t.Errorf("%q is a session", forged)
		}
	}
	if _, ok := s.Find([]byte(cookie), now.Add(access.SessionTime)); ok {
		t.Error("it does not end")
	}
	if _, ok := s.Find([]byte(cookie), now); ok {
		t.Error("it comes back")
	}

	cookie, _, _ = s.Begin([]byte(secret), now)
	s.End([]byte(cookie))
	if _, ok := s.Find([]byte(cookie), now); ok {
		t.Error("it is there after its end")
	}

	cookie, _, _ = s.Begin([]byte(secret), now)
	write(t, path, access.TokenLine("a", access.Control, secret))
	if err := k.Reload(); err != nil {
		t.Fatal(err)
	}
	if who, ok := s.Find([]byte(cookie), now); !ok || who.Scopes != access.Control {
		t.Errorf("it has the token's present scopes: %+v", who)
	}
	write(t, path, access.TokenLine("a", access.Read, access.NewSecret()))
	if err := k.Reload(); err != nil {
		t.Fatal(err)
	}
	if _, ok := s.Find([]byte(cookie), now); ok {
		t.Error("it is there after its token's end")
	}
	other, _ := keysOf(t, access.TokenLine("a", access.Read, secret))
	foreign, _, _ := access.NewSessions(other).Begin([]byte(secret), now)
	if _, ok := s.Find([]byte(foreign), now); ok {
		t.Error("the session of another server is taken")
	}
}

func TestSessionsAreBounded(t *testing.T) {
	secret := access.NewSecret()
	k, _ := keysOf(t, access.TokenLine("a", access.Read, secret))
	s := access.NewSessions(k)
	now := time.Now()
	first, _, _ := s.Begin([]byte(secret), now)
	second, _, _ := s.Begin([]byte(secret), now.Add(time.Second))
	for range 999 {
		if _, _, ok := s.Begin([]byte(secret), now.Add(time.Minute)); !ok {
			t.Fatal("refused")
		}
	}
	if _, ok := s.Find([]byte(first), now); ok {
		t.Error("the one that ends first gives way")
	}
	if _, ok := s.Find([]byte(second), now); !ok {
		t.Error("another one gave way")
	}
}

// TestTheEmptySecretIsRefused: a line with its hash would let everybody in.
func TestTheEmptySecretIsRefused(t *testing.T) {
	for _, secret := range []string{"", "\n"} {
		text := "# tokens\n" + access.TokenLine("a", access.Read, secret)
		if _, err := access.ParseTokens([]byte(text)); err == nil || !strings.Contains(err.Error(), "line 2: token \"a\": the hash is that of an empty secret") {
			t.Errorf("%q: %v", secret, err)
		}
	}
}

func TestTokenFilesAreRegularFiles(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, is := range map[string]string{fifo: "a FIFO", "/dev/null": "a device", t.TempDir(): "a folder"} {
		if _, err := access.OpenKeys(path); err == nil || !strings.Contains(err.Error(), path+": it is "+is) {
			t.Errorf("%s: %v", path, err)
		}
	}
	// One that was there for a moment does no harm.
	secret := access.NewSecret()
	k, path := keysOf(t, access.TokenLine("a", access.Read, secret))
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(fifo, path); err != nil {
		t.Fatal(err)
	}
	if err := k.Reload(); err == nil {
		t.Error("a FIFO was read")
	}
	if _, ok := k.FindSecret([]byte(secret)); !ok {
		t.Error("the former tokens are not in force")
	}
	write(t, path+".new")
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	if err := k.Reload(); err != nil {
		t.Error(err)
	}
	if _, ok := k.FindSecret([]byte(secret)); ok {
		t.Error("a token that was removed is in force")
	}
}
