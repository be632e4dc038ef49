package specjson_test

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/dag/specjson"
)

// TestBounds: a member of the longest length is taken, one byte more is a problem at
// its place, in documents of both kinds.
func TestBounds(t *testing.T) {
	x := func(n int) string { return strings.Repeat("x", n) }
	labels := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `,"l%d":"v"`, i)
		}
		return b.String()[1:]
	}
	for _, c := range []struct {
		pointer string
		limit   int
		doc     func(n int) string // members of a spec beside a task
	}{
		{"/tag", specjson.MaxTagBytes, func(n int) string { return `"tag":"` + x(n) + `"` }},
		{"/tags/a", specjson.MaxLabelBytes, func(n int) string { return `"tags":{"a":"` + x(n) + `"}` }},
		{"/tags/xxx", specjson.MaxLabelNameBytes, func(n int) string { return `"tags":{"` + x(n) + `":"v"}` }},
		{"/tags/l64", specjson.MaxLabels, func(n int) string { return `"tags":{` + labels(n) + `}` }},
		{"/parameters/xxx", specjson.MaxNameBytes, func(n int) string { return `"parameters":{"` + x(n) + `":"v"}` }},
		{"/parameters/P", specjson.MaxParameterBytes, func(n int) string { return `"parameters":{"P":"` + x(n) + `"}` }},
		{"/parameters/P/1", specjson.MaxParameterBytes, func(n int) string { return `"parameters":{"P":["a","` + x(n) + `"]}` }},
		{"/jobDefaults/other", specjson.MaxValueBytes, func(n int) string { return `"jobDefaults":{"other":"` + x(n-2) + `"}` }},
	} {
		for _, over := range []int{0, 1} {
			text := `{` + c.doc(c.limit+over) + `,"tasks":{"a":{"job":{"executor":"noop"}}}}`
			_, short := specjson.Plan([]byte(text), dag.Limits{})
			_, long, err := specjson.PlanFrom(strings.NewReader(text), dag.Limits{})
			for kind, problems := range map[string]dag.Problems{"short": short, "long": long} {
				if over == 0 && len(problems) > 0 || over == 1 && (len(problems) != 1 || !strings.HasPrefix(problems[0].Pointer, c.pointer)) || err != nil {
					t.Errorf("%s with %d, %s document: %.200v %v", c.pointer, c.limit+over, kind, problems, err)
				}
			}
		}
	}
}

// TestEndlessValues: what a value takes in memory is bounded before it has ended.
func TestEndlessValues(t *testing.T) {
	for _, begun := range []string{`{"tag":"`, `{"tasks":{"a":{"job":{"other":[`, `{"x`, `{"parameters":{"P":["`, `{"tag":`} {
		fill := byte('x')
		switch begun[len(begun)-1] {
		case '[':
			fill = '['
		case ':':
			fill = ' '
		}
		r := &counting{r: io.MultiReader(strings.NewReader(begun), io.LimitReader(same(fill), 1<<30))}
		plan, problems, err := specjson.PlanFrom(r, dag.Limits{})
		if plan != nil || len(problems) == 0 || err != nil {
			t.Errorf("%s…: %v %v", begun, problems, err)
		}
		if r.n > 64<<20 {
			t.Errorf("%s…: %d bytes were read", begun, r.n)
		}
	}
}

type counting struct {
	r io.Reader
	n int
}

func (c *counting) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += n
	return n, err
}

// same reads as one byte over and over.
type same byte

func (s same) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(s)
	}
	return len(p), nil
}

// TestByteOrderMark: one in front of a document is skipped, wherever it is read from;
// a second one is not.
func TestByteOrderMark(t *testing.T) {
	const mark, doc = "\xEF\xBB\xBF", `{"tag":"x","tasks":{"a":{"job":{"command":["true"]}}}}`
	for _, c := range []struct {
		text string
		ok   bool
	}{{mark + doc, true}, {mark + " " + doc, true}, {doc, true}, {mark + mark + doc, false}, {mark[:2] + doc, false}, {mark, false}, {"", false}} {
		if plan, problems := specjson.Plan([]byte(c.text), dag.Limits{}); (plan != nil) != c.ok {
			t.Errorf("Plan(%q): %v", c.text, problems)
		}
		for _, r := range []io.Reader{strings.NewReader(c.text), iotest.OneByteReader(strings.NewReader(c.text))} {
			if plan, problems, err := specjson.PlanFrom(r, dag.Limits{}); err != nil || (plan != nil) != c.ok {
				t.Errorf("PlanFrom(%q): %v %v", c.text, problems, err)
			}
		}
	}
	if tasks, problems := specjson.DecodeTasks([]byte(mark + `{"a":{"job":{"command":["true"]}}}`)); len(tasks) != 1 || len(problems) > 0 {
		t.Errorf("a generator's output: %d tasks, %v", len(tasks), problems)
	}
}
