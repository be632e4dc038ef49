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
	doc    *bytes.Buffer // what in reads of a document that is there
	stream bool          // it is read from text instead: the document may be long
	text   window        // strings are cut from it
	valid  bool          // the document is valid UTF-8: only escapes may be wrong
	path   []segment
	syntax error
	// Members of jobs that are not known: what is said of them, and how many there are.
	warn     bool // they are wanted
	warnings dag.Problems
	warned   int
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
	doc = withoutMark(doc)
	*d.doc = *bytes.NewBuffer(doc)
	d.in.Reset(d.doc, jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	d.text.whole(string(doc))
	d.valid = utf8.Valid(doc)
	return d
}

// newStream makes a reader of a document that is read from r. It is not released.
func newStream(r io.Reader) *reader {
	d := &reader{stream: true, text: window{from: &markSkipper{r: r}}}
	d.in = jsontext.NewDecoder(&d.text, jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
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
			d.problem("there is more after the end of the document, at " + d.text.place(int(end)))
		}
		return nil
	}
	offset, what := int64(d.text.end()), "the document is empty"
	var syntactic *jsontext.SyntacticError
	if errors.As(d.syntax, &syntactic) {
		offset, what = syntactic.ByteOffset, syntactic.Err.Error()
		if errors.Is(syntactic.Err, io.ErrUnexpectedEOF) {
			what = "the document ends too early"
		}
	}
	return dag.Problems{{Message: "invalid JSON at " + d.text.place(int(offset)) + ": " + what}}
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
		d.text.done = int(d.in.InputOffset())
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
	d.text.done = end
	return d.text.cut(end-len(v), end)
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

// object reads an object that is next. Member is called with each name, and must
// read the value.
func (d *reader) object(member func(name string)) {
	var seen nameSet
	d.members(&seen, member)
}

// members is object with the set that its names go into.
func (d *reader) members(seen *nameSet, member func(name string)) {
	d.delimiter()
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
	d.delimiter()
}

// array reads an array that is next. Element is called for each one, and must read
// it.
func (d *reader) array(element func(i int)) {
	d.delimiter()
	i := 0
	for k := d.peek(); k != ']' && k != 0; k = d.peek() {
		d.pushIndex(i)
		element(i)
		d.pop()
		i++
	}
	d.delimiter()
}

// skip reads a value of which only the general rules are checked, and is its JSON
// text. It recurses no deeper than jsontext lets documents be nested.
func (d *reader) skip() string {
	switch d.peek() {
	case '{':
		return d.whole(func() { d.object(func(string) { d.skip() }) })
	case '[':
		return d.whole(func() { d.array(func(int) { d.skip() }) })
	case '"':
		raw := d.raw()
		d.unquote(raw)
		return raw
	default:
		return d.raw()
	}
}

// whole is the JSON text of the object or array that read reads.
func (d *reader) whole(read func()) string {
	d.text.holds++
	// Between the last token and this one may be space, a comma or a colon.
	start := d.text.done
	read()
	d.text.holds--
	if d.syntax != nil {
		return ""
	}
	return strings.TrimLeft(d.text.cut(start, d.text.done), ",: \t\r\n")
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
	list *dag.TaskList // has them already, instead of all that follows
	few  [fewNames]string
	n    int
	many map[string]struct{}
}

// add adds a name; it is false when the name was there.
func (s *nameSet) add(name string) bool {
	if s.list != nil {
		return !s.list.Has(name)
	}
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
