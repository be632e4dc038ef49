package specjson

import "github.com/caravan-dag/caravan/dag"

// Decode decodes a submitted spec. A syntax error is the one and only problem,
// and names its line, column and offset. After any other problem decoding goes
// on, and the spec that is returned beside them is what there was; it serves to
// find further problems (see Plan) and must not be run. The spec is nil after a
// syntax error, or when the document is no object or has no object of tasks.
func Decode(doc []byte) (*dag.Spec, dag.Problems) {
	d := newReader(doc)
	defer d.release()
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

// Plan decodes and plans a spec, and reports everything that is wrong with it at
// once: what Decode finds, and what dag.NewPlan finds in the rest. Either the plan
// or the problems are nil.
func Plan(doc []byte, limits dag.Limits) (*dag.Plan, dag.Problems) {
	spec, problems := Decode(doc)
	if spec == nil {
		return nil, problems
	}
	plan, more := dag.NewPlan(spec, limits)
	if len(problems) == 0 {
		return plan, more
	}
	return nil, dag.JoinProblems(problems, more)
}
