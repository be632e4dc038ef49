package dag

// Match is a one-to-one edge: a task of the child waits for those tasks of the
// parent that have the same values of the named parameters. The tasks of either
// end fall into the same number of groups, one per combination of values; a
// child's group waits for the parent's group of the same number. It is immutable.
type Match struct {
	ID            int      // in Plan.Matches
	Names         []string // the parameters, sorted
	Groups        uint32   // combinations of their values
	Parent, Child int      // templates, as indexes into Plan.Templates
}

// GroupOfParent is the group of a task of the parent. Local counts from the
// template's Base.
func (m *Match) GroupOfParent(local uint32) uint32 { return 0 }

// GroupOfChild is the group of a task of the child. Local counts from the
// template's Base.
func (m *Match) GroupOfChild(local uint32) uint32 { return 0 }

// ParentsPerGroup is how many tasks of the parent every group has.
func (m *Match) ParentsPerGroup() uint32 { return 0 }

// EachChild yields the child's tasks in a group as maximal ranges of
// neighbours, ascending: n tasks from firstLocal on.
func (m *Match) EachChild(group uint32, yield func(firstLocal, n uint32)) {}
