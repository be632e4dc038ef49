package raftlogtest

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/caravan-dag/caravan/cluster/raftlog"
)

// Machine is a map in memory that Sync writes to a file. Crash is closing the process: a Machine that is
// opened from the same folder has what was synced.
//
// Rows are lines "key=value"; an empty value deletes the key.
type Machine struct {
	path string

	// Before, if not nil, is called before each Apply, Restore and Sync, and its error is returned in
	// place of the call. It may block. Set it before the machine is used.
	Before func(call string, index uint64) error
	// Lazy makes Sync write the rows that the call before has found, as a machine does that keeps its
	// newest rows in memory. Set it before the machine is used.
	Lazy bool

	mu      sync.Mutex
	content content
	earlier content  // what the last Sync has found
	double  []string // keys that came at two indexes
	digests map[uint64][32]byte
}

type content struct {
	Index uint64            `json:"index"` // the last entry that was applied
	Rows  map[string]string `json:"rows"`
	At    map[string]uint64 `json:"at"` // the entry that wrote a key first
}

// OpenMachine reads the rows of a folder, which it makes if it is missing.
func OpenMachine(dir string) (*Machine, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	m := &Machine{path: filepath.Join(dir, "rows"), digests: map[uint64][32]byte{}}
	text, err := os.ReadFile(m.path)
	if err == nil {
		err = json.Unmarshal(text, &m.content)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	m.content = m.content.clone()
	m.earlier = m.content.clone()
	return m, nil
}

func (c content) clone() content {
	c.Rows, c.At = maps.Clone(c.Rows), maps.Clone(c.At)
	if c.Rows == nil {
		c.Rows, c.At = map[string]string{}, map[string]uint64{}
	}
	return c
}

func (m *Machine) before(call string, index uint64) error {
	if m.Before == nil {
		return nil
	}
	return m.Before(call, index)
}

// Apply writes rows.
func (m *Machine) Apply(index, _ uint64, rows []byte) error {
	if err := m.before("apply", index); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for line := range strings.Lines(string(rows)) {
		key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		if !ok {
			return fmt.Errorf("bad row %q", line)
		}
		if at, seen := m.content.At[key]; seen && at != index && strings.HasPrefix(key, "once-") {
			m.double = append(m.double, key)
		} else {
			m.content.At[key] = index
		}
		if value == "" {
			delete(m.content.Rows, key)
		} else {
			m.content.Rows[key] = value
		}
	}
	m.content.Index = max(m.content.Index, index)
	return nil
}

// Verify keeps the digest of the rows.
func (m *Machine) Verify(index uint64) error {
	digest := m.Digest()
	m.mu.Lock()
	m.digests[index] = digest
	m.mu.Unlock()
	return nil
}

// Verified returns the digest that Verify has kept.
func (m *Machine) Verified(index uint64) ([32]byte, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	digest, ok := m.digests[index]
	return digest, ok
}

// Sync writes the rows to the file: all, or with Lazy earlier ones.
func (m *Machine) Sync() (uint64, error) {
	if err := m.before("sync", 0); err != nil {
		return 0, err
	}
	m.mu.Lock()
	c := m.content.clone()
	if m.Lazy {
		c, m.earlier = m.earlier, c
	}
	m.mu.Unlock()
	return c.Index, m.write(c)
}

func (m *Machine) write(c content) error {
	text, err := json.Marshal(c)
	if err != nil {
		return err
	}
	f, err := os.Create(m.path + ".new")
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(m.path+".new", m.path)
	}
	if err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(m.path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// Snapshot returns the rows of this moment.
func (m *Machine) Snapshot(uint64) (raftlog.Snapshot, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	text, err := json.Marshal(m.content)
	return snapshot(text), err
}

type snapshot []byte

// WriteTo writes the rows.
func (s snapshot) WriteTo(w io.Writer) (int64, error) { return bytes.NewReader(s).WriteTo(w) }

// Close has an empty body: the garbage collector takes the rows.
func (snapshot) Close() error { return nil }

// Restore replaces the rows.
func (m *Machine) Restore(index uint64, r io.Reader) error {
	if err := m.before("restore", index); err != nil {
		return err
	}
	var c content
	if err := json.NewDecoder(r).Decode(&c); err != nil {
		return err
	}
	c = c.clone()
	c.Index = index // newer rows will come again
	if err := m.write(c); err != nil {
		return err
	}
	m.mu.Lock()
	m.content, m.earlier = c, c.clone()
	m.mu.Unlock()
	return nil
}

// Row returns the value of a key, "" if it is missing.
func (m *Machine) Row(key string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.content.Rows[key]
}

// Index returns the last entry that was applied.
func (m *Machine) Index() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.content.Index
}

// Doubles returns the keys with the prefix "once-" that were written at two indexes.
func (m *Machine) Doubles() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.double)
}

// Digest returns the digest of all rows.
func (m *Machine) Digest() [32]byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	hash := sha256.New()
	for _, key := range slices.Sorted(maps.Keys(m.content.Rows)) {
		fmt.Fprintf(hash, "%s=%s\n", key, m.content.Rows[key])
	}
	return [32]byte(hash.Sum(nil))
}
