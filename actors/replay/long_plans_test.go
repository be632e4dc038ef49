package replay

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// text is a long document.
type text struct {
	doc    string
	err    error // of Open
	opened int
}

func (d *text) Size() int64 { return int64(len(d.doc)) }

func (d *text) Open() (io.ReadCloser, error) {
	d.opened++
	return io.NopCloser(strings.NewReader(d.doc)), d.err
}

func storedLong(run messages.RunID, d *text) *persistence.Stored {
	return &persistence.Stored{Summary: &messages.Summary{ID: run}, Long: d}
}

// A long document is planned once for all who look at it, and not while others are.
func TestLongPlansAreShared(t *testing.T) {
	spared := 0
	long := &LongPlans{LowerGCPressure: func() func() { spared++; return func() { spared-- } }}
	limits := dag.Limits{MaxTasks: 1} // tighter than when it was accepted
	doc := &text{doc: `{"tag":"a","tasks":{"a":{"job":{"command":["x"]}},"g":{"isGenerator":true,"job":{"command":["x"]},"parents":["a"]}}}`}
	first, err := storedPlan(storedLong(1, doc), limits, long)
	if err != nil {
		t.Fatal(err)
	}
	again, err := storedPlan(storedLong(1, doc), limits, long)
	if err != nil || again != first || doc.opened != 1 || spared != 0 {
		t.Errorf("%v: opened %d times, spared %d times too often", err, doc.opened, spared)
	}
	set := storedLong(1, doc)
	set.Sets = []persistence.GeneratedSet{{N: 1, Generator: 1, JSON: []byte(`{"b":{"job":{"command":["x"]}}}`)}}
	if more, err := storedPlan(set, limits, long); err != nil || more.Tasks != 3 || more.TaskName(2) != "b" || first.Tasks != 2 {
		t.Errorf("with a set: %v, %v", more, err)
	}
	other, err := storedPlan(storedLong(2, &text{doc: strings.Replace(doc.doc, `"a","tasks"`, `"b","tasks"`, 1)}), limits, long)
	if err != nil || other.Tag != "b" {
		t.Errorf("another run: %v, %v", other, err)
	}
	if third, err := storedPlan(storedLong(1, doc), limits, long); err != nil || third.Tag != "a" || doc.opened != 2 {
		t.Errorf("the first run again: %v, opened %d times", err, doc.opened)
	}
	runtime.KeepAlive(first)
}

func TestLongPlansThatCannotBeMade(t *testing.T) {
	broken := errors.New("broken")
	for want, d := range map[string]*text{
		"definition: broken":                 {err: broken},
		"definition: invalid JSON at line 1": {doc: `{`},
		"at least one task":                  {doc: `{"tasks":{}}`},
	} {
		if plan, err := storedPlan(storedLong(1, d), dag.Limits{}, &LongPlans{}); plan != nil || err == nil || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}
