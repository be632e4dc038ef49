package faults_test

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/internal/faults"
)

func TestDamageChangesTheFile(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	path := filepath.Join(t.TempDir(), "file")
	whole := bytes.Repeat([]byte{0xa5}, 10_000)
	seen := map[string]bool{}
	for range 200 {
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
		what, err := faults.Damage(rng, path)
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err == nil && bytes.Equal(b, whole) {
			t.Errorf("%s: nothing changed", what)
		}
		for _, kind := range []string{"deleted", "cut", "flipped", "zeroed"} {
			seen[kind] = seen[kind] || strings.Contains(what, kind)
		}
	}
	if len(seen) != 4 || !seen["deleted"] || !seen["cut"] || !seen["flipped"] || !seen["zeroed"] {
		t.Errorf("kinds of damage: %v", seen)
	}
}
