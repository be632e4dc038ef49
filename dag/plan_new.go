package dag

// NewPlan validates a spec as a graph and lays out its templates. It reports
// everything that is wrong; the plan is nil when anything is.
func NewPlan(s *Spec, l Limits) (*Plan, Problems) {
	return nil, Problems{{Message: "not planned"}}
}

// Extend adds what a task of a generator generated: a new plan, p is unchanged.
// The templates that get edges are new values, the others are shared. Started
// tells whether any task of a template was ever granted a slot: such a template
// gets no new parents. Pointers of problems are those of the generator's output.
func (p *Plan) Extend(generator uint32, tasks []TaskSpec, started func(template int) bool) (*Plan, Problems) {
	return nil, Problems{{Message: "not planned"}}
}
