package dag

import (
	"slices"
	"strconv"
	"strings"
)

// edgeMention is one mention of a dependency. collectEdges may find several mentions of
// one edge; dedupeEdges leaves one.
type edgeMention struct {
	parent, child int32
	match         int32 // index into planner.matchParams, or allToAll
	owner         int32 // the template that mentions it, or fromGenerator: implied by a generated set
	at            int32 // its place in the owner's parents, or ^place in its children
}

const (
	allToAll      = -1
	fromGenerator = -1
)

// collectEdges resolves what the new templates say about parents and children.
func (b *planner) collectEdges() {
	n := 0
	if b.list != nil {
		n = b.list.edgeCount
	}
	for i := range b.specs {
		n += len(b.specs[i].Parents) + len(b.specs[i].Children)
	}
	if n == 0 || !b.checkEdgeLimit(n) {
		return
	}
	b.edges = make([]edgeMention, 0, n)
	if b.list != nil {
		b.list.eachMention(b.addEdges)
		b.list.dropEdges()
	}
	for i := range b.specs {
		b.addEdges(i, b.specs[i].Parents, b.specs[i].Children)
	}
}

// addEdges adds what the i-th new template mentions.
func (b *planner) addEdges(i int, parents, children []EdgeSpec) {
	owner := int32(b.firstNew + i)
	for k, end := range parents {
		b.addEdge(edgeMention{child: owner, owner: owner, at: int32(k)}, end)
	}
	for k, end := range children {
		b.addEdge(edgeMention{parent: owner, owner: owner, at: ^int32(k)}, end)
	}
}

// checkEdgeLimit reports a problem when n more edges exceed the limit.
func (b *planner) checkEdgeLimit(n int) bool {
	if n += b.plan.edges; n <= maxEdges {
		return true
	}
	b.Add(Problem{
		Pointer: b.prefix,
		Message: "the tasks have " + strconv.Itoa(n) + " edges, the limit is " + strconv.Itoa(maxEdges),
		Limit:   true,
	})
	return false
}

// addEdge adds an edge whose other end has only a name yet. An edge with a problem is left out, so
// that later steps see only edges between templates that exist.
func (b *planner) addEdge(e edgeMention, end EdgeSpec) {
	if end.Task == "" && b.taskSpec(int(e.owner)-b.firstNew).HasDecodeErrors {
		return // reported by the decoder
	}
	other := b.plan.names.lookup(end.Task)
	if other < 0 {
		b.addProblem(b.edgePointer(e), "unknown task "+Quote(end.Task)+b.expandedNameHint(end.Task))
		return
	}
	if e.at >= 0 {
		e.parent = int32(other)
	} else {
		e.child = int32(other)
	}
	if other < b.firstNew && e.at < 0 && b.hasStarted(other) {
		b.addProblem(b.edgePointer(e), "task "+Quote(end.Task)+" has already started")
		return
	}
	e.match = allToAll
	if len(end.Match) > 0 {
		names, ok := b.resolveMatch(e, end.Match)
		if !ok {
			return
		}
		e.match = int32(len(b.matchParams))
		b.matchParams = append(b.matchParams, names)
	}
	b.edges = append(b.edges, e)
}

// expandedNameHint completes the error about an edge to an expanded task's name: edges
// name tasks as defined.
func (b *planner) expandedNameHint(name string) string {
	if base, _, ok := splitName(name); ok {
		if i := b.plan.names.lookup(base); i >= 0 && b.plan.Templates[i].Expanded {
			return "; edges name tasks as defined, " + Quote(base)
		}
	}
	return ""
}

// edgePointer is the pointer of an edge's mention.
func (b *planner) edgePointer(e edgeMention) string {
	if e.at < 0 {
		return b.templatePointer(int(e.owner)) + "/children/" + strconv.Itoa(int(^e.at))
	}
	return b.templatePointer(int(e.owner)) + "/parents/" + strconv.Itoa(int(e.at))
}

// resolveMatch is the parameters of a one-to-one edge, as indexes, sorted, each once. A generator
// cannot be matched: its children wait for all that it generates, and it does not know yet over
// what that expands.
func (b *planner) resolveMatch(e edgeMention, names []string) (params []int, ok bool) {
	parent, child := b.plan.Templates[e.parent], b.plan.Templates[e.child]
	before := b.Len()
	if parent.Generator {
		b.addProblem(b.edgePointer(e), "generator "+Quote(parent.Name)+" cannot be matched one to one: its children wait for everything that it generates")
	}
	for i, name := range names {
		if mistake := b.matchMistake(parent, child, name); mistake != "" {
			b.addProblem(b.edgePointer(e)+"/match/"+strconv.Itoa(i), mistake)
		} else {
			params = append(params, findParameter(b.plan.Parameters, name))
		}
	}
	slices.Sort(params)
	return slices.Compact(params), b.Len() == before
}

// matchMistake says why the tasks of two templates cannot be matched by the values of a parameter; ""
// when they can. Both must expand over it, and its values must be distinct: groups are numbered by the
// places of values in the list, and equal values at two places would be two groups.
func (b *planner) matchMistake(parent, child *Template, name string) string {
	i := findParameter(b.plan.Parameters, name)
	if i < 0 {
		return "unknown parameter " + Quote(name)
	}
	if !b.plan.Parameters[i].List {
		return "parameter " + Quote(name) + " is not a list"
	}
	for _, t := range []*Template{parent, child} {
		if _, ok := slices.BinarySearch(t.Axes, i); !ok {
			return "task " + Quote(t.Name) + " does not expand over " + Quote(name)
		}
	}
	if twice, ok := b.repeatedValue(i); ok {
		return "parameter " + Quote(name) + " has the value " + Quote(twice) + " twice, tasks cannot be matched by it"
	}
	return ""
}

// repeatedValue returns a value that a list parameter has more than once. The answer is kept: many
// edges may match by one long list.
func (b *planner) repeatedValue(param int) (value string, ok bool) {
	if answer, known := b.repeatedValues[param]; known {
		return answer.value, answer.ok
	}
	values := b.plan.Parameters[param].Values
	seen := make(map[string]struct{}, len(values))
	for _, v := range values {
		if _, ok = seen[v]; ok {
			value = v
			break
		}
		seen[v] = struct{}{}
	}
	if b.repeatedValues == nil {
		b.repeatedValues = make(map[int]repeatedValueResult)
	}
	b.repeatedValues[param] = repeatedValueResult{value, ok}
	return value, ok
}

// repeatedValueResult is what repeatedValue found.
type repeatedValueResult struct {
	value string
	ok    bool
}

// attachGenerated adds the implied edges of a generated set: from the generator to each
// new template without parents, and from every new template to the templates that wait
// for the generator.
func (b *planner) attachGenerated(g *Template) {
	n := len(b.plan.Templates) - b.firstNew
	hasParent := make([]bool, n)
	for _, e := range b.edges {
		if int(e.child) >= b.firstNew {
			hasParent[int(e.child)-b.firstNew] = true
		}
	}
	for i, has := range hasParent {
		if !has {
			b.edges = append(b.edges, edgeMention{parent: int32(g.Index), child: int32(b.firstNew + i), match: allToAll, owner: fromGenerator})
		}
	}
	if !b.checkEdgeLimit(len(b.edges) + n*len(g.Children)) {
		return
	}
	for _, waiting := range g.Children {
		if waiting.ViaGenerator {
			continue // an earlier set of this generator does not wait for the generator
		}
		for i := range n {
			b.edges = append(b.edges, edgeMention{parent: int32(b.firstNew + i), child: int32(waiting.Template), match: allToAll, owner: fromGenerator})
		}
	}
}

// dedupeEdges sorts the edges by child, in the order of their mention, and leaves one of each: an
// edge that both ends mention must be counted once. Either end may say match; two that differ are a
// problem. It is linear: a stable counting sort by child, then one array by parent that finds the
// edge of the same two ends among the child's. An entry of that array from an earlier child is
// below group, so the array is never cleared.
func (b *planner) dedupeEdges() {
	if len(b.edges) == 0 {
		return
	}
	b.sortByChild()
	// place[p] is 1 + the index in kept of the last edge from p.
	place := make([]int32, len(b.plan.Templates))
	kept := b.edges[:0]
	group := 0 // where the present child's edges begin in kept
	for _, e := range b.edges {
		if len(kept) > 0 && kept[len(kept)-1].child != e.child {
			group = len(kept)
		}
		at := int(place[e.parent]) - 1
		if at < group {
			kept = append(kept, e)
			place[e.parent] = int32(len(kept))
			continue
		}
		switch same := &kept[at]; {
		case e.owner == fromGenerator: // waits for all of it, whatever the set says
			same.match = allToAll
		case e.match == allToAll:
		case same.match == allToAll:
			same.match = e.match
		case !slices.Equal(b.matchParams[same.match], b.matchParams[e.match]):
			b.addProblem(b.edgePointer(e), "the edge from "+Quote(b.plan.Templates[e.parent].Name)+" to "+
				Quote(b.plan.Templates[e.child].Name)+" is matched by other parameters elsewhere")
		}
	}
	b.edges = kept
}

// sortByChild is a stable counting sort.
func (b *planner) sortByChild() {
	next := make([]int32, len(b.plan.Templates)+1)
	sorted := true
	for i, e := range b.edges {
		next[e.child+1]++
		sorted = sorted && (i == 0 || b.edges[i-1].child <= e.child)
	}
	if sorted {
		return
	}
	for i := 1; i < len(next); i++ {
		next[i] += next[i-1]
	}
	out := make([]edgeMention, len(b.edges))
	for _, e := range b.edges {
		out[next[e.child]] = e
		next[e.child]++
	}
	b.edges = out
}

// layOutEdges gives the templates their edges. Templates that were there before and get some are
// copied, because the plan before still has them. The lists of all templates are cut from one
// allocation.
func (b *planner) layOutEdges() {
	if len(b.edges) == 0 {
		return
	}
	p := b.plan
	children := make([]int32, len(p.Templates))
	parents := make([]int32, len(p.Templates))
	for _, e := range b.edges {
		children[e.parent]++
		parents[e.child]++
	}
	ends := make([]Edge, 2*len(b.edges)) // of all lists, side by side
	some := 0
	for i := range p.Templates {
		if children[i] > 0 || parents[i] > 0 {
			some++
		}
	}
	own := make([]Edges, some) // of the templates that get some
	take := func(old []Edge, n int32) []Edge {
		if n == 0 {
			return old
		}
		if len(old) > 0 {
			return append(make([]Edge, 0, len(old)+int(n)), old...)
		}
		list := ends[:0:n]
		ends = ends[n:]
		return list
	}
	for i, t := range p.Templates {
		if children[i] == 0 && parents[i] == 0 {
			continue
		}
		if i < b.firstNew {
			changed := *t
			t = &changed
			p.Templates[i] = t
		}
		own[0] = Edges{Parents: take(t.Parents, parents[i]), Children: take(t.Children, children[i])}
		t.Edges, own = &own[0], own[1:]
	}
	for _, e := range b.edges {
		parent, child := p.Templates[e.parent], p.Templates[e.child]
		match := b.layOutMatch(e, parent, child)
		hangs := e.owner == fromGenerator && child.Index >= b.firstNew && parent.Index < b.firstNew
		parent.Children = append(parent.Children, Edge{Template: child.Index, Match: match, ViaGenerator: hangs})
		child.Parents = append(child.Parents, Edge{Template: parent.Index, Match: match, ViaGenerator: hangs})
	}
}

// layOutMatch lays out the match of an edge. It returns nil for an all-to-all edge, and
// when the plan already has problems.
func (b *planner) layOutMatch(e edgeMention, parent, child *Template) *Match {
	if e.match == allToAll || b.Len() > 0 || b.taskCount > maxTaskIndex {
		return nil
	}
	m := newMatch(b.plan.Parameters, parent, child, b.matchParams[e.match])
	m.ID = len(b.plan.Matches)
	b.plan.Matches = append(b.plan.Matches, m)
	return m
}

// maxPathTasks is how many tasks of a cycle are named at its beginning; of a longer
// one the last is named too.
const maxPathTasks = 20

// checkCycle reports the first cycle. A cycle that did not exist before goes through a new
// template, so the search starts there: O(templates + edges), without recursion, because a chain of
// a million tasks would exhaust the stack. Cycles of templates are cycles of tasks, as every
// template has a task and matched edges connect each task of the child.
func (b *planner) checkCycle() {
	if len(b.edges) == 0 {
		return
	}
	cycle := findCycle(b.plan.Templates, b.firstNew)
	if cycle == nil {
		return
	}
	// The path begins at the first new template of it: that one is in the document.
	start := 0
	for i, t := range cycle {
		if t >= b.firstNew && (cycle[start] < b.firstNew || t < cycle[start]) {
			start = i
		}
	}
	cycle = append(cycle[start:], cycle[:start+1]...)
	var text strings.Builder
	text.WriteString("the tasks depend on each other: ")
	for i, t := range cycle {
		if left := len(cycle) - 1 - i; i >= maxPathTasks && left > 0 && len(cycle) > maxPathTasks+2 {
			if i == maxPathTasks {
				text.WriteString(" -> … (" + strconv.Itoa(left) + " more)")
			}
			continue
		}
		if i > 0 {
			text.WriteString(" -> ")
		}
		text.WriteString(formatPathName(b.plan.Templates[t].Name))
	}
	b.addProblem(b.templatePointer(cycle[0]), text.String())
}

// formatPathName is a name in a path: as it is when it is short and plain.
func formatPathName(name string) string {
	quoted := Quote(name)
	if len(quoted) == len(name)+2 && !strings.Contains(name, " -> ") {
		return name
	}
	return quoted
}

// findCycle returns a cycle among the templates that are reachable from templates[first:]: each
// template once, parents before children. It returns nil when the graph is acyclic.
//
// This is Kahn's algorithm, restricted to what is reachable: count the parents of each template
// that was reached, then remove templates without parents as long as there are any. The rest, if
// any, has a cycle.
func findCycle(templates []*Template, first int) []int {
	const unseen = -1
	waits := make([]int32, len(templates)) // for how many seen parents
	for i := range waits {
		waits[i] = unseen
	}
	seen := make([]int, 0, len(templates)-first)
	for i := first; i < len(templates); i++ {
		waits[i] = 0
		seen = append(seen, i)
	}
	for k := 0; k < len(seen); k++ {
		for _, e := range templates[seen[k]].Children {
			if waits[e.Template] == unseen {
				waits[e.Template] = 0
				seen = append(seen, e.Template)
			}
			waits[e.Template]++
		}
	}
	var ready []int
	for _, i := range seen {
		if waits[i] == 0 {
			ready = append(ready, i)
		}
	}
	for k := 0; k < len(ready); k++ {
		for _, e := range templates[ready[k]].Children {
			if waits[e.Template]--; waits[e.Template] == 0 {
				ready = append(ready, e.Template)
			}
		}
	}
	if len(ready) == len(seen) {
		return nil
	}
	return walkCycle(templates, waits, slices.IndexFunc(waits, func(n int32) bool { return n > 0 }))
}

// walkCycle goes from parent to parent among those that still wait: each of them
// has such a parent, so the way must come back to where it was.
func walkCycle(templates []*Template, waits []int32, from int) []int {
	step := make(map[int]int)
	var way []int
	for at := from; ; {
		if k, ok := step[at]; ok {
			way = way[k:]
			slices.Reverse(way)
			return way
		}
		step[at] = len(way)
		way = append(way, at)
		for _, e := range templates[at].Parents {
			if waits[e.Template] > 0 {
				at = e.Template
				break
			}
		}
	}
}
