package archtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// maxKept bounds a file of the repository, in bytes: what is larger was built, not
// written.
const maxKept = 256 << 10

// TestOnlySourcesAreKept: a binary that was committed by mistake stays in every
// clone for good.
func TestOnlySourcesAreKept(t *testing.T) {
	base := root(t)
	cmd := exec.Command("git", "ls-files", "-z")
	cmd.Dir = base
	out, err := cmd.Output()
	if err != nil {
		t.Logf("not a clone, so that no commit can come of it: %v", err)
		return
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(out), "\x00"), "\x00") {
		info, err := os.Lstat(filepath.Join(base, filepath.FromSlash(name)))
		if err != nil {
			continue // removed, and not yet committed
		}
		if info.Size() > maxKept {
			t.Errorf("%s has %d bytes; %d is the limit of what is kept", name, info.Size(), maxKept)
		}
	}
}
