package specjson

import (
	"errors"
	"strconv"
	"strings"

	"github.com/caravan-dag/caravan/dag"
)

// Bounds on the parts of a spec, in bytes of UTF-8 unless said otherwise. Tags and
// labels are in memory for as long as their run is not finished, and in every list;
// a name is part of a task's environment and of the addresses of the REST API. What is
// longer is a problem, found before anything is stored.
const (
	MaxNameBytes      = 1024     // name of a task or a parameter
	MaxTagBytes       = 1024     // tag
	MaxLabels         = 64       // members of tags, a number
	MaxLabelNameBytes = 256      // name of one
	MaxLabelBytes     = 1024     // value of one
	MaxParameterBytes = 1 << 20  // one value of a parameter
	MaxValueBytes     = 8 << 20  // any other text, and a member of a job that is only kept, as JSON
	maxOpenBytes      = 16 << 20 // of a document that is read as a stream: what is held of one value
)

// errLongValue: a value of a streamed document is longer than maxOpenBytes.
var errLongValue = errors.New("a value is too long")

// bounded notes a text that is longer than limit bytes.
func (d *reader) bounded(what, text string, limit int) bool {
	if len(text) <= limit {
		return true
	}
	d.problem(what + " has " + strconv.Itoa(len(text)) + " bytes, at most " + strconv.Itoa(limit) + " are allowed")
	return false
}

// tag reads the spec's tag.
func (d *reader) tag() string {
	tag, ok := d.string("tag")
	if !ok || !d.bounded("tag", tag, MaxTagBytes) {
		return ""
	}
	return strings.Clone(tag) // and not its whole document
}

// label reads the value of a label.
func (d *reader) label(labels []dag.Label, name string) []dag.Label {
	value, ok := d.string("a tag")
	switch {
	case !ok:
	case !d.bounded("the name of a tag", name, MaxLabelNameBytes), !d.bounded("a tag", value, MaxLabelBytes):
	case len(labels) == MaxLabels:
		d.problem("there are more than " + strconv.Itoa(MaxLabels) + " tags")
	default:
		labels = append(labels, dag.Label{Name: strings.Clone(name), Value: strings.Clone(value)})
	}
	return labels
}

// parameterValue reads one value of a parameter.
func (d *reader) parameterValue(what string) string {
	value, ok := d.execString(what)
	if ok && !d.bounded(what, value, MaxParameterBytes) {
		return ""
	}
	return value
}
