package specjson

import (
	"errors"
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
	return d.readDocument()
}

// readDocument reads a spec.
func (d *reader) readDocument() (*dag.Spec, dag.Problems) {
	s := new(dag.Spec)
	if !d.expectKind('{', "the spec") || !d.readSpec(s) {
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
	if d.expectKind('{', "a generator's output") {
		tasks = d.readTasks()
	}
	if problems := d.checkEnd(); d.syntax != nil {
		return nil, problems
	}
	return tasks, d.Problems()
}

// CheckResult is the result of Check: the plan of a document or its problems, and warnings
// about members that are allowed but probably mistakes.
type CheckResult struct {
	Plan     *dag.Plan // nil when there are problems
	Problems dag.Problems
	Warnings dag.Problems
}

// Strict turns warnings into problems, for a caller that wants unknown members of jobs refused. The
// plan is then nil.
func (c *CheckResult) Strict() {
	if len(c.Warnings) > 0 {
		c.Plan, c.Problems, c.Warnings = nil, dag.JoinProblems(c.Problems, c.Warnings), nil
	}
}

// Check decodes and plans a spec. It reports the problems of Decode together with those that
// dag.NewPlan finds in the rest, so that one answer lists all that the author has to mend. The plan
// shares one copy of the document's text; doc itself is not kept.
func Check(doc []byte, limits dag.Limits) CheckResult { return check(doc, limits, true) }

// check is Check, and Plan when warn is false: a stored document had its warnings when it was
// submitted.
func check(doc []byte, limits dag.Limits, warn bool) (c CheckResult) {
	d := newReader(doc)
	defer d.release()
	d.warn = warn
	spec, problems := d.readDocument()
	c.Plan, c.Problems = planSpec(spec, problems, limits)
	c.Warnings = d.allWarnings()
	return c
}

// CheckFrom is Check for a long document that is read from r. It takes only the memory
// of the plan: about the bytes of its texts, plus 150 bytes per task. Check is faster for
// a short document. An error is that of r, and the result is then empty.
func CheckFrom(r io.Reader, limits dag.Limits) (CheckResult, error) {
	return checkFrom(r, limits, true)
}

// checkFrom is CheckFrom, and PlanFrom when warn is false. A failure of r ends the decoder like an
// early end of the document would, so it is looked at before the problems: the document itself may
// be sound.
func checkFrom(r io.Reader, limits dag.Limits, warn bool) (c CheckResult, err error) {
	d := newStream(r)
	d.warn = warn
	spec, problems := d.readDocument()
	switch err := d.text.readErr; err {
	case nil, io.EOF:
	case errLongValue:
		c.Problems = dag.Problems{{Message: "the value at " + d.text.describeOffset(d.text.done) + " is longer than " + strconv.Itoa(maxOpenBytes) + " bytes"}}
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

// PlanFrom is CheckFrom without warnings. It is what loads a long document from the store.
func PlanFrom(r io.Reader, limits dag.Limits) (*dag.Plan, dag.Problems, error) {
	c, err := checkFrom(r, limits, false)
	return c.Plan, c.Problems, err
}

// planSpec plans a decoded spec. A spec with problems is planned too, only to find more of them.
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

// Bounds on the parts of a spec, in bytes of UTF-8 unless said otherwise. Tags and
// labels are in memory for as long as their run is not finished, and in every list;
// a name is part of a task's environment and of the addresses of the REST API. A longer
// text is a problem, reported before the document is stored.
const (
	MaxNameBytes      = 1024     // name of a task or a parameter
	MaxTagBytes       = 1024     // tag
	MaxLabels         = 64       // members of tags, a number
	MaxLabelNameBytes = 256      // name of one
	MaxLabelBytes     = 1024     // value of one
	MaxParameterBytes = 1 << 20  // one value of a parameter
	MaxValueBytes     = 8 << 20  // any other text, and a member of a job that is only kept, as JSON
	maxOpenBytes      = 16 << 20 // of one value of a streamed document, held in memory
)

// errLongValue: a value of a streamed document is longer than maxOpenBytes.
var errLongValue = errors.New("a value is too long")

// checkLength reports a text that is longer than limit bytes.
func (d *reader) checkLength(what, text string, limit int) bool {
	if len(text) <= limit {
		return true
	}
	d.addProblem(what + " has " + strconv.Itoa(len(text)) + " bytes, at most " + strconv.Itoa(limit) + " are allowed")
	return false
}
