// Package e2etest is the harness of the end-to-end tests: a server process bound
// to a test, calls that fail the test when they fail, and polling with a deadline.
package e2etest

import (
	"fmt"
	"os"
	"syscall"
	"testing"

	"github.com/caravan-dag/caravan/internal/testenv"
)

// BinaryVariable names the environment variable that holds the path of the
// binary under test.
const BinaryVariable = "CARAVAN_BINARY"

// folderVariable names the environment variable that holds a folder for the binaries of this process.
const folderVariable = "CARAVAN_E2E_FOLDER"

// Main builds the binary, unless BinaryVariable names one, runs the tests and
// returns the exit code. Under the race detector the binary has it too.
func Main(m *testing.M) int {
	dir, err := os.MkdirTemp("", "caravan-e2e-")
	if err == nil {
		defer os.RemoveAll(dir)
		err = os.Setenv(folderVariable, dir)
	}
	if err == nil && os.Getenv(BinaryVariable) == "" {
		var bin string
		if bin, err = testenv.Build(dir, Race); err == nil {
			err = os.Setenv(BinaryVariable, bin)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// WriteProgram writes a script that can be started at once. The lock keeps it from processes that other
// tests start while it is written: the kernel refuses to start a file that is open for writing.
func WriteProgram(t *testing.T, path, text string) {
	t.Helper()
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
}

// Binary is the path of the binary under test.
func Binary() string { return os.Getenv(BinaryVariable) }

// DiskErrors skips a further case of a failing or full disk under the race detector: the detector
// sees one case of each kind, and make test all of them.
func DiskErrors(t *testing.T) {
	t.Helper()
	if Race {
		t.Skip("errors of the disk: make test has them all")
	}
}

// OneByOne skips a test under the race detector that starts many programs one after the other, or whose faults
// come from outside and one at a time, such as damaged files and missing processes: each program would start ten
// times slower, and other tests show the detector the same goroutines.
func OneByOne(t *testing.T) {
	t.Helper()
	if Race {
		t.Skip("one step after the other, which the race detector need not see")
	}
}
