package specjson

import (
	"io"
	"strconv"

	"github.com/caravan-dag/caravan/dag"
)

// Decode decodes a submitted spec. A syntax error is the one and only problem,
// and names its line, column and offset. After any other problem decoding goes
// on, and the spec that is returned beside them is what there was; it serves to
// find further problems (see Plan) and must not be run. The spec is nil after a
// syntax error, or when the document is no object or has no object of tasks.
func Decode(doc []byte) (*dag.Spec, dag.Problems) {
	d := newReader(doc)
	defer d.release()
	return d.document()
}

// document reads a spec.
func (d *reader) document() (*dag.Spec, dag.Problems) {
	s := new(dag.Spec)
	if !d.is('{', "the spec") || !d.spec(s) {
		s = nil
	}
	if problems := d.end(); d.syntax != nil {
		return nil, problems
	}
	return s, d.Problems()
}

// DecodeTasks decodes a generator's output: a JSON object of tasks, of the shape
// of a spec's tasks. It may be empty. Otherwise it is like Decode.
func DecodeTasks(doc []byte) ([]dag.TaskSpec, dag.Problems) {
	d := newReader(doc)
	defer d.release()
	var tasks []dag.TaskSpec
	if d.is('{', "a generator's output") {
		tasks = d.tasks()
	}
	if problems := d.end(); d.syntax != nil {
		return nil, problems
	}
	return tasks, d.Problems()
}

// Checked is what there is to say of a document: its plan, or everything that is wrong
// with it; and what is allowed but probably not meant.
type Checked struct {
	Plan     *dag.Plan // nil when there are problems
	Problems dag.Problems
	Warnings dag.Problems
}

// Strict makes warnings problems.
func (c *Checked) Strict() {
	if len(c.Warnings) > 0 {
		c.Plan, c.Problems, c.Warnings = nil, dag.JoinProblems(c.Problems, c.Warnings), nil
	}
}

// Check decodes and plans a spec, and reports everything that is wrong with it at once:
// what Decode finds, and what dag.NewPlan finds in the rest.
func Check(doc []byte, limits dag.Limits) Checked { return check(doc, limits, true) }

func check(doc []byte, limits dag.Limits, warn bool) (c Checked) {
	d := newReader(doc)
	defer d.release()
	d.warn = warn
	spec, problems := d.document()
	c.Plan, c.Problems = planOf(spec, problems, limits)
	c.Warnings = d.told()
	return c
}

// CheckFrom is Check of a document that is read from r, and of which no more is held in
// memory than the plan takes: about its texts, and 150 bytes beside those of each task.
// It is for long documents; of a short one Check is faster. The error is r's, and then
// there is nothing else.
func CheckFrom(r io.Reader, limits dag.Limits) (Checked, error) { return checkFrom(r, limits, true) }

func checkFrom(r io.Reader, limits dag.Limits, warn bool) (c Checked, err error) {
	d := newStream(r)
	d.warn = warn
	spec, problems := d.document()
	switch err := d.text.failed; err {
	case nil, io.EOF:
	case errLongValue:
		c.Problems = dag.Problems{{Message: "the value at " + d.text.place(d.text.done) + " is longer than " + strconv.Itoa(maxOpenBytes) + " bytes"}}
		return c, nil
	default:
		return c, err
	}
	c.Plan, c.Problems = planOf(spec, problems, limits)
	c.Warnings = d.told()
	return c, nil
}

// Plan is Check without warnings. Stored documents are planned each time that they are loaded.
func Plan(doc []byte, limits dag.Limits) (*dag.Plan, dag.Problems) {
	c := check(doc, limits, false)
	return c.Plan, c.Problems
}

// PlanFrom is CheckFrom without warnings.
func PlanFrom(r io.Reader, limits dag.Limits) (*dag.Plan, dag.Problems, error) {
	c, err := checkFrom(r, limits, false)
	return c.Plan, c.Problems, err
}

func planOf(spec *dag.Spec, problems dag.Problems, limits dag.Limits) (*dag.Plan, dag.Problems) {
	if spec == nil {
		return nil, problems
	}
	plan, more := dag.NewPlan(spec, limits)
	if len(problems) == 0 {
		return plan, more
	}
	return nil, dag.JoinProblems(problems, more)
}
