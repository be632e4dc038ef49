package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// goFileName matches the name of a Go file, with or without folders.
var goFileName = regexp.MustCompile(`[A-Za-z0-9_][A-Za-z0-9_./-]*\.go\b`)

// filesOfBadger are the files of Badger that comments of badgerguard name.
var filesOfBadger = map[string]bool{"table/builder.go": true}

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
			if strings.HasPrefix(named, "github.com/") || filesOfBadger[named] {
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

// codeSpan matches a code span that may name a declaration: `name`, or `package.Type.field`.
var codeSpan = regexp.MustCompile("`([A-Za-z_]\\w*(?:\\.[A-Za-z_]\\w*)*)`")

// spanInFile matches a code span with the file of its declaration: `popTask` (`dag/run_ready.go`).
var spanInFile = regexp.MustCompile("`(?:\\w+\\.)*(\\w+)`\\s\\(`([\\w/]+\\.go)`")

// TestNamedDeclarationsExist checks the names in mixed case that code spans of ARCHITECTURE.md and of
// the recipes of CONTRIBUTING.md have. Each occurs in the code, as an identifier or as a string, such
// as a member of a task; where a file follows in parentheses, in that file.
func TestNamedDeclarationsExist(t *testing.T) {
	names, namesOf := map[string]bool{}, map[string]map[string]bool{}
	eachGoFile(t, func(name, rel string) {
		inFile := map[string]bool{}
		namesOf[rel] = inFile
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.Ident:
				names[n.Name], inFile[n.Name] = true, true
			case *ast.BasicLit:
				if text, err := strconv.Unquote(n.Value); err == nil && n.Kind == token.STRING {
					names[text] = true
				}
			}
			return true
		})
	})
	isIn := func(name, file string) bool {
		for rel, names := range namesOf {
			if names[name] && strings.HasSuffix("/"+rel, "/"+file) {
				return true
			}
		}
		return false
	}
	recipes := func(text string) string {
		_, text, begins := strings.Cut(text, "\n## A new member of a task\n")
		text, _, ends := strings.Cut(text, "\n## Measuring\n")
		if !begins || !ends {
			t.Fatal("CONTRIBUTING.md lacks the headings around its recipes")
		}
		return text
	}
	whole := func(text string) string { return text }
	for page, part := range map[string]func(string) string{"ARCHITECTURE.md": whole, "CONTRIBUTING.md": recipes} {
		text, err := os.ReadFile(filepath.Join(root(t), page))
		if err != nil {
			t.Fatal(err)
		}
		for _, span := range spanInFile.FindAllStringSubmatch(part(string(text)), -1) {
			if !isIn(span[1], span[2]) {
				t.Errorf("%s says that %s is in %s, which does not have it", page, span[1], span[2])
			}
		}
		checked := 0
		for _, span := range codeSpan.FindAllStringSubmatch(part(string(text)), -1) {
			if strings.HasSuffix(span[1], ".go") || strings.HasSuffix(span[1], ".proto") {
				continue // TestNamedFilesExist
			}
			for name := range strings.SplitSeq(span[1], ".") {
				if name == strings.ToLower(name) || name == strings.ToUpper(name) {
					continue
				}
				checked++
				if !names[name] {
					t.Errorf("%s names %s, but the code has no %s", page, span[0], name)
				}
			}
		}
		if checked < 30 {
			t.Errorf("only %d names were found in %s", checked, page)
		}
	}
}
