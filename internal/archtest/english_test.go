package archtest

import (
	"go/ast"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// plainPackages are the packages whose names and comments follow the style of
// CONTRIBUTING.md. The list only grows.
var plainPackages = []string{
	"actors", "actors/scheduler", "client", "dag", "dag/specjson",

	"internal/vfork",

	"messages",
}

// Shares of comment sentences that may match a pattern, in thousandths. A few matches are
// right ("has no effect", a label at the start of a comment), so the bounds are not zero.
const (
	maxNegatedNouns = 20
	maxOddOpenings  = 5
)

var (
	negatedNoun = regexp.MustCompile(`(?i)\b(?:is|are|was|has|have|of|there is|gives?|makes?|takes?|leaves?) no \w+|\bnobody\b|\bnone\b|\bnothing\b|\bnot ones?\b`)
	allowedNo   = regexp.MustCompile(`(?i)\bno (?:longer|more)\b`)
	oddOpening  = regexp.MustCompile(`^(?:Who|What|That of|Those|Of|Whether it|Which)\b`)
	sentenceEnd = regexp.MustCompile("[.;:!?]\\s+(?:[A-Z`\"(])")
)

// freeVerbs are function names that do not say what is done to what.
var freeVerbs = []string{"take", "takeUp", "settle", "look", "leave", "heed", "carryOut", "letGo", "needless", "told", "tell", "again"}

// TestPlainEnglish counts negated nouns and odd openings in the comments of plainPackages.
func TestPlainEnglish(t *testing.T) {
	for _, pkg := range plainPackages {
		total, negated, odd := 0, []string(nil), []string(nil)
		eachCommentSentence(t, pkg, func(where, sentence string) {
			total++
			if negatedNoun.MatchString(allowedNo.ReplaceAllString(sentence, "")) {
				negated = append(negated, where+": "+sentence)
			}
			if oddOpening.MatchString(sentence) {
				odd = append(odd, where+": "+sentence)
			}
		})
		if total == 0 {
			t.Errorf("package %s has no comments to check", pkg)
			continue
		}
		for _, check := range []struct {
			what  string
			found []string
			max   int
		}{{"negate a noun", negated, maxNegatedNouns}, {"have an odd opening", odd, maxOddOpenings}} {
			if share := 1000 * len(check.found) / total; share > check.max {
				t.Errorf("package %s: %d of %d comment sentences %s, at most %d of 1,000 may:\n\t%s",
					pkg, len(check.found), total, check.what, check.max, strings.Join(check.found, "\n\t"))
			}
		}
	}
}

// TestNoFreeVerbs reports functions of plainPackages that are named after a bare verb.
func TestNoFreeVerbs(t *testing.T) {
	for _, pkg := range plainPackages {
		eachPlainFile(t, pkg, func(rel string, file *ast.File, _ string) {
			for _, decl := range file.Decls {
				if f, ok := decl.(*ast.FuncDecl); ok && slices.Contains(freeVerbs, f.Name.Name) {
					t.Errorf("%s: the name of func %s does not say what it does", rel, f.Name.Name)
				}
			}
		})
	}
}

// eachPlainFile parses the production files of a package.
func eachPlainFile(t *testing.T, pkg string, yield func(rel string, file *ast.File, src string)) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(root(t), filepath.FromSlash(pkg), "*.go"))
	if err != nil || len(names) == 0 {
		t.Fatalf("package %s: %d files, %v", pkg, len(names), err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		file, err := parseFile(name, src)
		if err != nil {
			t.Fatal(err)
		}
		yield(pkg+"/"+filepath.Base(name), file, string(src))
	}
}

// eachCommentSentence yields the sentences of a package's comments that have more than two
// words. Indented lines are code or lists.
func eachCommentSentence(t *testing.T, pkg string, yield func(where, sentence string)) {
	t.Helper()
	eachPlainFile(t, pkg, func(rel string, _ *ast.File, src string) {
		var paragraph []string
		flush := func() {
			text := strings.Join(paragraph, " ")
			paragraph = nil
			for text != "" {
				sentence := text
				if at := sentenceEnd.FindStringIndex(text); at != nil {
					sentence, text = text[:at[0]+1], strings.TrimSpace(text[at[0]+1:])
				} else {
					text = ""
				}
				if len(strings.Fields(sentence)) > 2 {
					yield(rel, sentence)
				}
			}
		}
		for line := range strings.Lines(src) {
			comment, ok := strings.CutPrefix(strings.TrimSpace(line), "//")
			comment = strings.TrimPrefix(comment, " ")
			if !ok || strings.TrimSpace(comment) == "" || strings.HasPrefix(comment, "go:") || strings.HasPrefix(comment, "\t") || strings.HasPrefix(comment, "  ") {
				flush()
				continue
			}
			paragraph = append(paragraph, strings.TrimSpace(comment))
		}
		flush()
	})
}
