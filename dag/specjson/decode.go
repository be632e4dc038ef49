package specjson

import (
	"io"
	"strconv"

	"github.com/caravan-dag/caravan/dag"
)

// Decode decodes a submitted spec. A syntax error is the only problem, with its line,
// column and offset. After any other problem decoding goes on. The spec that is then
// returned serves to find further problems (see Plan) and must not be run. The spec is
// nil after a syntax error, or when the document or its tasks are not an object.
func Decode(doc []byte) (*dag.Spec, dag.Problems) {
	d := newReader(doc)
	defer d.release()
	return d.document()
}

// document reads a spec.
func (d *reader) document() (*dag.Spec, dag.Problems) {
	s := new(dag.Spec)
	if !d.expect('{', "the spec") || !d.spec(s) {
		s = nil
	}
	if problems := d.checkEnd(); d.syntax != nil {
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
	if d.expect('{', "a generator's output") {
		tasks = d.tasks()
	}
	if problems := d.checkEnd(); d.syntax != nil {
		return nil, problems
	}
	return tasks, d.Problems()
}

// Checked is the result of Check: the plan of a document or its problems, and warnings
// about members that are allowed but probably mistakes.
type Checked struct {
	Plan     *dag.Plan // nil when there are problems
	Problems dag.Problems
	Warnings dag.Problems
}

// Strict turns warnings into problems.
func (c *Checked) Strict() {
	if len(c.Warnings) > 0 {
		c.Plan, c.Problems, c.Warnings = nil, dag.JoinProblems(c.Problems, c.Warnings), nil
	}
}

// Check decodes and plans a spec. It reports the problems of Decode together with those
// that dag.NewPlan finds in the rest.
func Check(doc []byte, limits dag.Limits) Checked { return check(doc, limits, true) }

func check(doc []byte, limits dag.Limits, warn bool) (c Checked) {
	d := newReader(doc)
	defer d.release()
	d.warn = warn
	spec, problems := d.document()
	c.Plan, c.Problems = planSpec(spec, problems, limits)
	c.Warnings = d.allWarnings()
	return c
}

// CheckFrom is Check for a long document that is read from r. It takes only the memory
// of the plan: about the bytes of its texts, plus 150 bytes per task. Check is faster for
// a short document. An error is that of r, and Checked is then empty.
func CheckFrom(r io.Reader, limits dag.Limits) (Checked, error) { return checkFrom(r, limits, true) }

func checkFrom(r io.Reader, limits dag.Limits, warn bool) (c Checked, err error) {
	d := newStream(r)
	d.warn = warn
	spec, problems := d.document()
	switch err := d.text.readErr; err {
	case nil, io.EOF:
	case errLongValue:
		c.Problems = dag.Problems{{Message: "the value at " + d.text.place(d.text.done) + " is longer than " + strconv.Itoa(maxOpenBytes) + " bytes"}}
		return c, nil
	default:
		return c, err
	}
	c.Plan, c.Problems = planSpec(spec, problems, limits)
	c.Warnings = d.allWarnings()
	return c, nil
}

// Plan is Check without warnings. A stored document is planned each time it is loaded.
func Plan(doc []byte, limits dag.Limits) (*dag.Plan, dag.Problems) {
	c := check(doc, limits, false)
	return c.Plan, c.Problems
}

// PlanFrom is CheckFrom without warnings.
func PlanFrom(r io.Reader, limits dag.Limits) (*dag.Plan, dag.Problems, error) {
	c, err := checkFrom(r, limits, false)
	return c.Plan, c.Problems, err
}

func planSpec(spec *dag.Spec, problems dag.Problems, limits dag.Limits) (*dag.Plan, dag.Problems) {
	if spec == nil {
		return nil, problems
	}
	plan, more := dag.NewPlan(spec, limits)
	if len(problems) == 0 {
		return plan, more
	}
	return nil, dag.JoinProblems(problems, more)
}
