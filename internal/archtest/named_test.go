package archtest

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestNamedTestsExist: the tests and scenarios that CONTRIBUTING.md names are there.
func TestNamedTestsExist(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(root(t), "CONTRIBUTING.md"))
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	function := regexp.MustCompile(`(?m)^func (Test[A-Z]\w*)\(`)
	eachGoFile(t, func(path, rel string) {
		if !strings.HasSuffix(rel, "_test.go") {
			return
		}
		src, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range function.FindAllSubmatch(src, -1) {
			there[string(m[1])] = true
		}
	})
	scenarios, err := filepath.Glob(filepath.Join(root(t), "dag/testdata/*.txt"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range scenarios {
		there[filepath.Base(file)] = true
	}
	named := regexp.MustCompile("`(Test[A-Z]\\w*|\\w+\\.txt)`").FindAllSubmatch(page, -1)
	for _, m := range named {
		if name := string(m[1]); name != "TestMain" && !there[name] {
			t.Errorf("CONTRIBUTING.md names %s, which is not there", name)
		}
	}
	if len(named) < 20 {
		t.Errorf("only %d names were found", len(named))
	}
}
