package archtest

import (
	"go/ast"
	"go/token"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

// plainPackages are the packages whose names, comments and texts follow the style of
// CONTRIBUTING.md: all packages, in alphabetical order.
var plainPackages = []string{
	"actors",
	"actors/query",
	"actors/replay",
	"actors/scheduler",
	"actors/watch",
	"bench",
	"bench/peers/river",
	"client",
	"cluster",
	"cluster/raftlog",
	"cluster/raftlog/raftlogtest",
	"cluster/router",
	"cmd/caravan",
	"dag",
	"dag/dagtest",
	"dag/specjson",
	"executor",
	"executor/executortest",
	"executor/fleet",
	"executor/lease",
	"executor/lifecycle",
	"executor/procfs",
	"executor/remote",
	"executor/slurm",
	"executor/slurm/slurmtest",
	"executor/worker",
	"executor/workerpb",
	"http",
	"http/access",
	"internal/archtest",
	"internal/backup",
	"internal/browsertest",
	"internal/clustertest",
	"internal/clustertest/history",
	"internal/clustertest/network",
	"internal/clustertls",
	"internal/covercheck",
	"internal/datafolder",
	"internal/e2e",
	"internal/e2e/e2etest",
	"internal/faults",
	"internal/idtable",
	"internal/lengthprefix",
	"internal/model",
	"internal/outputs",
	"internal/protogen",
	"internal/rowdigest",
	"internal/testenv",
	"internal/vfork",
	"internal/vfs",
	"messages",
	"persistence",
	"persistence/badgerguard",
	"persistence/commitlog",
	"persistence/journaltest",
}

// plainPages are the Markdown pages that follow it. The list only grows.
var plainPages = []string{
	"ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "README.md", "SECURITY.md",
	"bench/report/README.md", "docs/cli.md", "docs/cluster.md", "docs/operations.md", "docs/rest.md", "docs/security.md", "docs/semantics.md", "docs/slurm.md",
	"examples/README.md",
}

// Bounds on all production code together, in thousandths of the comment sentences. Some matches are
// right English, so the bounds are not zero.
const (
	maxNegatedInAll = 20
	maxOddInAll     = 5
)

// maxColumns bounds a line of a plain page outside of tables, headings and code. The style asks for
// about 100 columns; a link or a code span that cannot be broken may exceed them.
const maxColumns = 110

// stylePattern is a habit of language that the style bans.
type stylePattern struct {
	name     string
	banned   *regexp.Regexp
	accepted *regexp.Regexp // removed from the sentence before the search, if not nil

	// Shares of sentences that may match, in thousandths: some matches are right, such as a
	// label at the start of a comment. Texts have few sentences, so their share is zero, and
	// acceptedInTexts names what is right in an error ("server x has no host").
	inComments, inPages int
	acceptedInTexts     *regexp.Regexp
}

var stylePatterns = []stylePattern{
	{
		name:       "negated noun",
		banned:     regexp.MustCompile(`(?i)\b(?:is|are|was|has|have|of|there is|gives?|makes?|takes?|leaves?) no \w+|\bnobody\b|\bnone\b|\bnothing\b|\bnot ones?\b`),
		accepted:   regexp.MustCompile(`(?i)\bno (?:longer|more)\b`),
		inComments: 20, inPages: 20,
		acceptedInTexts: regexp.MustCompile(`(?i)\b(?:has|have|there is) no\b|\bnothing to\b`),
	},
	{
		name:       "odd opening",
		banned:     regexp.MustCompile(`^(?:Who|What|That of|Those|Of|Whether it|Which)\b`),
		accepted:   regexp.MustCompile(`^.*\?$`), // a question
		inComments: 5, inPages: 3,
	},
	{
		name:       "inversion",
		banned:     regexp.MustCompile(`^(?:Was|Were|Had|Is|Does|Did) (?:it|there|that)\b.*,`),
		accepted:   regexp.MustCompile(`^.*\?$`),
		inComments: 5, inPages: 0,
	},
	{
		name:       "German connective",
		banned:     regexp.MustCompile(`(?i)\b(?:anew|beside|meanwhile|from then on|told of|behind (?:it|them|an? (?:crash|start|end|kill|restart|commit)))\b`),
		inComments: 15, inPages: 0,
	},
	{
		name:       "failed to",
		banned:     regexp.MustCompile(`(?i)\bfailed to \w+`),
		inComments: 15, inPages: 0,
	},
}

// finds reports whether a sentence of a comment, a page or (text) a string literal has the habit.
func (p *stylePattern) finds(sentence string, text bool) bool {
	if p.accepted != nil {
		sentence = p.accepted.ReplaceAllString(sentence, "")
	}
	if text && p.acceptedInTexts != nil {
		sentence = p.acceptedInTexts.ReplaceAllString(sentence, "")
	}
	return p.banned.MatchString(sentence)
}

// sentenceCheck counts the sentences of one package or page, and those with each habit.
type sentenceCheck struct {
	texts   bool // string literals, not comments or pages
	total   int
	matches map[string][]string // by the name of the pattern, each with its place
}

func (c *sentenceCheck) add(where, sentence string) {
	c.total++
	for i := range stylePatterns {
		p := &stylePatterns[i]
		if p.finds(sentence, c.texts) {
			if c.matches == nil {
				c.matches = map[string][]string{}
			}
			c.matches[p.name] = append(c.matches[p.name], where+": "+sentence)
		}
	}
}

// report fails the test for each pattern with more matches than its share allows.
func (c *sentenceCheck) report(t *testing.T, what string, share func(*stylePattern) int) {
	t.Helper()
	for i := range stylePatterns {
		p := &stylePatterns[i]
		found := c.matches[p.name]
		if len(found)*1000 > share(p)*c.total {
			t.Errorf("%s: %d of %d sentences have the habit %q, at most %d of 1,000 may:\n\t%s",
				what, len(found), c.total, p.name, share(p), strings.Join(found, "\n\t"))
		}
	}
}

// TestPlainPackagesAreAll keeps plainPackages complete and in order.
func TestPlainPackagesAreAll(t *testing.T) {
	found := map[string]bool{}
	eachGoFile(t, func(_, rel string) { found[path.Dir(rel)] = true })
	if all := slices.Sorted(maps.Keys(found)); !slices.Equal(plainPackages, all) {
		t.Errorf("plainPackages must be, in this order:\n\t%q", all)
	}
}

// TestPlainComments checks the comments of plainPackages.
func TestPlainComments(t *testing.T) {
	for _, pkg := range plainPackages {
		var check sentenceCheck
		eachPlainFile(t, pkg, func(rel string, _ *ast.File, src string) { eachCommentSentence(rel, src, check.add) })
		if check.total == 0 {
			t.Errorf("package %s has no comments to check", pkg)
		}
		check.report(t, "comments of package "+pkg, func(p *stylePattern) int { return p.inComments })
	}
}

// plainTests are the packages whose tests follow the style, too. The list only grows.
var plainTests = []string{
	"bench", "dag/dagtest", "internal/clustertest", "internal/clustertest/history", "internal/clustertest/network",
	"internal/e2e", "internal/model", "persistence/badgerguard", "persistence/commitlog", "persistence/journaltest",
}

// TestPlainTestComments checks the comments in the tests of plainTests.
func TestPlainTestComments(t *testing.T) {
	for _, pkg := range plainTests {
		var check sentenceCheck
		eachTestFile(t, pkg, func(rel string, _ *ast.File, src string) { eachCommentSentence(rel, src, check.add) })
		if check.total == 0 {
			t.Errorf("the tests of package %s have no comments to check", pkg)
		}
		check.report(t, "comments in the tests of package "+pkg, func(p *stylePattern) int { return p.inComments })
	}
}

// TestPlainTexts checks the string literals of plainPackages that are prose: error, log and help
// texts.
func TestPlainTexts(t *testing.T) {
	for _, pkg := range plainPackages {
		check := sentenceCheck{texts: true}
		eachPlainFile(t, pkg, func(rel string, file *ast.File, _ string) { eachTextSentence(rel, file, check.add) })
		check.report(t, "texts of package "+pkg, func(*stylePattern) int { return 0 })
	}
}

// TestPlainPages checks plainPages, which are all Markdown pages of the repository.
func TestPlainPages(t *testing.T) {
	cmd := exec.Command("git", "ls-files", "*.md")
	cmd.Dir = root(t)
	if out, err := cmd.Output(); err == nil { // without a clone the list is not checked
		for page := range strings.FieldsSeq(string(out)) {
			if !slices.Contains(plainPages, page) {
				t.Errorf("%s is missing from plainPages", page)
			}
		}
	}
	for _, page := range plainPages {
		src, err := os.ReadFile(filepath.Join(root(t), filepath.FromSlash(page)))
		if err != nil {
			t.Fatal(err)
		}
		var check sentenceCheck
		eachPageSentence(page, string(src), check.add)
		if check.total == 0 {
			t.Errorf("%s has no sentences to check", page)
		}
		check.report(t, page, func(p *stylePattern) int { return p.inPages })
		for where, line := range overlongLines(page, string(src)) {
			t.Errorf("%s: %d columns; wrap at about 100: %s", where, utf8.RuneCountInString(line), line)
		}
	}
}

// TestPlainRepository bounds the shares of negated nouns and odd openings in all production code.
func TestPlainRepository(t *testing.T) {
	var all sentenceCheck
	eachGoFile(t, func(path, rel string) {
		if strings.HasSuffix(rel, "_test.go") {
			return
		}
		src, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !generated(src) {
			eachCommentSentence(rel, string(src), all.add)
		}
	})
	for name, most := range map[string]int{"negated noun": maxNegatedInAll, "odd opening": maxOddInAll} {
		if n := len(all.matches[name]); n*1000 > most*all.total {
			t.Errorf("%d of %d comment sentences have the habit %q, at most %d of 1,000 may", n, all.total, name, most)
		}
	}
}

// freeVerbs are function names that do not say what is done to what.
var freeVerbs = []string{"take", "takeUp", "settle", "look", "leave", "heed", "carryOut", "letGo", "needless", "told", "tell", "again"}

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

// TestStylePatterns proves that each banned habit is found in comments, texts and pages, and that
// right English passes.
func TestStylePatterns(t *testing.T) {
	bad := map[string][]string{
		"negated noun": {
			"A missing file is no error.", "It makes no difference to the caller.",
			"Nobody waits for the answer.", "The rest is left, and none is read.", "Then nothing has to be written.",
			"They are ends of attempts and not ones of runs.",
		},
		"odd opening": {
			"Who asks makes it flush.", "What is damaged is refused.", "That of a task is shorter.", "Those are read again.",
			"Of no-op attempts it keeps two.", "Whether it runs is known.", "Which attempt it is says the mark.",
		},
		"inversion":         {"Was it not the server that asked, the answer is dropped.", "Is there a second one, it waits."},
		"German connective": {"The run begins anew after a panic.", "The index beside the rows is small.", "Meanwhile it waits for the disk.", "It is full from then on, and waits.", "The user is told of both errors.", "Rows behind a crash are read again."},
		"failed to":         {"failed to open the file x"},
	}
	good := []string{
		"A missing file is not an error.", "The run is no longer live when it ends.", "There are no more than 8 of them.",
		"What does the caller see?", "Is it a terminal, or a file?", "The server runs behind a proxy.", "It reads all rows, one of which is damaged.",
		"An attempt that failed is retried.", "Nonetheless the file is read.", "The offset is of type int64.", "The whole set is validated first.",
	}
	rightInTexts := []string{"A run that has no actor is loaded.", "There is no task of this name.", "The backup has nothing to restore."}
	bad["negated noun"] = append(bad["negated noun"], rightInTexts...)
	covered := map[string]bool{}
	forms := map[string]func(sentence string, yield func(where, sentence string)){
		"comment": func(s string, yield func(string, string)) {
			eachCommentSentence("x.go", "package x\n\n// It works. "+strings.Join(strings.SplitAfterN(s, " ", 3), "\n// ")+"\nvar x int\n", yield)
		},
		"text": func(s string, yield func(string, string)) {
			file, err := parseFile("x.go", []byte("package x\n\nvar _ = errors.New("+strconv.Quote(s)+")\n"))
			if err != nil {
				t.Fatal(err)
			}
			eachTextSentence("x.go", file, yield)
		},
		"page": func(s string, yield func(string, string)) {
			eachPageSentence("x.md", "# A page\n\n- It works. "+strings.Join(strings.SplitAfterN(s, " ", 3), "\n  ")+"\n", yield)
		},
		"cell": func(s string, yield func(string, string)) {
			eachPageSentence("x.md", "| a | b |\n|---|---|\n| `x` | "+s+" |\n", yield)
		},
	}
	for form, read := range forms {
		for name, sentences := range bad {
			for _, s := range sentences {
				check := sentenceCheck{texts: form == "text"}
				read(s, check.add)
				want := 1
				if form == "text" && slices.Contains(rightInTexts, s) {
					want = 0
				}
				if len(check.matches[name]) != want {
					t.Errorf("%s %q: found %v, want %d %s", form, s, check.matches, want, name)
				}
				covered[name] = true
			}
		}
		for _, s := range good {
			check := sentenceCheck{texts: form == "text"}
			read(s, check.add)
			if check.total == 0 || len(check.matches) != 0 {
				t.Errorf("%s %q: %d sentences, found %v", form, s, check.total, check.matches)
			}
		}
	}
	for i := range stylePatterns {
		if name := stylePatterns[i].name; !covered[name] {
			t.Errorf("no example proves that the habit %q is found", name)
		}
	}
	code := "Text.\n\n```sh\n# What nobody reads anew is " + strings.Repeat("long ", 40) + "\n```\n"
	eachPageSentence("x.md", code, func(_, s string) {
		if s != "Text." {
			t.Errorf("code of a page is read: %s", s)
		}
	})
	if n := len(maps.Collect(overlongLines("x.md", code+strings.Repeat("word ", 30)+"\n"))); n != 1 {
		t.Errorf("%d overlong lines, want the one outside of the code", n)
	}
}

// eachPlainFile parses the production files of a package.
func eachPlainFile(t *testing.T, pkg string, yield func(rel string, file *ast.File, src string)) {
	t.Helper()
	parseFiles(t, pkg, false, yield)
}

// eachTestFile parses the test files of a package.
func eachTestFile(t *testing.T, pkg string, yield func(rel string, file *ast.File, src string)) {
	t.Helper()
	parseFiles(t, pkg, true, yield)
}

func parseFiles(t *testing.T, pkg string, tests bool, yield func(rel string, file *ast.File, src string)) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(root(t), filepath.FromSlash(pkg), "*.go"))
	if err != nil || len(names) == 0 {
		t.Fatalf("package %s: %d files, %v", pkg, len(names), err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") != tests {
			continue
		}
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if generated(src) {
			continue
		}
		file, err := parseFile(name, src)
		if err != nil {
			t.Fatal(err)
		}
		yield(pkg+"/"+filepath.Base(name), file, string(src))
	}
}

var sentenceEnd = regexp.MustCompile("[.;:!?]\\s+(?:[A-Z`\"(\\[])")

// eachSentence yields the sentences of a paragraph that have more than two words.
func eachSentence(where, text string, yield func(where, sentence string)) {
	for text != "" {
		sentence := text
		if at := sentenceEnd.FindStringIndex(text); at != nil {
			sentence, text = text[:at[0]+1], strings.TrimSpace(text[at[0]+1:])
		} else {
			text = ""
		}
		if len(strings.Fields(sentence)) > 2 {
			yield(where, sentence)
		}
	}
}

// eachCommentSentence yields the sentences of the comments of a file. Indented lines are code or
// lists.
func eachCommentSentence(rel, src string, yield func(where, sentence string)) {
	var paragraph []string
	flush := func() {
		eachSentence(rel, strings.Join(paragraph, " "), yield)
		paragraph = nil
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
}

// proseWords is how many words make a string literal prose rather than a name, a key or a format.
const proseWords = 3

// eachTextSentence yields the sentences of the string literals of a file that are prose.
func eachTextSentence(rel string, file *ast.File, yield func(where, sentence string)) {
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.ImportSpec:
			return false
		case *ast.Field: // its tag is not prose
			return n.Tag == nil
		case *ast.BasicLit:
			if n.Kind != token.STRING {
				return true
			}
			text, err := strconv.Unquote(n.Value)
			if err != nil || strings.Contains(text, `":`) { // JSON
				return true
			}
			for _, paragraph := range strings.Split(text, "\n") {
				words := 0
				for _, word := range strings.Fields(paragraph) {
					if !strings.ContainsFunc(strings.Trim(word, `.,;:!?()"'`), notLetter) && len(word) > 1 {
						words++
					}
				}
				if words >= proseWords {
					eachSentence(rel, strings.TrimSpace(paragraph), yield)
				}
			}
		}
		return true
	})
}

// pageLine is a line of a Markdown page outside of code.
type pageLine struct {
	number int
	text   string
}

func proseLines(src string) (lines []pageLine) {
	fenced, number := false, 0
	for line := range strings.Lines(src) {
		number++
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			fenced = !fenced
			lines = append(lines, pageLine{number, ""}) // ends the paragraph
		} else if !fenced {
			lines = append(lines, pageLine{number, strings.TrimRight(line, "\n")})
		}
	}
	return lines
}

var listItem = regexp.MustCompile(`^\s*(?:[-*]|\d+\.)\s+`)

// eachPageSentence yields the sentences of a Markdown page, without headings. Each cell of a table
// is a paragraph. Code spans count as a word: they quote what others have written.
func eachPageSentence(page, src string, yield func(where, sentence string)) {
	codeSpan := regexp.MustCompile("`[^`]*`")
	var paragraph []string
	start := 1
	flush := func() {
		text := codeSpan.ReplaceAllString(strings.Join(paragraph, " "), "`code`")
		eachSentence(page+":"+strconv.Itoa(start), text, yield)
		paragraph = nil
	}
	for _, line := range proseLines(src) {
		text := strings.TrimSpace(line.text)
		if text == "" || listItem.MatchString(line.text) || strings.HasPrefix(text, "|") || strings.HasPrefix(text, "#") || strings.HasPrefix(text, "<!--") {
			flush()
		}
		if strings.HasPrefix(text, "|") {
			for cell := range strings.SplitSeq(text, "|") {
				start, paragraph = line.number, []string{strings.TrimSpace(cell)}
				flush()
			}
			continue
		}
		if text = listItem.ReplaceAllString(text, ""); text != "" && !strings.HasPrefix(text, "<!--") && !strings.HasPrefix(text, "#") {
			if paragraph == nil {
				start = line.number
			}
			paragraph = append(paragraph, text)
		}
	}
	flush()
}

// overlongLines yields the lines of a page that should have been wrapped, by their places.
func overlongLines(page, src string) func(yield func(where, line string) bool) {
	return func(yield func(where, line string) bool) {
		for _, line := range proseLines(src) {
			if strings.HasPrefix(line.text, "|") || strings.HasPrefix(line.text, "#") || strings.HasPrefix(line.text, "![") {
				continue
			}
			if utf8.RuneCountInString(line.text) > maxColumns && !yield(page+":"+strconv.Itoa(line.number), line.text) {
				return
			}
		}
	}
}
