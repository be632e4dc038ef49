package dag

import (
	"fmt"
	"strconv"
)

// maxLinearNames is the number of templates up to which a linear search is used. It is
// faster than a map there, and takes no memory.
const maxLinearNames = 8

// nameIndex finds templates by their names as defined. It is immutable: extended
// returns a new one that shares the older layers. Layers are merged like those
// of a log-structured tree, so there are O(log templates) of them and a name is
// copied O(log templates) times, however many sets are generated.
type nameIndex struct {
	layers []map[string]int32
	linear []*Template // instead of layers, while there are few
	list   *TaskList   // beside them: it has an index of its own
}

// lookup returns the index of the template with this name, or -1.
func (x *nameIndex) lookup(name string) int {
	if x.list != nil {
		if i := x.list.lookup(name); i >= 0 {
			return i
		}
	}
	for _, t := range x.linear {
		if t.Name == name {
			return t.Index
		}
	}
	for _, layer := range x.layers {
		if i, ok := layer[name]; ok {
			return int(i)
		}
	}
	return -1
}

// extended returns an index that also has templates[first:]; x has their predecessors.
// The templates of a list are found by the list's own index.
func (x *nameIndex) extended(templates []*Template, first int, list *TaskList) nameIndex {
	if list != nil {
		return nameIndex{list: list}
	}
	if x.list == nil && len(templates) <= maxLinearNames {
		return nameIndex{linear: templates}
	}
	layers := x.layers[:len(x.layers):len(x.layers)]
	if len(layers) == 0 && x.list == nil {
		first = 0
	}
	size := len(templates) - first
	joined := len(layers)
	for joined > 0 && len(layers[joined-1]) <= 2*size {
		joined--
		size += len(layers[joined])
	}
	layer := make(map[string]int32, size)
	for _, older := range layers[joined:] {
		for name, i := range older { // order does not matter: names are distinct
			layer[name] = i
		}
	}
	for _, t := range templates[first:] {
		if _, defined := layer[t.Name]; !defined { // the check for duplicates must find the first definition
			layer[t.Name] = int32(t.Index)
		}
	}
	return nameIndex{layers: append(layers[:joined:joined], layer), list: x.list}
}

// TemplateOf is the template that a task was expanded from, in O(log templates).
// A task that the plan does not have is a bug of the caller and panics.
func (p *Plan) TemplateOf(task uint32) *Template {
	if task >= p.Tasks {
		panic(fmt.Sprintf("dag: task %d of a plan of %d", task, p.Tasks))
	}
	low, high := 0, len(p.bases) // bases[low] <= task < bases[high]
	if int(p.Tasks) == high {
		return p.Templates[task] // nothing is expanded
	}
	for high-low > 1 {
		middle := int(uint(low+high) / 2)
		if p.bases[middle] <= task {
			low = middle
		} else {
			high = middle
		}
	}
	return p.Templates[low]
}

// TaskName is the name of an expanded task.
func (p *Plan) TaskName(task uint32) string {
	t := p.TemplateOf(task)
	if !t.Expanded {
		return t.Name
	}
	return string(t.appendName(make([]byte, 0, len(t.Name)+11), task-t.Base))
}

// AppendTaskName appends the name of an expanded task to dst.
func (p *Plan) AppendTaskName(dst []byte, task uint32) []byte {
	t := p.TemplateOf(task)
	return t.appendName(dst, task-t.Base)
}

func (t *Template) appendName(dst []byte, local uint32) []byte {
	dst = append(dst, t.Name...)
	if t.Expanded {
		dst = append(dst, '_')
		dst = strconv.AppendUint(dst, uint64(local), 10)
	}
	return dst
}

// Find returns the task with this expanded name. Only the canonical form of a number
// matches: "a_1", not "a_01".
func (p *Plan) Find(name string) (task uint32, ok bool) {
	if i := p.names.lookup(name); i >= 0 && !p.Templates[i].Expanded {
		return p.Templates[i].Base, true
	}
	base, local, ok := splitName(name)
	if !ok {
		return 0, false
	}
	i := p.names.lookup(base)
	if i < 0 || !p.Templates[i].Expanded || local >= p.Templates[i].Count {
		return 0, false
	}
	return p.Templates[i].Base + local, true
}

// splitName takes a name of the form base_N apart, N in canonical form.
func splitName(name string) (base string, local uint32, ok bool) {
	i := len(name)
	for i > 0 && name[i-1] >= '0' && name[i-1] <= '9' {
		i--
	}
	digits := name[i:]
	if digits == "" || i < 2 || name[i-1] != '_' || len(digits) > 1 && digits[0] == '0' {
		return "", 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 32)
	return name[:i-1], uint32(n), err == nil
}
