package archtest

import (
	"go/ast"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestDocCommentsNameTheirDeclaration reports doc comments that begin with the name of something
// else, usually a former name of what they describe.
func TestDocCommentsNameTheirDeclaration(t *testing.T) {
	checked := 0
	eachGoFile(t, func(path, rel string) {
		src, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if generated(src) {
			return
		}
		file, err := parseFile(path, src)
		if err != nil {
			t.Fatal(err)
		}
		eachDocComment(file, func(names []string, doc string) {
			checked++
			if other := foreignName(names, doc); other != "" {
				t.Errorf("%s: the doc comment of %s begins with %s: %s", rel, strings.Join(names, ", "), other, firstLine(doc))
			}
		})
	})
	if checked < 1000 {
		t.Errorf("only %d doc comments were found", checked)
	}
}

func firstLine(doc string) string {
	line, _, _ := strings.Cut(doc, "\n")
	return line
}

// eachDocComment yields the doc comments of functions, methods, types, variables, constants, named
// fields and methods of interfaces, with the names that each may begin with: all of its group. A
// method has a second name, "Type.Method".
func eachDocComment(file *ast.File, yield func(names []string, doc string)) {
	visit := func(doc *ast.CommentGroup, names []string) {
		if text := doc.Text(); text != "" && len(names) > 0 {
			yield(names, text)
		}
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			names := []string{n.Name.Name}
			if n.Recv != nil {
				names = append(names, receiverType(n.Recv.List[0].Type)+"."+n.Name.Name)
			}
			visit(n.Doc, names)
		case *ast.GenDecl:
			var names []string
			for _, spec := range n.Specs {
				names = append(names, specNames(spec)...)
			}
			visit(n.Doc, names)
		case *ast.TypeSpec:
			visit(n.Doc, specNames(n))
		case *ast.ValueSpec:
			visit(n.Doc, specNames(n))
		case *ast.StructType:
			visitFields(n.Fields, visit)
		case *ast.InterfaceType:
			visitFields(n.Methods, visit)
		}
		return true
	})
}

// visitFields visits the doc comments of fields. A comment may describe all fields of its group, so
// it may begin with the name of any.
func visitFields(list *ast.FieldList, visit func(*ast.CommentGroup, []string)) {
	all := fieldNames(list)
	for _, field := range list.List {
		if len(field.Names) > 0 {
			visit(field.Doc, all)
		}
	}
}

func fieldNames(list *ast.FieldList) (names []string) {
	if list == nil {
		return nil
	}
	for _, field := range list.List {
		for _, name := range field.Names {
			names = append(names, name.Name)
		}
	}
	return names
}

func specNames(spec ast.Spec) (names []string) {
	switch spec := spec.(type) {
	case *ast.TypeSpec:
		names = []string{spec.Name.Name}
	case *ast.ValueSpec:
		for _, name := range spec.Names {
			names = append(names, name.Name)
		}
	}
	return names
}

func receiverType(expr ast.Expr) string {
	for {
		switch e := expr.(type) {
		case *ast.StarExpr:
			expr = e.X
		case *ast.IndexExpr:
			expr = e.X
		case *ast.IndexListExpr:
			expr = e.X
		case *ast.Ident:
			return e.Name
		default:
			return ""
		}
	}
}

// firstWord matches the first word of a doc comment, with the type of a method's receiver.
var firstWord = regexp.MustCompile(`^\(?\*?([A-Za-z_]\w*)(?:\)?\.([A-Za-z_]\w*))?`)

// testName matches the name of a function that go test calls.
var testName = regexp.MustCompile(`^(?:Test|Benchmark|Fuzz|Example)[A-Z]`)

// foreignName returns the identifier that a doc comment begins with, if it is not one of names.
// A sentence begins with an upper-case letter and English words have no other, so a word that does
// not look like that is an identifier. A former exported name of one word passes, because it may be
// English. The comment of a test says what the test proves, often with the name of what is tested,
// so only the name of another test is foreign to it.
func foreignName(names []string, doc string) string {
	match := firstWord.FindStringSubmatch(doc)
	if match == nil {
		return ""
	}
	word := match[1]
	if match[2] != "" { // a method of this type, or something else: "Store.mu guards these."
		word += "." + match[2]
		if !slices.ContainsFunc(names, func(name string) bool { return strings.HasPrefix(name, match[1]+".") }) {
			return ""
		}
	}
	isIdentifier := match[2] != "" || word[0] == '_' || isLower(word[0]) || hasInnerCapital(word)
	if testName.MatchString(names[0]) {
		isIdentifier = testName.MatchString(word)
	}
	if !isIdentifier || slices.Contains(names, word) {
		return ""
	}
	return word
}

// hasInnerCapital reports whether a word changes from lower case to upper case, as identifiers of
// several words do. URL and EXT4_IOC do not.
func hasInnerCapital(word string) bool {
	for i := 1; i < len(word); i++ {
		if word[i] >= 'A' && word[i] <= 'Z' && isLower(word[i-1]) {
			return true
		}
	}
	return false
}

func isLower(letter byte) bool { return letter >= 'a' && letter <= 'z' }

// TestForeignName proves that former names are found and that right comments pass.
func TestForeignName(t *testing.T) {
	for _, c := range []struct {
		names   []string
		doc     string
		foreign string
	}{
		{[]string{"chartLine"}, "series is one line of a chart.", "series"},
		{[]string{"readRefusal"}, "problemOf reads the refusal.", "problemOf"},
		{[]string{"ReadRow"}, "ReadLine reads a row.", "ReadLine"},
		{[]string{"close", "Store.close"}, "Store.shut ends it.", "Store.shut"},
		{[]string{"TestReadRow"}, "TestReadLine reads a row.", "TestReadLine"},
		{[]string{"chartLine"}, "chartLine is one line of a chart.", ""},
		{[]string{"chartLine"}, "A chartLine is one line of a chart.", ""},
		{[]string{"close", "Store.close"}, "Store.close ends it.", ""},
		{[]string{"close", "Store.close"}, "(*Store).close ends it.", ""},
		{[]string{"statusURL"}, "URL of the status page.", ""},
		{[]string{"shutdown"}, "EXT4_IOC_SHUTDOWN of the kernel.", ""},
		{[]string{"syncing", "syncErr"}, "Store.mu guards these.", ""},
		{[]string{"headers"}, "HTTP/1.1 allows these.", ""},
		{[]string{"first", "last"}, "last is at least first.", ""},
		{[]string{"TestParse"}, "squeue --json is read in two forms.", ""},
		{[]string{"TestParse"}, "ReadRow accepts an empty line.", ""},
	} {
		if got := foreignName(c.names, c.doc); got != c.foreign {
			t.Errorf("foreignName(%q, %q) = %q, want %q", c.names, c.doc, got, c.foreign)
		}
	}
}
