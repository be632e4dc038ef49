package dag_test

import (
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/dag"
)

func TestProblemsError(t *testing.T) {
	for _, c := range []struct {
		problems dag.Problems
		want     string
	}{
		{nil, "no problem"},
		{dag.Problems{{Message: "m"}}, "m"},
		{dag.Problems{{Pointer: "/p", Message: "m"}}, "/p: m"},
		{dag.Problems{{Pointer: "/p", Message: "m"}, {}, {}}, "/p: m (and 2 more)"},
		{dag.Problems{{Pointer: "/tasks/a b/ü", Message: "m"}}, "/tasks/a b/ü: m"},
		{dag.Problems{{Pointer: "/tasks/a\nb\u2028", Message: "m"}}, `"/tasks/a\nb\u2028": m`}, // it stays one line
	} {
		if got := c.problems.Error(); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

func TestCollectorIsBounded(t *testing.T) {
	var c dag.ProblemCollector
	for i := range 5000 {
		c.Add(dag.Problem{Pointer: "/" + strings.Repeat("x", i%7)})
	}
	problems := c.Problems()
	if len(problems) != 1001 || problems[1000].Message != "and 4000 more problems" || c.Len() != 5000 || !c.Full() {
		t.Errorf("%d problems, %d in all, the last %+v", len(problems), c.Len(), problems[len(problems)-1])
	}
	if joined := dag.JoinProblems(problems, problems); len(joined) != 1001 {
		t.Errorf("%d joined", len(joined))
	}
	joined := dag.JoinProblems(problems[:999], dag.Problems{{Pointer: "/a"}, {Pointer: "/b"}, {Pointer: "/c"}})
	if len(joined) != 1001 || joined[999].Pointer != "/a" || joined[1000].Message != "and 2 more problems" {
		t.Errorf("joined to %v", joined[998:])
	}
}

func TestCollectorDropsRepeats(t *testing.T) {
	var c dag.ProblemCollector
	for _, m := range []string{"a", "a", "b", "a"} {
		c.Add(dag.Problem{Message: m})
	}
	if c.Len() != 3 {
		t.Errorf("%v", c.Problems())
	}
}

func TestLongPointersAreCutAtAMember(t *testing.T) {
	var c dag.ProblemCollector
	c.Add(dag.Problem{Pointer: "/a/b~1/" + strings.Repeat("x", dag.MaxPointerBytes)})
	if got := c.Problems()[0].Pointer; got != "/a/b~1" {
		t.Errorf("%q", got)
	}
}

func TestQuote(t *testing.T) {
	for _, c := range []struct{ name, want string }{
		{"a", `"a"`},
		{"a\"\n\x00", `"a\"\n\x00"`},
		{strings.Repeat("é", 51), `"` + strings.Repeat("é", 50) + `…" (102 bytes)`},
		{"x" + strings.Repeat("é", 51), `"x` + strings.Repeat("é", 49) + `…" (103 bytes)`},
	} {
		if got := dag.Quote(c.name); got != c.want {
			t.Errorf("%s, want %s", got, c.want)
		}
	}
}

func TestEscapePointer(t *testing.T) {
	if got := dag.EscapePointer("a/b~c~1"); got != "a~1b~0c~01" {
		t.Errorf("%q", got)
	}
}
