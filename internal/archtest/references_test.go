package archtest

import (
	"go/parser"
	"go/token"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// goFileName matches the name of a Go file, with or without folders.
var goFileName = regexp.MustCompile(`[A-Za-z0-9_][A-Za-z0-9_./-]*\.go\b`)

// TestNamedFilesExist checks the Go files that comments and pages name. The name starts at the
// folder of the comment, at a folder above it, or at the module's root. A page may leave out the
// folders, because its tables have them in another column.
func TestNamedFilesExist(t *testing.T) {
	files, baseNames := map[string]bool{}, map[string]bool{}
	eachGoFile(t, func(_, rel string) { files[rel], baseNames[path.Base(rel)] = true, true })
	exists := func(dir, named string) bool {
		for ; ; dir = path.Dir(dir) {
			if files[path.Join(dir, named)] {
				return true
			}
			if dir == "." {
				return false
			}
		}
	}
	checked := 0
	check := func(rel, text string) {
		for _, named := range goFileName.FindAllString(text, -1) {
			if strings.HasPrefix(named, "github.com/") || named == "table/builder.go" { // of other modules
				continue
			}
			checked++
			if !exists(path.Dir(rel), named) && (path.Ext(rel) == ".go" || !baseNames[named]) {
				t.Errorf("%s names %s, which does not exist", rel, named)
			}
		}
	}
	eachGoFile(t, func(name, rel string) {
		if strings.HasSuffix(rel, ".pb.go") {
			return
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		for _, group := range file.Comments {
			check(rel, group.Text())
		}
	})
	for _, rel := range plainPages {
		text, err := os.ReadFile(filepath.Join(root(t), filepath.FromSlash(rel)))
		if err != nil {
			t.Fatal(err)
		}
		check(rel, string(text))
	}
	if checked < 100 {
		t.Errorf("only %d names were found", checked)
	}
}
