package dag

import (
	"encoding/binary"
	"hash/maphash"
	"math"
	"sort"
	"strings"
	"time"
)

// TaskList holds tasks as defined, packed: each takes the bytes of its texts and a few more, where
// a TaskSpec takes hundreds. Long documents are read into it (see Spec.TaskList). Tasks are appended
// in the order of the document, by one goroutine. A plan that is made of a list takes it over: after
// NewPlan the list must not be appended to, and any number of goroutines may read it.
//
// A list is memory of one process and is never stored, so its format may change at any time:
//
//	entry = name flags [command] [commandString] [environment] [workDir] [executor]
//	        [timeout] [cores] [memoryMB] [other] [retry]
//
// Only parts whose flag is set take space. A text is its length and its bytes; a list is its length
// and its texts. Entries are stored side by side in slabs and never cross slabs, so a text is cut
// out of a slab without a copy. The edges of a task are an entry of their own in edgeEntries, for
// tasks that have any: only NewPlan needs them, and drops them all at once.
type TaskList struct {
	entries         packedEntries
	edgeEntries     packedEntries
	edgeTasks       []uint32 // tasks with edges, ascending; edgeEntries has as many entries
	edgeCount       int      // how many edges are mentioned
	nameSlots       []uint32 // hash table with open addressing: 1 + a task, 0 = empty; a power of two
	seed            maphash.Seed
	hasDecodeErrors bool   // of every task
	buf             []byte // of the entry that is being written
}

// slabBytes is the size of a slab. A larger entry gets a slab of its own.
const slabBytes = 256 << 10

// packedEntries holds packed tasks one after the other, in slabs. A slab is written through a
// strings.Builder: the strings that are cut from it while it is still being filled share its memory,
// because it never grows beyond the capacity that it began with.
type packedEntries struct {
	slabs      []string
	firstEntry []uint32 // the first entry of each slab
	offsets    []uint32 // where each entry begins in its slab
	openSlab   strings.Builder
}

// add appends an entry.
func (c *packedEntries) add(entry []byte) {
	if len(c.slabs) == 0 || c.openSlab.Len()+len(entry) > c.openSlab.Cap() {
		c.openSlab = strings.Builder{}
		c.openSlab.Grow(max(slabBytes, len(entry)))
		c.slabs = append(c.slabs, "")
		c.firstEntry = append(c.firstEntry, uint32(len(c.offsets)))
	}
	c.offsets = append(c.offsets, uint32(c.openSlab.Len()))
	c.openSlab.Write(entry)
	c.slabs[len(c.slabs)-1] = c.openSlab.String()
}

// entry returns the i-th entry, followed by the rest of its slab: an entry knows its own end. The
// newest slab, and so a list of one slab, needs no search.
func (c *packedEntries) entry(i int) string {
	k := len(c.firstEntry) - 1
	if uint32(i) < c.firstEntry[k] {
		k = sort.Search(k, func(k int) bool { return c.firstEntry[k] > uint32(i) }) - 1
	}
	return c.slabs[k][c.offsets[i]:]
}

// Flags of an entry: which of its parts are there.
const (
	entryDecodeErrors = 1 << iota
	entryGenerator
	entryCommand
	entryString
	entryEnv
	entryEnvObject
	entryWorkDir
	entryExecutor
	entryTimeout
	entryCores
	entryMemory
	entryOther
	entryRetry
)

// MarkDecodeErrors sets HasDecodeErrors on every task.
func (l *TaskList) MarkDecodeErrors() { l.hasDecodeErrors = true }

// Len is the number of tasks.
func (l *TaskList) Len() int { return len(l.entries.offsets) }

// Append packs a task and keeps no reference to it. The name must be new to the list.
func (l *TaskList) Append(t *TaskSpec) {
	i := uint32(l.Len())
	l.entries.add(l.packTask(t))
	l.indexName(t.Name, i)
	if len(t.Parents)+len(t.Children) > 0 {
		l.edgeTasks = append(l.edgeTasks, i)
		l.edgeCount += len(t.Parents) + len(t.Children)
		l.buf = appendEnds(appendEnds(l.buf[:0], t.Parents), t.Children)
		l.edgeEntries.add(l.buf)
	}
}

func (l *TaskList) packTask(t *TaskSpec) []byte {
	j := &t.Job
	flags := 0
	for _, f := range [...]struct {
		set  bool
		flag int
	}{
		{t.HasDecodeErrors, entryDecodeErrors}, {t.Generator, entryGenerator}, {j.Command != nil, entryCommand}, {j.HasString, entryString},
		{j.HasEnv, entryEnv}, {j.EnvObject, entryEnvObject}, {j.WorkDir != "", entryWorkDir}, {j.Executor != "", entryExecutor},
		{j.Timeout != 0, entryTimeout}, {j.Cores.Raw != "", entryCores}, {j.MemoryMB.Raw != "", entryMemory},
		{len(j.Other) > 0, entryOther}, {t.Retry != RetryPolicy{}, entryRetry},
	} {
		if f.set {
			flags |= f.flag
		}
	}
	b := appendText(l.buf[:0], t.Name)
	b = binary.AppendUvarint(b, uint64(flags))
	if j.Command != nil {
		b = appendTexts(b, j.Command)
	}
	if j.HasString {
		b = appendText(b, j.CommandString)
	}
	if j.HasEnv {
		b = appendTexts(b, j.Environment)
	}
	if j.WorkDir != "" {
		b = appendText(b, j.WorkDir)
	}
	if j.Executor != "" {
		b = appendText(b, j.Executor)
	}
	if j.Timeout != 0 {
		b = binary.AppendVarint(b, int64(j.Timeout))
	}
	for _, q := range [...]*Quantity{&j.Cores, &j.MemoryMB} {
		if q.Raw != "" {
			b = binary.AppendVarint(appendText(b, q.Raw), q.Milli)
		}
	}
	if len(j.Other) > 0 {
		b = binary.AppendUvarint(b, uint64(len(j.Other)))
		for _, m := range j.Other {
			b = appendText(appendText(b, m.Name), m.Raw)
		}
	}
	if r := t.Retry; r != (RetryPolicy{}) {
		b = binary.AppendUvarint(b, uint64(r.MaxRetries))
		b = binary.AppendVarint(b, int64(r.Interval))
		b = binary.BigEndian.AppendUint64(b, math.Float64bits(r.Backoff))
		b = binary.AppendVarint(b, int64(r.MaxInterval))
	}
	l.buf = b
	return b
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendTexts(b []byte, list []string) []byte {
	b = binary.AppendUvarint(b, uint64(len(list)))
	for _, s := range list {
		b = appendText(b, s)
	}
	return b
}

func appendEnds(b []byte, ends []EdgeSpec) []byte {
	b = binary.AppendUvarint(b, uint64(len(ends)))
	for _, e := range ends {
		b = appendTexts(appendText(b, e.Task), e.Match)
	}
	return b
}

// taskName is the name of a task.
func (l *TaskList) taskName(i int) string {
	r := entryReader{l.entries.entry(i)}
	return r.text()
}

// unpackTask unpacks a task without its edges. It reuses the slices of t; the strings
// belong to the list.
func (l *TaskList) unpackTask(i int, t *TaskSpec) {
	r := entryReader{l.entries.entry(i)}
	j := &t.Job
	command, environment, other := j.Command[:0], j.Environment[:0], j.Other[:0]
	*t = TaskSpec{Name: r.text()}
	flags := r.uint()
	has := func(flag uint64) bool { return flags&flag != 0 }
	t.HasDecodeErrors, t.Generator = l.hasDecodeErrors || has(entryDecodeErrors), has(entryGenerator)
	j.HasString, j.HasEnv, j.EnvObject = has(entryString), has(entryEnv), has(entryEnvObject)
	if has(entryCommand) {
		if command == nil {
			command = []string{}
		}
		j.Command = r.texts(command)
	}
	if j.HasString {
		j.CommandString = r.text()
	}
	if j.HasEnv {
		j.Environment = r.texts(environment)
	}
	if has(entryWorkDir) {
		j.WorkDir = r.text()
	}
	if has(entryExecutor) {
		j.Executor = r.text()
	}
	if has(entryTimeout) {
		j.Timeout = time.Duration(r.int())
	}
	if has(entryCores) {
		j.Cores = Quantity{Raw: r.text(), Milli: r.int()}
	}
	if has(entryMemory) {
		j.MemoryMB = Quantity{Raw: r.text(), Milli: r.int()}
	}
	if has(entryOther) {
		for range r.uint() {
			other = append(other, Member{Name: r.text(), Raw: r.text()})
		}
		j.Other = other
	}
	if has(entryRetry) {
		t.Retry = RetryPolicy{MaxRetries: uint32(r.uint()), Interval: time.Duration(r.int()),
			Backoff: math.Float64frombits(r.fixed()), MaxInterval: time.Duration(r.int())}
	}
}

// eachMention yields the tasks that mention edges, in their order. The slices are
// used again.
func (l *TaskList) eachMention(yield func(task int, parents, children []EdgeSpec)) {
	var parents, children []EdgeSpec
	for k, task := range l.edgeTasks {
		r := entryReader{l.edgeEntries.entry(k)}
		parents = r.ends(parents[:0])
		children = r.ends(children[:0])
		yield(int(task), parents, children)
	}
}

// dropEdges forgets the edges: the plan has them.
func (l *TaskList) dropEdges() {
	l.edgeEntries, l.edgeTasks, l.edgeCount, l.buf = packedEntries{}, nil, 0, nil
}

// Has tells whether there is a task of a name.
func (l *TaskList) Has(name string) bool { return l.lookup(name) >= 0 }

// lookup is the task of a name, or -1.
func (l *TaskList) lookup(name string) int {
	if len(l.nameSlots) == 0 {
		return -1
	}
	mask := uint64(len(l.nameSlots) - 1)
	for at := maphash.String(l.seed, name) & mask; l.nameSlots[at] != 0; at = (at + 1) & mask {
		if i := int(l.nameSlots[at] - 1); l.taskName(i) == name {
			return i
		}
	}
	return -1
}

// indexName adds a name that is not in the index yet.
func (l *TaskList) indexName(name string, task uint32) {
	if l.nameSlots == nil {
		l.seed = maphash.MakeSeed()
	}
	if 3*l.Len() > 2*len(l.nameSlots) {
		grown := make([]uint32, max(64, 2*len(l.nameSlots)))
		for _, entry := range l.nameSlots {
			if entry != 0 {
				insertName(grown, maphash.String(l.seed, l.taskName(int(entry-1))), entry)
			}
		}
		l.nameSlots = grown
	}
	insertName(l.nameSlots, maphash.String(l.seed, name), task+1)
}

func insertName(names []uint32, hash uint64, entry uint32) {
	mask := uint64(len(names) - 1)
	at := hash & mask
	for names[at] != 0 {
		at = (at + 1) & mask
	}
	names[at] = entry
}

// entryReader reads what packTask wrote. This process wrote it, so it needs no checks: a
// wrong entry is a bug and panics with an index out of range.
type entryReader struct{ rest string }

func (r *entryReader) uint() uint64 {
	var v uint64
	for i, shift := 0, 0; ; i, shift = i+1, shift+7 {
		c := r.rest[i]
		v |= uint64(c&0x7f) << shift
		if c < 0x80 {
			r.rest = r.rest[i+1:]
			return v
		}
	}
}

func (r *entryReader) int() int64 {
	v := r.uint()
	return int64(v>>1) ^ -int64(v&1)
}

func (r *entryReader) fixed() uint64 {
	v := binary.BigEndian.Uint64([]byte(r.rest[:8]))
	r.rest = r.rest[8:]
	return v
}

func (r *entryReader) text() string {
	n := r.uint()
	s := r.rest[:n]
	r.rest = r.rest[n:]
	return s
}

func (r *entryReader) texts(dst []string) []string {
	for range r.uint() {
		dst = append(dst, r.text())
	}
	return dst
}

func (r *entryReader) ends(dst []EdgeSpec) []EdgeSpec {
	for range r.uint() {
		e := EdgeSpec{Task: r.text()}
		if n := r.uint(); n > 0 {
			for range n {
				e.Match = append(e.Match, r.text())
			}
		}
		dst = append(dst, e)
	}
	return dst
}
