package archtest

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// TestNamedFilesExist: the Go files that ARCHITECTURE.md and CONTRIBUTING.md name by their path exist.
func TestNamedFilesExist(t *testing.T) {
	path := regexp.MustCompile("`([a-z][a-z0-9]*(?:/[a-z0-9_]+)+\\.(?:go|sh|txt))`")
	for _, page := range []string{"ARCHITECTURE.md", "CONTRIBUTING.md"} {
		src, err := os.ReadFile(filepath.Join(root(t), page))
		if err != nil {
			t.Fatal(err)
		}
		named := path.FindAllSubmatch(src, -1)
		for _, m := range named {
			if _, err := os.Stat(filepath.Join(root(t), filepath.FromSlash(string(m[1])))); err != nil {
				t.Errorf("%s names %s: %v", page, m[1], err)
			}
		}
		if len(named) < 5 {
			t.Errorf("%s: only %d paths were found", page, len(named))
		}
	}
}
