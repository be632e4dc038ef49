package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	badgerImport      = "github.com/dgraph-io/badger/v4"
	badgerguardImport = module + "/persistence/badgerguard"
)

// TestUsersOfTheStorageEngineAreListed compares the lists of files in persistence/doc.go with the
// files that use Badger: by an import, or through the field badger of a DB. The list of tests may
// have more, because a test may know Badger's files by their names.
func TestUsersOfTheStorageEngineAreListed(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join(root(t), "persistence/doc.go"))
	if err != nil {
		t.Fatal(err)
	}
	listed := func(heading string) []string {
		_, text, found := strings.Cut(string(doc), heading)
		if !found {
			t.Fatalf("persistence/doc.go lacks %q", heading)
		}
		text, _, _ = strings.Cut(text, "\n//\n")
		return goFileName.FindAllString(text, -1)
	}
	var badger, guard, tests, outside []string
	eachGoFile(t, func(name, rel string) {
		dir, base := path.Split(rel)
		if dir == "persistence/badgerguard/" {
			return
		}
		direct, guarded := storageEngineUses(t, name)
		switch {
		case !direct && !guarded:
		case dir != "persistence/":
			outside = append(outside, rel)
		case strings.HasSuffix(base, "_test.go"):
			tests = append(tests, base)
		case direct:
			badger = append(badger, base)
		default:
			guard = append(guard, base)
		}
	})
	for heading, want := range map[string][]string{
		"These files use Badger:":                    badger,
		"These files use package badgerguard alone:": guard,
		"Outside of this package,":                   outside,
	} {
		slices.Sort(want)
		if got := listed(heading); !slices.Equal(got, want) {
			t.Errorf("persistence/doc.go, %q: got %s, want %s", heading, strings.Join(got, ", "), strings.Join(want, ", "))
		}
	}
	known := listed("These tests know Badger, its files or its tombstones:")
	for _, name := range tests {
		if !slices.Contains(known, name) {
			t.Errorf("persistence/doc.go does not list %s among the tests that know Badger", name)
		}
	}
}

// storageEngineUses reports whether a file uses Badger itself, and whether it imports badgerguard.
func storageEngineUses(t *testing.T, name string) (direct, guarded bool) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	for _, spec := range file.Imports {
		switch imported := strings.Trim(spec.Path.Value, `"`); {
		case imported == badgerImport || strings.HasPrefix(imported, badgerImport+"/"):
			direct = true
		case imported == badgerguardImport:
			guarded = true
		}
	}
	ast.Inspect(file, func(n ast.Node) bool {
		if field, ok := n.(*ast.SelectorExpr); ok && field.Sel.Name == "badger" {
			direct = true
		}
		return true
	})
	return direct, guarded
}
