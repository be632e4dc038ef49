package access

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
)

// A secret passes through these forms:
//
//	caravan token new    NewSecret: "caravan_" and 43 characters, printed once
//	the token file       TokenLine: a name, scopes, and "sha256:" with the hash of the secret
//	a request            Authorization: Bearer SECRET
//	Keys.FindSecret      hashes it, and compares the hash with those of all lines
//	the principal        the name of the line: what the engine and the audit log see
//
// A fast hash is enough, and right: a secret has 256 random bits, so guessing is out of reach, and each
// request hashes one.

// Scopes is a set of permissions of a caller. They are independent: Submit does not include Read.
type Scopes uint8

const (
	Read    Scopes = 1 << iota // see runs, tasks, logs, events, metrics
	Submit                     // submit graphs, which runs commands; validate them
	Control                    // kill, pause, resume and restart runs and tasks

	All = Read | Submit | Control
)

func scopeNames() []string { return []string{"read", "submit", "control"} }

// ParseScopes parses scopes that are separated by commas, such as "read,submit", in any order. An
// unknown scope, an empty one and a repeated one are errors.
func ParseScopes(s string) (Scopes, error) {
	var out Scopes
	for word := range strings.SplitSeq(s, ",") {
		var one Scopes
		for i, name := range scopeNames() {
			if word == name {
				one = 1 << i
			}
		}
		switch {
		case one == 0:
			return 0, fmt.Errorf("unknown scope %q: want read, submit, control, separated by commas", word)
		case out&one != 0:
			return 0, fmt.Errorf("scope %q is given twice", word)
		}
		out |= one
	}
	return out, nil
}

// String returns the text that ParseScopes parses; "" for an empty set.
func (s Scopes) String() string {
	var words []string
	for i, name := range scopeNames() {
		if s&(1<<i) != 0 {
			words = append(words, name)
		}
	}
	return strings.Join(words, ",")
}

// Caller is a client and what it may do.
type Caller struct {
	messages.Principal
	Scopes Scopes
}

// TokenPrefix begins every secret, so that scanners find leaked secrets.
const TokenPrefix = "caravan_"

// NewSecret returns a new secret of 256 random bits.
func NewSecret() string {
	var b [32]byte
	rand.Read(b[:]) // never fails
	return TokenPrefix + base64.RawURLEncoding.EncodeToString(b[:])
}

// TokenLine returns the line of a token file for a secret, without its line feed. It does not check the
// name: see CheckTokenName.
func TokenLine(name string, scopes Scopes, secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return fmt.Sprintf("%s %s sha256:%s", name, scopes, hex.EncodeToString(sum[:]))
}

// maxTokens bounds a token file: each request is compared with every line.
const maxTokens = 1000

// token is one line of a token file.
type token struct {
	name   string
	scopes Scopes
	hash   [sha256.Size]byte // of the secret
}

// Tokens is the content of a token file. It is immutable.
type Tokens struct {
	tokens       []token
	certificates map[string]token // by common name
}

// ParseTokens parses the text of a token file. Each line is
//
//	NAME SCOPE[,SCOPE] sha256:HEX
//	NAME SCOPE[,SCOPE] cert:COMMON-NAME
//
// Empty lines and lines that begin with # are comments. An error names its line.
func ParseTokens(text []byte) (*Tokens, error) {
	t := &Tokens{certificates: map[string]token{}}
	named := map[string]int{}
	sums := map[[sha256.Size]byte]int{}
	number := 0
	for line := range bytes.SplitSeq(text, []byte{'\n'}) {
		number++
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		tok, common, err := parseToken(string(line))
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		if first, ok := named[tok.name]; ok {
			return nil, fmt.Errorf("line %d: name %q is used in line %d, too", number, tok.name, first)
		}
		named[tok.name] = number
		if common != "" {
			if _, ok := t.certificates[common]; ok {
				return nil, fmt.Errorf("line %d: certificate %q has a line already", number, common)
			}
			t.certificates[common] = tok
			continue
		}
		if first, ok := sums[tok.hash]; ok {
			return nil, fmt.Errorf("line %d: the secret is that of line %d, too", number, first)
		}
		sums[tok.hash] = number
		if t.tokens = append(t.tokens, tok); len(t.tokens) > maxTokens {
			return nil, fmt.Errorf("line %d: more than %d tokens", number, maxTokens)
		}
	}
	return t, nil
}

// parseToken parses a line that is not a comment. common is the common name of a line with cert:, and
// "" for one with sha256:. Errors name the token, and never quote the last field.
func parseToken(line string) (tok token, common string, err error) {
	fields := strings.Fields(line)
	if len(fields) < 3 {
		return tok, "", fmt.Errorf("want NAME SCOPES sha256:HEX, as `caravan token new` prints it")
	}
	tok.name = fields[0]
	if err := CheckTokenName(tok.name); err != nil {
		return tok, "", err
	}
	if tok.scopes, err = ParseScopes(fields[1]); err != nil {
		return tok, "", err
	}
	kind, value, _ := strings.Cut(strings.Join(fields[2:], " "), ":") // a common name may have spaces
	switch {
	case kind == "cert" && value != "":
		return tok, value, nil
	case kind != "sha256" || len(fields) > 3:
		return tok, "", fmt.Errorf("token %q: want sha256: and 64 hexadecimal digits, or cert: and a common name", tok.name)
	}
	sum, err := hex.DecodeString(value)
	if err != nil || len(sum) != len(tok.hash) {
		return tok, "", fmt.Errorf("token %q: sha256: must be followed by 64 hexadecimal digits", tok.name) // without the value: it may be the secret itself
	}
	copy(tok.hash[:], sum)
	if tok.hash == sha256.Sum256(nil) || tok.hash == sha256.Sum256([]byte("\n")) {
		return tok, "", fmt.Errorf("token %q: the hash is that of an empty secret", tok.name)
	}
	return tok, "", nil
}

// CheckTokenName returns what is wrong with the name of a token. A name that begins like a secret is
// refused, and only this beginning is quoted: somebody may have swapped the two.
func CheckTokenName(name string) error {
	const most = 64
	if name == "" || len(name) > most || strings.HasPrefix(name, TokenPrefix) {
		return fmt.Errorf("token name %q: want 1 to %d characters, not beginning with %s", name[:min(len(name), len(TokenPrefix))], most, TokenPrefix)
	}
	for _, c := range []byte(name) {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.' || c == '@') {
			return fmt.Errorf("token name %q: want letters, digits, '-', '_', '.' and '@'", name)
		}
	}
	return nil
}

// byHash returns the token with this hash, or nil. It compares with every token, so it takes the same
// time whichever of them matches; maxTokens bounds that time.
func (t *Tokens) byHash(sum *[sha256.Size]byte) (found *token) {
	at := -1
	for i := range t.tokens {
		equal := subtle.ConstantTimeCompare(t.tokens[i].hash[:], sum[:])
		at = subtle.ConstantTimeSelect(equal, i, at)
	}
	if at < 0 {
		return nil
	}
	return &t.tokens[at]
}

// Keys is the token file in use. Its methods may be called from any goroutine. Requests read current
// without a lock.
type Keys struct {
	path    string
	current atomic.Pointer[Tokens] // set by OpenKeys, so never nil after it

	mu       sync.Mutex // of onReload
	onReload []func()
}

// OpenKeys reads a token file. After an error the Keys cannot be used.
func OpenKeys(path string) (*Keys, error) {
	k := &Keys{path: path}
	return k, k.Reload()
}

// Reload reads the file again. After a mistake in the file, which the error names with its line, the
// former tokens remain valid. The new tokens are in force before the functions of OnReload are called:
// these check again who is still allowed.
func (k *Keys) Reload() error {
	text, err := ReadPrivateFile(k.path)
	if err != nil {
		return fmt.Errorf("token file: %w", err)
	}
	t, err := ParseTokens(text)
	if err != nil {
		return fmt.Errorf("token file %s: %w", k.path, err)
	}
	k.current.Store(t)
	k.mu.Lock()
	reloaded := k.onReload
	k.mu.Unlock()
	for _, fn := range reloaded {
		fn()
	}
	return nil
}

// OnReload has fn called by each later successful Reload, before it returns, in its goroutine.
func (k *Keys) OnReload(fn func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.onReload = append(k.onReload, fn)
}

// InForce returns the token file as it was last read. Two calls return the same pointer unless
// there was a Reload in between.
func (k *Keys) InForce() *Tokens { return k.current.Load() }

// FindSecret returns the caller with a secret; false when the token file does not have it.
func (k *Keys) FindSecret(secret []byte) (Caller, bool) {
	sum := sha256.Sum256(secret)
	tok := k.current.Load().byHash(&sum)
	if tok == nil {
		return Caller{}, false
	}
	return Caller{Principal: messages.Principal{Token: tok.name}, Scopes: tok.scopes}, true
}

// CertificateScopes returns the scopes of the client certificate with this common name.
func (k *Keys) CertificateScopes(commonName string) (Scopes, bool) {
	tok, ok := k.current.Load().certificates[commonName]
	return tok.scopes, ok
}

// ReadPrivateFile reads a file that only its owner may read or write. The owner must be this
// process's user or root, and a symbolic link must stay within the file's folder: whoever can
// replace the file can grant themselves access.
func ReadPrivateFile(path string) ([]byte, error) {
	if err := checkSymlink(path); err != nil {
		return nil, err
	}
	f, err := vfs.OpenUserFile(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	switch mode := info.Mode(); {
	case mode.Perm()&0o077 != 0:
		return nil, fmt.Errorf("%s may be read or written by others (mode %04o): chmod 600 %s", path, mode.Perm(), path)
	default:
		if owner, ok := info.Sys().(*syscall.Stat_t); ok && owner.Uid != 0 && int(owner.Uid) != os.Geteuid() {
			return nil, fmt.Errorf("%s belongs to user %d: it must belong to this one (%d) or to root", path, owner.Uid, os.Geteuid())
		}
	}
	text, err := io.ReadAll(io.LimitReader(f, vfs.MaxUserFileBytes+1))
	if err == nil && len(text) > vfs.MaxUserFileBytes {
		err = fmt.Errorf("%s is too large: at most %d bytes", path, vfs.MaxUserFileBytes)
	}
	return text, err
}

// checkSymlink refuses a symbolic link that leads out of its folder. (Kubernetes mounts secrets as
// links within one folder.) The check is of the path and not of the open file, so it protects from a
// wrong set-up; the owner and mode of the file itself are checked after it is open.
func checkSymlink(path string) error {
	info, err := os.Lstat(path)
	if err != nil || info.Mode()&os.ModeSymlink == 0 {
		return err
	}
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		if target, err := os.Stat(path); err == nil && !target.Mode().IsRegular() {
			return nil // a pipe of the shell: opening it is refused
		}
		return err
	}
	folder, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return err
	}
	if inside, err := filepath.Rel(folder, target); err != nil || inside == ".." || strings.HasPrefix(inside, "../") {
		return fmt.Errorf("%s is a symbolic link to %s, in another folder: name that file itself", path, target)
	}
	return nil
}
