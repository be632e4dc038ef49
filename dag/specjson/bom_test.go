package specjson_test

import (
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/dag/specjson"
)

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
