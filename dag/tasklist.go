package dag

import (
	"encoding/binary"
	"hash/maphash"
	"math"
	"sort"
	"strings"
	"time"
)

// TaskList holds tasks as defined, packed: each takes its texts and a few bytes,
// where a TaskSpec takes hundreds. It is what a long document is read into (see
// Spec.Listed). Tasks are appended in the order of the document; once a plan has
// been made of it nothing may be appended.
//
//	record = name flags [command] [commandString] [environment] [workDir] [executor]
//	         [timeout] [cores] [memoryMB] [other] [retry]
//
// What flags do not say is there takes nothing. A text is its length and its bytes;
// a list is its length and its texts. Records lie side by side in chunks; none is cut
// in two. Edges lie apart, for the plan alone: once it is made they are dropped.
type TaskList struct {
	records chunks
	edges   chunks
	mention []uint32 // tasks with edges, ascending
	ends    int      // how many edges are mentioned
	names   []uint32 // open addressing: 1 + a task; a power of two
	seed    maphash.Seed
	faulty  bool
	buf     []byte // of the record that is being written
}

// chunkBytes is what chunks have, but for one that holds a single larger record.
const chunkBytes = 256 << 10

// chunks are records one after the other.
type chunks struct {
	texts []string
	first []uint32 // the first record of each chunk
	at    []uint32 // where each record begins in its chunk
	open  strings.Builder
}

// add appends a record.
func (c *chunks) add(record []byte) {
	if len(c.texts) == 0 || c.open.Len()+len(record) > c.open.Cap() {
		c.open = strings.Builder{}
		c.open.Grow(max(chunkBytes, len(record)))
		c.texts = append(c.texts, "")
		c.first = append(c.first, uint32(len(c.at)))
	}
	c.at = append(c.at, uint32(c.open.Len()))
	c.open.Write(record)
	c.texts[len(c.texts)-1] = c.open.String()
}

// record is the i-th record, and what follows it in its chunk.
func (c *chunks) record(i int) string {
	k := len(c.first) - 1
	if uint32(i) < c.first[k] {
		k = sort.Search(k, func(k int) bool { return c.first[k] > uint32(i) }) - 1
	}
	return c.texts[k][c.at[i]:]
}

// Flags of a record.
const (
	listedFaulty = 1 << iota
	listedGenerator
	listedCommand
	listedString
	listedEnv
	listedEnvObject
	listedWorkDir
	listedExecutor
	listedTimeout
	listedCores
	listedMemory
	listedOther
	listedRetry
)

// AllFaulty makes every task Faulty.
func (l *TaskList) AllFaulty() { l.faulty = true }

// Len is the number of tasks.
func (l *TaskList) Len() int { return len(l.records.at) }

// Append packs a task. Nothing of it is kept. There must be no task of its name.
func (l *TaskList) Append(t *TaskSpec) {
	i := uint32(l.Len())
	l.records.add(l.pack(t))
	l.enter(t.Name, i)
	if len(t.Parents)+len(t.Children) > 0 {
		l.mention = append(l.mention, i)
		l.ends += len(t.Parents) + len(t.Children)
		l.buf = appendEnds(appendEnds(l.buf[:0], t.Parents), t.Children)
		l.edges.add(l.buf)
	}
}

func (l *TaskList) pack(t *TaskSpec) []byte {
	j := &t.Job
	flags := 0
	for _, f := range [...]struct {
		set  bool
		flag int
	}{
		{t.Faulty, listedFaulty}, {t.Generator, listedGenerator}, {j.Command != nil, listedCommand}, {j.HasString, listedString},
		{j.HasEnv, listedEnv}, {j.EnvObject, listedEnvObject}, {j.WorkDir != "", listedWorkDir}, {j.Executor != "", listedExecutor},
		{j.Timeout != 0, listedTimeout}, {j.Cores.Raw != "", listedCores}, {j.MemoryMB.Raw != "", listedMemory},
		{len(j.Other) > 0, listedOther}, {t.Retry != RetryPolicy{}, listedRetry},
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

// name is the name of a task.
func (l *TaskList) name(i int) string {
	r := unpacker{l.records.record(i)}
	return r.text()
}

// task unpacks a task but for its edges. T's slices are used again; its strings are
// the list's.
func (l *TaskList) task(i int, t *TaskSpec) {
	r := unpacker{l.records.record(i)}
	j := &t.Job
	command, environment, other := j.Command[:0], j.Environment[:0], j.Other[:0]
	*t = TaskSpec{Name: r.text()}
	flags := r.uint()
	has := func(flag uint64) bool { return flags&flag != 0 }
	t.Faulty, t.Generator = l.faulty || has(listedFaulty), has(listedGenerator)
	j.HasString, j.HasEnv, j.EnvObject = has(listedString), has(listedEnv), has(listedEnvObject)
	if has(listedCommand) {
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
	if has(listedWorkDir) {
		j.WorkDir = r.text()
	}
	if has(listedExecutor) {
		j.Executor = r.text()
	}
	if has(listedTimeout) {
		j.Timeout = time.Duration(r.int())
	}
	if has(listedCores) {
		j.Cores = Quantity{Raw: r.text(), Milli: r.int()}
	}
	if has(listedMemory) {
		j.MemoryMB = Quantity{Raw: r.text(), Milli: r.int()}
	}
	if has(listedOther) {
		for range r.uint() {
			other = append(other, Member{Name: r.text(), Raw: r.text()})
		}
		j.Other = other
	}
	if has(listedRetry) {
		t.Retry = RetryPolicy{MaxRetries: uint32(r.uint()), Interval: time.Duration(r.int()),
			Backoff: math.Float64frombits(r.fixed()), MaxInterval: time.Duration(r.int())}
	}
}

// eachMention yields the tasks that mention edges, in their order. The slices are
// used again.
func (l *TaskList) eachMention(yield func(task int, parents, children []EdgeSpec)) {
	var parents, children []EdgeSpec
	for k, task := range l.mention {
		r := unpacker{l.edges.record(k)}
		parents = r.ends(parents[:0])
		children = r.ends(children[:0])
		yield(int(task), parents, children)
	}
}

// dropEdges forgets the edges: the plan has them.
func (l *TaskList) dropEdges() { l.edges, l.mention, l.ends, l.buf = chunks{}, nil, 0, nil }

// Has tells whether there is a task of a name.
func (l *TaskList) Has(name string) bool { return l.find(name) >= 0 }

// find is the task of a name, or -1.
func (l *TaskList) find(name string) int {
	if len(l.names) == 0 {
		return -1
	}
	mask := uint64(len(l.names) - 1)
	for at := maphash.String(l.seed, name) & mask; l.names[at] != 0; at = (at + 1) & mask {
		if i := int(l.names[at] - 1); l.name(i) == name {
			return i
		}
	}
	return -1
}

// enter enters a name that is not there.
func (l *TaskList) enter(name string, task uint32) {
	if l.names == nil {
		l.seed = maphash.MakeSeed()
	}
	if 3*l.Len() > 2*len(l.names) {
		grown := make([]uint32, max(64, 2*len(l.names)))
		for _, entry := range l.names {
			if entry != 0 {
				put(grown, maphash.String(l.seed, l.name(int(entry-1))), entry)
			}
		}
		l.names = grown
	}
	put(l.names, maphash.String(l.seed, name), task+1)
}

func put(names []uint32, hash uint64, entry uint32) {
	mask := uint64(len(names) - 1)
	at := hash & mask
	for names[at] != 0 {
		at = (at + 1) & mask
	}
	names[at] = entry
}

// unpacker reads what pack wrote. That was written by this process: it is whole.
type unpacker struct{ rest string }

func (r *unpacker) uint() uint64 {
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

func (r *unpacker) int() int64 {
	v := r.uint()
	return int64(v>>1) ^ -int64(v&1)
}

func (r *unpacker) fixed() uint64 {
	v := binary.BigEndian.Uint64([]byte(r.rest[:8]))
	r.rest = r.rest[8:]
	return v
}

func (r *unpacker) text() string {
	n := r.uint()
	s := r.rest[:n]
	r.rest = r.rest[n:]
	return s
}

func (r *unpacker) texts(dst []string) []string {
	for range r.uint() {
		dst = append(dst, r.text())
	}
	return dst
}

func (r *unpacker) ends(dst []EdgeSpec) []EdgeSpec {
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
