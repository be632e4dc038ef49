package archtest

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const (
	maxLines     = 600  // of a file of production code
	maxTestLines = 1200 // of a test file: split by subject before that
	medianLines  = 300  // of the files of production code
)

func generated(src []byte) bool {
	head, _, _ := bytes.Cut(src, []byte("\npackage "))
	return bytes.Contains(head, []byte("Code generated ")) && bytes.Contains(head, []byte(" DO NOT EDIT."))
}

func TestFilesAreShort(t *testing.T) {
	var sizes []int
	eachGoFile(t, func(path, rel string) {
		src, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if generated(src) {
			return
		}
		lines, limit := bytes.Count(src, []byte("\n")), maxLines
		if strings.HasSuffix(rel, "_test.go") {
			limit = maxTestLines
		} else {
			sizes = append(sizes, lines)
		}
		if lines > limit {
			t.Errorf("%s has %d lines; %d is the limit", rel, lines, limit)
		}
	})
	slices.Sort(sizes)
	if median := sizes[len(sizes)/2]; median > medianLines {
		t.Errorf("the median file has %d lines; %d is the limit", median, medianLines)
	}
}

// clocks are the functions of package time that read a clock or wait.
var clocks = []string{"After", "AfterFunc", "NewTicker", "NewTimer", "Now", "Since", "Sleep", "Tick", "Until"}

// TestHabits looks for what the style rules out and a reader may overlook.
func TestHabits(t *testing.T) {
	eachGoFile(t, func(path, rel string) {
		fset := token.NewFileSet()
		src, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if generated(src) {
			return
		}
		file, err := parser.ParseFile(fset, path, src, parser.ParseComments)
		if err != nil {
			t.Errorf("%s: %v", rel, err)
			return
		}
		at := func(n ast.Node) string {
			return rel + ":" + strings.TrimPrefix(fset.Position(n.Pos()).String(), path+":")
		}
		test := strings.HasSuffix(rel, "_test.go") || helper(filepath.ToSlash(filepath.Dir(rel)))
		inDag := filepath.Dir(rel) == "dag" && !strings.HasSuffix(rel, "_test.go")

		for _, group := range file.Comments {
			for _, word := range []string{"TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK"} {
				if slices.Contains(strings.FieldsFunc(topical.ReplaceAllString(group.Text(), ""), notLetter), word) {
					t.Errorf("%s: a comment says %s without a topic", at(group), word)
				}
			}
		}
		loops := loopsOf(file)
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if n.Recv == nil && n.Name.Name == "init" {
					t.Errorf("%s: func init", at(n))
				}
			case *ast.GoStmt:
				if inDag {
					t.Errorf("%s: dag starts a goroutine", at(n))
				}
			case *ast.SelectorExpr:
				pkg, ok := n.X.(*ast.Ident)
				if !ok || pkg.Obj != nil {
					return true
				}
				if test && pkg.Name == "time" && n.Sel.Name == "Sleep" && !loops(n) {
					t.Errorf("%s: a test sleeps: wait for a signal, or poll with a deadline", at(n))
				}
				if inDag && pkg.Name == "time" && slices.Contains(clocks, n.Sel.Name) {
					t.Errorf("%s: dag uses time.%s: time is an argument", at(n), n.Sel.Name)
				}
			case *ast.CallExpr:
				sel, ok := n.Fun.(*ast.SelectorExpr)
				// Skip and Skipf say what the machine lacks.
				if ok && test && slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, sel.Sel.Name) && receiverIsTest(sel.X) && len(n.Args) == 0 {
					t.Errorf("%s: a test is skipped without a reason", at(n))
				}
			}
			return true
		})
	})
}

// topical matches a note for a successor, which says what it is about.
var topical = regexp.MustCompile(`\bTO` + `DO\([a-z][^)]*\): `)

// loopsOf tells which nodes of a file lie in a loop: polling a real process is one,
// and may wait between two looks.
func loopsOf(file *ast.File) func(ast.Node) bool {
	var loops []*ast.ForStmt
	ast.Inspect(file, func(n ast.Node) bool {
		if f, ok := n.(*ast.ForStmt); ok {
			loops = append(loops, f)
		}
		return true
	})
	return func(n ast.Node) bool {
		return slices.ContainsFunc(loops, func(f *ast.ForStmt) bool { return f.Pos() <= n.Pos() && n.End() <= f.End() })
	}
}

func notLetter(r rune) bool { return (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') }

// receiverIsTest tells whether x looks like a testing.T, B, F or TB by its usual names.
func receiverIsTest(x ast.Expr) bool {
	id, ok := x.(*ast.Ident)
	return ok && slices.Contains([]string{"t", "b", "f", "tb"}, id.Name)
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	for _, p := range packages(t) {
		if p.Name != "" && p.Doc == "" {
			t.Errorf("package %s has no package comment", p.short())
		}
	}
}

// TestEveryDependencyHasAReason: CONTRIBUTING.md names each direct dependency.
func TestEveryDependencyHasAReason(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root(t), "CONTRIBUTING.md"))
	if err != nil {
		t.Fatal(err)
	}
	direct := strings.Fields(string(goTool(t, "list", "-m", "-f", "{{if not (or .Indirect .Main)}}{{.Path}}{{end}}", "all")))
	for _, path := range direct {
		if !bytes.Contains(text, []byte("`"+path+"`")) {
			t.Errorf("CONTRIBUTING.md gives no reason for %s", path)
		}
	}
}
