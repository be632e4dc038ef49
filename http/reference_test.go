package http

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

var update = flag.Bool("update", false, "rewrite the examples of docs/rest.md")

const reference = "../docs/rest.md"

// example is a request in the reference and the answer under it.
var example = regexp.MustCompile("(?s)```http\n([A-Z]+ .*?)```\n```http\n(.*?)```\n")

// TestReference sends the requests of docs/rest.md and compares the answers.
func TestReference(t *testing.T) {
	page, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	e := seedEngine(t)
	e.runs = e.runs[:3]
	e.runs[0].view.Seq = 17
	e.runs[1].view.Times[0] = dag.Times{First: 1645218441361180233, Last: 1645218455775103710}
	for i := range 2 {
		text := e.runs[0].records[i].Stdout.Inline
		e.runs[0].logs[logKey(fmt.Sprint("simple_", i), 1, messages.Stdout)] = &fakeLog{data: text}
	}
	e.conflict = func(r *fakeRun, to dag.RunState) error {
		if r.view.State == dag.RunCompleted {
			return &messages.Error{Code: messages.Conflict, Text: fmt.Sprintf("run %d: a run that is %s cannot be set to %s", r.view.ID, r.view.State, to)}
		}
		return nil
	}
	s := serve(t, e, func(c *Config) { c.Version = VersionInfo{Version: "v0.1.0", Commit: "275b589", Go: "go1.26.0"} })
	n := 0
	now := example.ReplaceAllFunc(page, func(block []byte) []byte {
		n++
		m := example.FindSubmatch(block)
		got := s.answerBlock(string(m[1]))
		if got != string(m[2]) && !*update {
			t.Errorf("%s\nanswers\n%s\nwhile the reference says\n%s", m[1], got, m[2])
		}
		return fmt.Appendf(nil, "```http\n%s```\n```http\n%s```\n", m[1], got)
	})
	if n < 20 {
		t.Errorf("%d examples", n)
	}
	if *update {
		if err := os.WriteFile(reference, now, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// answerBlock sends the request of a block and lays out the answer.
func (s *service) answerBlock(request string) string {
	head, body, _ := strings.Cut(request, "\n\n")
	lines := strings.Split(strings.TrimSpace(head), "\n")
	method, target, _ := strings.Cut(lines[0], " ")
	r := s.do(method, target, strings.TrimSpace(body), lines[1:]...)
	var out bytes.Buffer
	fmt.Fprintf(&out, "%d\n", r.status)
	for _, name := range []string{"Content-Range", "ETag", "Link", "Location", "Retry-After", "X-Next-Cursor", "X-State", "X-Tasks"} {
		if v := r.header.Get(name); v != "" {
			fmt.Fprintf(&out, "%s: %s\n", name, v)
		}
	}
	out.WriteByte('\n')
	if len(r.body) < 100 || json.Indent(&out, []byte(r.body), "", "  ") != nil {
		out.WriteString(r.body)
	}
	return strings.TrimRight(out.String(), "\n") + "\n"
}

// TestReferenceIsComplete: every route has its section, every section its route,
// and every status that is answered stands in the table.
func TestReferenceIsComplete(t *testing.T) {
	page, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	var routes, sections []string
	for _, r := range new(Server).routes() {
		routes = append(routes, r.method+" "+r.path)
	}
	for _, m := range regexp.MustCompile(`(?m)^### ([A-Z]+ /.*)$`).FindAllSubmatch(page, -1) {
		sections = append(sections, string(m[1]))
	}
	slices.Sort(routes)
	slices.Sort(sections)
	if !slices.Equal(routes, sections) {
		t.Errorf("routes\n%q\nsections\n%q", routes, sections)
	}
	for _, status := range []int{400, 401, 403, 404, 405, 408, 409, 413, 415, 416, 421, 422, 429, 431, 500, 503, 505} {
		if !bytes.Contains(page, fmt.Appendf(nil, "\n| %d | ", status)) {
			t.Errorf("the table has no %d", status)
		}
	}
}
