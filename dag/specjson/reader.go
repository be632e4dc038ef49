package specjson

import (
	"bytes"
	"errors"
	"io"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/caravan-dag/caravan/dag"
	"github.com/go-json-experiment/json/jsontext"
)

// reader reads a document token by token. A problem is noted and reading goes on;
// a syntax error ends everything: from then on peek is 0 and nothing is read.
type reader struct {
	dag.Collector
	in     *jsontext.Decoder
	doc    *bytes.Buffer // what in reads
	text   string        // the document; strings are cut from it
	valid  bool          // the document is valid UTF-8: only escapes may be wrong
	path   []segment
	syntax error
	// The list that is being read, to be cloned when its length is known.
	list []string
	ends []dag.EdgeSpec
}

// segment is one step on the way to the present place.
type segment struct {
	name  string
	index int // of an array's element; inObject for a member
}

const inObject = -1

// readers are readers at rest, so that a small document does not cost the making of one.
var readers = sync.Pool{New: func() any { return &reader{in: new(jsontext.Decoder), doc: new(bytes.Buffer)} }}

// newReader takes a reader from those at rest. Give it back by release.
func newReader(doc []byte) *reader {
	d := readers.Get().(*reader)
	*d.doc = *bytes.NewBuffer(doc)
	d.in.Reset(d.doc, jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	d.text, d.valid = string(doc), utf8.Valid(doc)
	return d
}

// keptScratch bounds what a reader at rest keeps of its lists, in elements.
const keptScratch = 256

// release lets the reader rest. Nothing that it has read is kept by it.
func (d *reader) release() {
	*d = reader{in: d.in, doc: d.doc, path: d.path[:0], list: d.list[:0], ends: d.ends[:0]}
	if cap(d.path)+cap(d.list)+cap(d.ends) > keptScratch {
		d.path, d.list, d.ends = nil, nil, nil
	}
	clear(d.path[:cap(d.path)])
	clear(d.list[:cap(d.list)])
	clear(d.ends[:cap(d.ends)])
	*d.doc = bytes.Buffer{}
	d.in.Reset(d.doc)
	readers.Put(d)
}

// end checks that the document ends here. After a syntax error it returns that as
// the only problem.
func (d *reader) end() dag.Problems {
	if d.syntax == nil {
		end := d.in.InputOffset()
		if _, err := d.in.ReadToken(); err != io.EOF {
			d.problem("there is more after the end of the document, at " + place(d.text, end))
		}
		return nil
	}
	offset, what := int64(len(d.text)), "the document is empty"
	var syntactic *jsontext.SyntacticError
	if errors.As(d.syntax, &syntactic) {
		offset, what = syntactic.ByteOffset, syntactic.Err.Error()
		if errors.Is(syntactic.Err, io.ErrUnexpectedEOF) {
			what = "the document ends too early"
		}
	}
	return dag.Problems{{Message: "invalid JSON at " + place(d.text, offset) + ": " + what}}
}

// place says where an offset is.
func place(text string, offset int64) string {
	before := text[:min(int(offset), len(text))]
	line := 1 + strings.Count(before, "\n")
	column := len(before) - strings.LastIndexByte(before, '\n')
	return "line " + strconv.Itoa(line) + ", column " + strconv.Itoa(column) + " (offset " + strconv.Itoa(len(before)) + ")"
}

// problem notes what is wrong at the present place.
func (d *reader) problem(message string) {
	pointer := ""
	if !d.Full() {
		pointer = d.pointer()
	}
	d.Add(dag.Problem{Pointer: pointer, Message: message})
}

// pointer is the present place. One that is absurdly long is left at what it begins with.
func (d *reader) pointer() string {
	var b strings.Builder
	for _, s := range d.path {
		name := s.name
		if s.index != inObject {
			name = strconv.Itoa(s.index)
		}
		b.WriteByte('/')
		b.WriteString(dag.EscapePointer(name))
		if b.Len() > dag.MaxPointerBytes {
			break
		}
	}
	return b.String()
}

func (d *reader) push(name string) { d.path = append(d.path, segment{name: name, index: inObject}) }
func (d *reader) pushIndex(i int)  { d.path = append(d.path, segment{index: i}) }
func (d *reader) pop()             { d.path = d.path[:len(d.path)-1] }

// peek is the kind of the next token; 0 after a syntax error.
func (d *reader) peek() jsontext.Kind {
	if d.syntax != nil {
		return 0
	}
	k := d.in.PeekKind()
	if k == 0 {
		_, d.syntax = d.in.ReadToken()
	}
	return k
}

// delimiter reads one of { } [ ].
func (d *reader) delimiter() {
	if d.syntax == nil {
		_, d.syntax = d.in.ReadToken()
	}
}

// raw reads a string, a number, a literal or a whole value, and is its JSON text.
func (d *reader) raw() string {
	if d.syntax != nil {
		return ""
	}
	v, err := d.in.ReadValue()
	if err != nil {
		d.syntax = err
		return ""
	}
	end := int(d.in.InputOffset())
	return d.text[end-len(v) : end]
}

// is tells whether the value that follows is of a kind. When it is not, that is
// noted and the value is skipped.
func (d *reader) is(want jsontext.Kind, what string) bool {
	got := d.peek()
	if got == want || want == 't' && got == 'f' {
		return true
	}
	if got != 0 {
		d.problem(what + " must be " + kindName(want) + ", it is " + kindName(got))
		d.skip()
	}
	return false
}

func kindName(k jsontext.Kind) string {
	switch k {
	case 'n':
		return "null"
	case 't', 'f':
		return "true or false"
	case '"':
		return "a string"
	case '0':
		return "a number"
	case '{':
		return "an object"
	default:
		return "a list"
	}
}

// open reads an opening delimiter, and is its offset.
func (d *reader) open() int {
	d.delimiter()
	return int(d.in.InputOffset()) - 1
}

// object reads an object that is next. Member is called with each name, and must
// read the value. The result is the object's JSON text.
func (d *reader) object(member func(name string)) string {
	start := d.open()
	var seen nameSet
	for k := d.peek(); k != '}' && k != 0; k = d.peek() {
		name := d.unquote(d.raw())
		d.push(name)
		if seen.add(name) {
			member(name)
		} else {
			d.problem("duplicate member")
			d.skip()
		}
		d.pop()
	}
	return d.close(start)
}

// array reads an array that is next. Element is called for each one, and must read
// it. The result is the array's JSON text.
func (d *reader) array(element func(i int)) string {
	start := d.open()
	i := 0
	for k := d.peek(); k != ']' && k != 0; k = d.peek() {
		d.pushIndex(i)
		element(i)
		d.pop()
		i++
	}
	return d.close(start)
}

// close reads a closing delimiter, and is the JSON text from start to there.
func (d *reader) close(start int) string {
	d.delimiter()
	if d.syntax != nil {
		return ""
	}
	return d.text[start:d.in.InputOffset()]
}

// skip reads a value of which only the general rules are checked, and is its JSON
// text. It recurses no deeper than jsontext lets documents be nested.
func (d *reader) skip() string {
	switch d.peek() {
	case '{':
		return d.object(func(string) { d.skip() })
	case '[':
		return d.array(func(int) { d.skip() })
	case '"':
		raw := d.raw()
		d.unquote(raw)
		return raw
	default:
		return d.raw()
	}
}

// unquote is a JSON string's value. Invalid UTF-8 is noted and replaced by U+FFFD.
func (d *reader) unquote(raw string) string {
	if len(raw) < 2 {
		return "" // after a syntax error
	}
	inner := raw[1 : len(raw)-1]
	if strings.IndexByte(inner, '\\') < 0 && (d.valid || utf8.ValidString(inner)) {
		return inner
	}
	value, err := jsontext.AppendUnquote(nil, raw)
	if err != nil {
		d.problem("invalid UTF-8")
	}
	return string(value)
}

// fewNames is how many names a nameSet compares one by one.
const fewNames = 8

// nameSet holds the names of one object.
type nameSet struct {
	few  [fewNames]string
	n    int
	many map[string]struct{}
}

// add adds a name; it is false when the name was there.
func (s *nameSet) add(name string) bool {
	if s.many == nil {
		for _, known := range s.few[:s.n] {
			if known == name {
				return false
			}
		}
		if s.n < fewNames {
			s.few[s.n] = name
			s.n++
			return true
		}
		s.many = make(map[string]struct{}, 4*fewNames)
		for _, known := range s.few {
			s.many[known] = struct{}{}
		}
	}
	before := len(s.many)
	s.many[name] = struct{}{}
	return len(s.many) > before
}
