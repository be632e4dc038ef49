package specjson

import (
	"errors"
	"strconv"
	"strings"

	"github.com/caravan-dag/caravan/dag"
)

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
	d.problem(what + " has " + strconv.Itoa(len(text)) + " bytes, at most " + strconv.Itoa(limit) + " are allowed")
	return false
}

// tag reads the spec's tag.
func (d *reader) tag() string {
	tag, ok := d.string("tag")
	if !ok || !d.checkLength("tag", tag, MaxTagBytes) {
		return ""
	}
	return strings.Clone(tag) // does not keep the whole document alive
}

// label reads the value of a label.
func (d *reader) label(labels []dag.Label, name string) []dag.Label {
	value, ok := d.string("a tag")
	switch {
	case !ok:
	case !d.checkLength("the name of a tag", name, MaxLabelNameBytes), !d.checkLength("a tag", value, MaxLabelBytes):
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
	if ok && !d.checkLength(what, value, MaxParameterBytes) {
		return ""
	}
	return value
}
