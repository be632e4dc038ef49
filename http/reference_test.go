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
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/dag/specjson"
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
	e := contractEngine(t)
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

// TestBoundsOfTheOperationsPage: the numbers in docs/operations.md are those of the code.
func TestBoundsOfTheOperationsPage(t *testing.T) {
	page, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	thousands := func(n int) string {
		if n < 1000 {
			return fmt.Sprint(n)
		}
		return fmt.Sprintf("%d,%03d", n/1000, n%1000)
	}
	s := New(Config{Engine: &fakeEngine{}})
	cfg := s.cfg
	for _, row := range []string{
		"| open connections | " + thousands(cfg.MaxConns) + ";",
		"three quarters of the connections, " + thousands(maxWaits(cfg.MaxConns)) + " |",
		"three quarters of its connections, " + thousands(maxWaits(cfg.MaxPerClient)) + " |",
		fmt.Sprintf("| %d MiB; a body of more than %d MiB may not take the last quarter. The first %d KiB of each", totalBodyBytes>>20, largeBodyBytes>>20, uncountedBytes>>10),
		fmt.Sprintf("| those of one client | half of them, %d MiB;", s.bodies.perClient>>20),
		fmt.Sprintf("| %d KiB, and %d times the content; some 40 KiB at a time |", maxFraming>>10, framingPerByte),
		fmt.Sprintf("| trailers of a body in chunks | %d KiB |", maxHeader>>10),
		fmt.Sprintf("| bodies of more than %d MiB that are received or wait | %d,", longBodyBytes>>20, maxLongBodies),
		fmt.Sprintf("| a document, before and after decompression | %d MiB |", cfg.MaxBody>>20),
		fmt.Sprintf("| window of a zstd body | %d MiB |", maxZstdWindow>>20),
		fmt.Sprintf("| a line of many | %d MiB,", maxLineBytes>>20),
		fmt.Sprintf("| time for a line, from its first byte | %.0f s, and 1 s for each %d KiB |", cfg.ReadTimeout.Seconds(), minBodyRate>>10),
		fmt.Sprintf("| the path in a line of the audit log | %d KiB |", maxAuditedPath>>10),
		"| refused lines of a request | " + thousands(maxRefusedLines) + " |",
		fmt.Sprintf("| time for a request to arrive, header and body | %.0f s, and 1 s for each %d KiB of a body of more than %d MiB or in chunks |", cfg.ReadTimeout.Seconds(), minBodyRate>>10, maxOtherBody>>20),
		fmt.Sprintf("| time for a client to take %d KiB of an answer | %.0f s |", writePiece>>10, cfg.WriteTimeout.Seconds()),
		fmt.Sprintf("| time between two requests of a connection | %.0f min |", cfg.IdleTimeout.Minutes()),
		fmt.Sprintf("| the form of a login | %d KiB |", maxLoginForm>>10),
		fmt.Sprintf("| other bodies | %d MiB |", maxOtherBody>>20),
		fmt.Sprintf("| request line and headers | %d KiB |", maxHeader>>10),
		"| `tag` | " + thousands(specjson.MaxTagBytes) + " bytes |",
		fmt.Sprintf("| `tags` | %d, names of %d bytes, values of %s bytes |", specjson.MaxLabels, specjson.MaxLabelNameBytes, thousands(specjson.MaxLabelBytes)),
		"| names of tasks and parameters | " + thousands(specjson.MaxNameBytes) + " bytes |",
		fmt.Sprintf("| a value of a parameter | %d MiB |", specjson.MaxParameterBytes>>20),
		fmt.Sprintf("| any other text, or member of a job that is only kept | %d MiB as JSON |", specjson.MaxValueBytes>>20),
		"| `errors` of one document | " + thousands(maxListedErrors) + ";",
		"| `warnings` of one document | " + thousands(specjson.MaxWarnings) + ";",
		"| entries of a page | " + thousands(maxPageSize) + "; " + thousands(defaultPageSize) + " unless asked |",
		fmt.Sprintf("| bytes of a page of the list of runs | %d MiB, and the entry that exceeds them; in a cluster of several parts, an equal share of %d MiB for the runs of each |", maxPageBytes>>20, maxPageBytes>>20),
		fmt.Sprintf("| `state?wait=` | %.0f s |", maxWaitForState.Seconds()),
		fmt.Sprintf("%d KiB of its head and tail in documents", inlineOutput>>10),
	} {
		if !strings.Contains(string(page), row) {
			t.Errorf("the page does not say: %s", row)
		}
	}
}

// TestLimitsOfTheReference: the numbers in docs/rest.md are the server's defaults.
func TestLimitsOfTheReference(t *testing.T) {
	page, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	cfg := New(Config{Engine: &fakeEngine{}}).cfg
	for _, sentence := range []string{
		fmt.Sprintf("the request did not arrive in time (%d s; more for a large body, at %d KiB/s)", cfg.ReadTimeout/time.Second, minBodyRate>>10),
		fmt.Sprintf("the body is longer than its limit: %d MiB (`--max-body`) for a spec, before and after decompression; %d MiB for a line of a batch; %d MiB for any other body", cfg.MaxBody>>20, maxLineBytes>>20, maxOtherBody>>20),
		fmt.Sprintf("request line and headers are longer than %d KiB", maxHeader>>10),
		fmt.Sprintf("a limit for all clients is reached: connections (%d,%03d)", cfg.MaxConns/1000, cfg.MaxConns%1000),
		fmt.Sprintf("size of the page, 1 to %d,%03d; default: all", maxPageSize/1000, maxPageSize%1000),
		fmt.Sprintf("size of the page, 1 to %d,%03d; default %d,%03d", maxPageSize/1000, maxPageSize%1000, defaultPageSize/1000, defaultPageSize%1000),
		fmt.Sprintf("(at most %d,%03d; the\nsentence has the number of all)", maxListedErrors/1000, maxListedErrors%1000),
		fmt.Sprintf("A log longer than %d KiB shows its first and last %d KiB", 2*inlineOutput>>10, inlineOutput>>10),
	} {
		if !strings.Contains(string(page), sentence) {
			t.Errorf("the reference does not say: %s", sentence)
		}
	}
}

// TestStatesOfARun: each word of a run's state reaches the engine, which decides;
// a query has no meaning there.
func TestStatesOfARun(t *testing.T) {
	e := contractEngine(t)
	s := serve(t, e)
	var want []string
	for _, word := range []string{"QUEUED", "RUNNING", "PAUSED", "COMPLETED", "ERRORED", "KILLED"} {
		r := s.do("PATCH", "/v1/dagrun/2/state/"+word+"?force=1", "")
		if r.status != 200 || r.body != `{"runID":2}` {
			t.Errorf("%s: %d %s", word, r.status, r.body)
		}
		want = append(want, "2 "+word)
	}
	if got := strings.Join(e.patched, ", "); got != strings.Join(want, ", ") {
		t.Errorf("the engine was asked for %s", got)
	}
}

// TestMembersThatAreNeverLeftOut: empty members are present.
func TestMembersThatAreNeverLeftOut(t *testing.T) {
	e := &fakeEngine{}
	e.add(t, `{"tasks":{"a":{"job":{"command":["x"]}}}}`, dag.RunQueued, dag.TaskQueued, 5, 6)
	e.runs[0].view.Changes = []dag.StateChange{{At: 5, State: dag.RunQueued}}
	s := serve(t, e)
	sameJSON(t, s.get("/v1/dagrun/0").body, `{"runID":0,"tag":"",
		"tasks":{"a":{"maxRetries":0,"retryIntervalSeconds":0,"job":{"environment":[],"command":["x"]},"children":[],"parents":[],"isGenerator":false}},
		"taskStates":{"a":"QUEUED"},"taskAttempts":{"a":[]},"dagStateChanges":[{"time":"5","state":"QUEUED"}]}`)
	sameJSON(t, s.get("/v1/dagruns").body, `[{"runID":0,"tag":"","state":"QUEUED","startTime":"5","lastUpdate":"6","taskCounts":{"QUEUED":1}}]`)
}
