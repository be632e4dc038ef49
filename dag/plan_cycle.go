package dag

import (
	"slices"
	"strconv"
	"strings"
)

// maxPathTasks is how many tasks of a cycle are named at its beginning; of a longer
// one the last is named too.
const maxPathTasks = 20

// checkCycle reports the first cycle. A cycle that did not exist before goes through a
// new template, so the search starts there: O(templates + edges), without recursion.
func (b *planner) checkCycle() {
	if len(b.edges) == 0 {
		return
	}
	cycle := findCycle(b.plan.Templates, b.first)
	if cycle == nil {
		return
	}
	// The path begins at the first new template of it: that one is in the document.
	start := 0
	for i, t := range cycle {
		if t >= b.first && (cycle[start] < b.first || t < cycle[start]) {
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

// findCycle returns a cycle among the templates that are reachable from
// templates[first:]: each template once, parents before children. It returns nil when
// the graph is acyclic.
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
