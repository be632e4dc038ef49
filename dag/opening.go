package dag

// Opening is what there is to say of a new run before anything has happened in it.
// It costs the templates, not the tasks: a run that has to wait needs no Run.
type Opening struct {
	Records []byte   // what TakeRecords of NewRun gives
	Demands []Demand // what Init of NewRun gives
	Counts  [NumTaskStates]uint32
}

// Opening is the Opening of NewRun(p, …, now).
func (p *Plan) Opening(now int64) Opening {
	r := Run{now: now, changes: []StateChange{{At: now, State: RunQueued}}}
	r.recordState()
	ready := make([]int, len(p.Classes))
	for _, t := range p.Templates {
		if len(t.Parents) == 0 { // a parent has tasks: there is always one to wait for
			ready[t.Class] += int(t.Count)
		}
	}
	o := Opening{Records: r.TakeRecords(nil)}
	for class, want := range ready {
		if want > 0 {
			o.Demands = append(o.Demands, Demand{Class: class, Want: want})
		}
	}
	o.Counts[TaskQueued] = p.Tasks
	return o
}
