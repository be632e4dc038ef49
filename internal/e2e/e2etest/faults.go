package e2etest

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/caravan-dag/caravan/internal/testenv"
)

// faulty builds the binary with the tag faults, when the first test needs it.
var faulty = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(os.Getenv(folderVariable), "faults")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	return testenv.BuildAs(dir, Race, "", "faults")
})

// Faulty is an option of Start: the binary whose file system fails according to a script
// (internal/faults) next to the data folder, at the path Script.
func Faulty(t testing.TB) func(*testenv.Config) {
	t.Helper()
	bin, err := faulty()
	if err != nil {
		t.Fatal(err)
	}
	return Program(bin)
}

// Script is the path of the script of faults of a data folder.
func Script(data string) string { return data + ".faults" }

// Over reports whether a channel is closed.
func Over(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
