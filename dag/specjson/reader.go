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

// reader reads a document token by token. After a problem it reads on. After a syntax error it stops:
// peekKind then returns 0, which ends every loop over members or elements, so that no caller has to
// check an error after each token.
//
// The decoder checks the grammar; reader checks duplicate names and UTF-8 itself (the decoder is told
// to allow both), because the decoder would stop at the first one, and a document with two should have
// both reported. Strings are cut out of text without a copy, except those with escapes.
type reader struct {
	dag.ProblemCollector
	decoder *jsontext.Decoder
	doc     *bytes.Buffer // source of in for a document in memory
	stream  bool          // the source of in is text: the document may be long
	text    window        // strings are cut from it
	valid   bool          // the document is valid UTF-8: only escapes may be wrong
	path    []pathSegment
	syntax  error
	// Warnings about unknown members of jobs, and how many were found.
	warn     bool // collect warnings
	warnings dag.Problems
	warned   int
	// The list that is being read, to be cloned when its length is known.
	list []string
	ends []dag.EdgeSpec
}

// pathSegment is one segment of the pointer to the current value.
type pathSegment struct {
	name  string
	index int // of an array's element; inObject for a member
}

const inObject = -1

// readers is a pool of readers: allocating one costs more than a small document.
var readers = sync.Pool{New: func() any { return &reader{decoder: new(jsontext.Decoder), doc: new(bytes.Buffer)} }}

// newReader takes a reader of a document in memory from the pool. The caller must release it, and not
// use it afterwards. It copies doc once: all strings are parts of that copy.
func newReader(doc []byte) *reader {
	d := readers.Get().(*reader)
	doc = trimByteOrderMark(doc)
	*d.doc = *bytes.NewBuffer(doc)
	d.decoder.Reset(d.doc, jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	d.text.setWhole(string(doc))
	d.valid = utf8.Valid(doc)
	return d
}

// newStream makes a reader of a document that is read from r. It is not released: compared with a long
// document it costs little, and the pool would keep its buffers.
func newStream(r io.Reader) *reader {
	d := &reader{stream: true, text: window{source: &byteOrderMarkReader{r: r}}}
	d.decoder = jsontext.NewDecoder(&d.text, jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	return d
}

// keptScratch bounds the capacity of the lists of a pooled reader, in elements.
const keptScratch = 256

// release returns the reader to the pool, without references to what it has read: a string of the
// document would keep all of it alive.
func (d *reader) release() {
	*d = reader{decoder: d.decoder, doc: d.doc, path: d.path[:0], list: d.list[:0], ends: d.ends[:0]}
	if cap(d.path)+cap(d.list)+cap(d.ends) > keptScratch {
		d.path, d.list, d.ends = nil, nil, nil
	}
	clear(d.path[:cap(d.path)])
	clear(d.list[:cap(d.list)])
	clear(d.ends[:cap(d.ends)])
	*d.doc = bytes.Buffer{}
	d.decoder.Reset(d.doc)
	readers.Put(d)
}

// checkEnd checks that the document ends here. A syntax error is returned as the only
// problem.
func (d *reader) checkEnd() dag.Problems {
	if d.syntax == nil {
		end := d.decoder.InputOffset()
		if _, err := d.decoder.ReadToken(); err != io.EOF {
			d.addProblem("there is more after the end of the document, at " + d.text.describeOffset(int(end)))
		}
		return nil
	}
	offset, what := int64(d.text.endOffset()), "the document is empty"
	var syntactic *jsontext.SyntacticError
	if errors.As(d.syntax, &syntactic) {
		offset, what = syntactic.ByteOffset, syntactic.Err.Error()
		if errors.Is(syntactic.Err, io.ErrUnexpectedEOF) {
			what = "the document ends too early"
		}
	}
	return dag.Problems{{Message: "invalid JSON at " + d.text.describeOffset(int(offset)) + ": " + what}}
}

// addProblem reports a problem with the current value. Once the list is full, its pointer is not
// made: a document of a million mistakes would spend its time on pointers that are dropped.
func (d *reader) addProblem(message string) {
	pointer := ""
	if !d.Full() {
		pointer = d.currentPointer()
	}
	d.Add(dag.Problem{Pointer: pointer, Message: message})
}

// currentPointer returns the pointer to the current value, truncated soon after
// dag.MaxPointerBytes.
func (d *reader) currentPointer() string {
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

func (d *reader) pushMember(name string) {
	d.path = append(d.path, pathSegment{name: name, index: inObject})
}
func (d *reader) pushIndex(i int) { d.path = append(d.path, pathSegment{index: i}) }
func (d *reader) popSegment()     { d.path = d.path[:len(d.path)-1] }

// peekKind returns the kind of the next token; 0 after a syntax error.
func (d *reader) peekKind() jsontext.Kind {
	if d.syntax != nil {
		return 0
	}
	k := d.decoder.PeekKind()
	if k == 0 {
		_, d.syntax = d.decoder.ReadToken()
	}
	return k
}

// readDelimiter reads one of { } [ ].
func (d *reader) readDelimiter() {
	if d.syntax == nil {
		_, d.syntax = d.decoder.ReadToken()
		d.text.done = int(d.decoder.InputOffset())
	}
}

// readRaw reads a string, a number, a literal or a whole value, and returns its JSON text.
func (d *reader) readRaw() string {
	if d.syntax != nil {
		return ""
	}
	v, err := d.decoder.ReadValue()
	if err != nil {
		d.syntax = err
		return ""
	}
	end := int(d.decoder.InputOffset())
	d.text.done = end
	return d.text.slice(end-len(v), end)
}

// expectKind tells whether the next value is of a kind ('t' for true or false). A value of another
// kind is reported and skipped, so the caller reads on after it. what names the value in the
// report.
func (d *reader) expectKind(want jsontext.Kind, what string) bool {
	got := d.peekKind()
	if got == want || want == 't' && got == 'f' {
		return true
	}
	if got != 0 {
		d.addProblem(what + " must be " + kindName(want) + ", it is " + kindName(got))
		d.skipValue()
	}
	return false
}

// kindName names a kind of JSON value for a problem; 't' and 'f' are one kind.
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

// readObject reads an object that is next. Member is called with each name, and must
// read the value.
func (d *reader) readObject(member func(name string)) {
	var seen nameSet
	d.readMembers(&seen, member)
}

// readMembers is readObject with the set that collects its names.
func (d *reader) readMembers(seen *nameSet, member func(name string)) {
	d.readDelimiter()
	for k := d.peekKind(); k != '}' && k != 0; k = d.peekKind() {
		name := d.unquote(d.readRaw())
		d.pushMember(name)
		if seen.add(name) {
			member(name)
		} else {
			d.addProblem("duplicate member")
			d.skipValue()
		}
		d.popSegment()
	}
	d.readDelimiter()
}

// readArray reads an array that is next. Element is called for each one, and must read
// it.
func (d *reader) readArray(element func(i int)) {
	d.readDelimiter()
	i := 0
	for k := d.peekKind(); k != ']' && k != 0; k = d.peekKind() {
		d.pushIndex(i)
		element(i)
		d.popSegment()
		i++
	}
	d.readDelimiter()
}

// skipValue reads a value, checks only the general rules, and returns its JSON text. Its
// recursion is bounded by the nesting that jsontext accepts.
func (d *reader) skipValue() string {
	switch d.peekKind() {
	case '{':
		return d.textOf(func() { d.readObject(func(string) { d.skipValue() }) })
	case '[':
		return d.textOf(func() { d.readArray(func(int) { d.skipValue() }) })
	case '"':
		raw := d.readRaw()
		d.unquote(raw)
		return raw
	default:
		return d.readRaw()
	}
}

// textOf returns the JSON text of the object or array that read reads, as it was written. In a
// stream it keeps the window open from the beginning of the value, since it is cut out only at its
// end.
func (d *reader) textOf(read func()) string {
	d.text.openValues++
	// Between the last token and this one may be space, a comma or a colon.
	start := d.text.done
	read()
	d.text.openValues--
	if d.syntax != nil {
		return ""
	}
	return strings.TrimLeft(d.text.slice(start, d.text.done), ",: \t\r\n")
}

// unquote returns a JSON string's value. Invalid UTF-8 is reported and replaced by U+FFFD. A string
// without escapes, in valid UTF-8, is a part of the document; any other one is a copy.
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
		d.addProblem("invalid UTF-8")
	}
	return string(value)
}

// maxLinearNames is how many names a nameSet compares one by one.
const maxLinearNames = 8

// nameSet holds the names of one object, to find duplicates. Most objects have few members, so the
// first ones are compared one by one, without an allocation.
type nameSet struct {
	list *dag.TaskList // has the names already; replaces the other members
	few  [maxLinearNames]string
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
		if s.n < maxLinearNames {
			s.few[s.n] = name
			s.n++
			return true
		}
		s.many = make(map[string]struct{}, 4*maxLinearNames)
		for _, known := range s.few {
			s.many[known] = struct{}{}
		}
	}
	before := len(s.many)
	s.many[name] = struct{}{}
	return len(s.many) > before
}

// partBytes is how much of a document is read at a time.
const partBytes = 256 << 10

// window is the part of a document that strings can still be cut from: all of a document in memory, or
// the newest parts of a streamed one. Offsets are those of the decoder, in bytes from the beginning
// (after a byte order mark).
//
// A streamed document is read by the decoder through the window. The window drops a part
// once the decoder is past it and every value that began there is complete. Strings that
// were cut keep their part alive.
type window struct {
	parts      []string // side by side
	one        [1]string
	base       int // offset of parts[0]
	served     int // how far the decoder has read
	done       int // offset after the last token
	openValues int // > 0: parts are kept, so that an open value can be cut as a whole

	source  io.Reader // nil: parts has it all
	readErr error     // what reading ended with
	buf     []byte
	// Lines that ended in dropped parts, and the offset after the last of them.
	lines, lineAt int
}

// setWhole makes w the window of a document in memory.
func (w *window) setWhole(text string) {
	w.one[0], w.served = text, len(text)
	w.parts = w.one[:]
}

// slice is the piece [from, to) of the document, which must be in the window; "" when from is
// beyond it. A piece within one part shares the memory of that part, any other one is copied.
func (w *window) slice(from, to int) string {
	at := w.base
	for i, p := range w.parts {
		if from < at+len(p) {
			if to <= at+len(p) {
				return p[from-at : to-at]
			}
			var joined strings.Builder
			joined.Grow(to - from)
			for joined.WriteString(p[from-at:]); joined.Len() < to-from; joined.WriteString(p[:min(len(p), to-from-joined.Len())]) {
				i++
				p = w.parts[i]
			}
			return joined.String()
		}
		at += len(p)
	}
	return ""
}

// Read is for the decoder. It reads a part when the decoder has all that is there, and keeps the
// part for slice: the decoder's own buffer is reused, so strings cannot be cut from it.
func (w *window) Read(dst []byte) (int, error) {
	end := w.endOffset()
	if w.served == end {
		if w.readErr != nil {
			return 0, w.readErr
		}
		if w.readPart(); w.served == w.endOffset() {
			return 0, w.readErr
		}
		end = w.endOffset()
	}
	last := w.parts[len(w.parts)-1]
	n := copy(dst, last[len(last)-(end-w.served):])
	w.served += n
	return n, nil
}

// readPart drops the parts that are done with, and reads the next one. The bound on what is kept,
// maxOpenBytes, is what makes the memory of a stream independent of its length.
func (w *window) readPart() {
	for w.openValues == 0 && len(w.parts) > 0 && w.base+len(w.parts[0]) <= w.done {
		p := w.parts[0]
		if i := strings.LastIndexByte(p, '\n'); i >= 0 {
			w.lines += strings.Count(p, "\n")
			w.lineAt = w.base + i + 1
		}
		w.base += len(p)
		w.parts[0] = ""
		w.parts = w.parts[1:]
	}
	if w.endOffset()-w.done > maxOpenBytes || w.openValues > 0 && w.endOffset()-w.base > maxOpenBytes {
		w.readErr = errLongValue
		return
	}
	if w.buf == nil {
		w.buf = make([]byte, partBytes)
	}
	n, err := io.ReadFull(w.source, w.buf)
	if err == io.ErrUnexpectedEOF {
		err = io.EOF
	}
	w.readErr = err
	if n > 0 {
		w.parts = append(w.parts, string(w.buf[:n]))
	}
}

// endOffset is the offset after the last byte that was read from the source.
func (w *window) endOffset() int {
	end := w.base
	for _, p := range w.parts {
		end += len(p)
	}
	return end
}

// describeOffset describes an offset. All offsets in dropped parts map to the start of the window.
func (w *window) describeOffset(offset int) string {
	before := w.slice(w.base, max(w.base, min(offset, w.endOffset())))
	line := 1 + w.lines + strings.Count(before, "\n")
	start := w.lineAt
	if i := strings.LastIndexByte(before, '\n'); i >= 0 {
		start = w.base + i + 1
	}
	at := w.base + len(before)
	return "line " + strconv.Itoa(line) + ", column " + strconv.Itoa(at-start+1) + " (offset " + strconv.Itoa(at) + ")"
}

// byteOrderMark is what some editors put in front of UTF-8. A document may begin with
// it; it is skipped, and offsets in problems count from behind it.
const byteOrderMark = "\xEF\xBB\xBF"

// trimByteOrderMark is the document behind its byte order mark.
func trimByteOrderMark(doc []byte) []byte { return bytes.TrimPrefix(doc, []byte(byteOrderMark)) }

// byteOrderMarkReader reads a document from behind its byte order mark.
type byteOrderMarkReader struct {
	r     io.Reader
	begun bool
	head  []byte // was read, and is no mark
}

func (m *byteOrderMarkReader) Read(p []byte) (int, error) {
	if !m.begun {
		m.begun = true
		head := make([]byte, len(byteOrderMark))
		n, err := io.ReadFull(m.r, head)
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return 0, err
		}
		m.head = trimByteOrderMark(head[:n])
	}
	if len(m.head) > 0 {
		n := copy(p, m.head)
		m.head = m.head[n:]
		return n, nil
	}
	return m.r.Read(p)
}
