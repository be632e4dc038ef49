package dag

import (
	"encoding/binary"
	"hash/maphash"
	"math"
	"sort"
	"strings"
	"time"
)

// TaskList holds tasks as defined, packed: each takes the bytes of its texts and a
// few more, where a TaskSpec takes hundreds. Long documents are read into it (see
// Spec.TaskList). Tasks are appended in the order of the document. A list that a plan
// was made of must not be appended to.
//
//	record = name flags [command] [commandString] [environment] [workDir] [executor]
//	         [timeout] [cores] [memoryMB] [other] [retry]
//
// Only parts whose flag is set take space. A text is its length and its bytes; a list is
// its length and its texts. Records are stored side by side in chunks and never cross
// chunks. Edges are stored apart, for NewPlan alone, and dropped after it.
type TaskList struct {
	records         recordChunks
	edges           recordChunks
	edgeTasks       []uint32 // tasks with edges, ascending
	edgeCount       int      // how many edges are mentioned
	names           []uint32 // open addressing: 1 + a task; a power of two
	seed            maphash.Seed
	hasDecodeErrors bool
	buf             []byte // of the record that is being written
}

// chunkBytes is the size of a chunk. A larger record gets a chunk of its own.
const chunkBytes = 256 << 10

// recordChunks are records one after the other.
type recordChunks struct {
	texts []string
	first []uint32 // the first record of each chunk
	at    []uint32 // where each record begins in its chunk
	open  strings.Builder
}

// add appends a record.
func (c *recordChunks) add(record []byte) {
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
func (c *recordChunks) record(i int) string {
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

// MarkAllFaulty sets HasDecodeErrors on every task.
func (l *TaskList) MarkAllFaulty() { l.hasDecodeErrors = true }

// Len is the number of tasks.
func (l *TaskList) Len() int { return len(l.records.at) }

// Append packs a task and keeps no reference to it. The name must be new to the list.
func (l *TaskList) Append(t *TaskSpec) {
	i := uint32(l.Len())
	l.records.add(l.packTask(t))
	l.indexName(t.Name, i)
	if len(t.Parents)+len(t.Children) > 0 {
		l.edgeTasks = append(l.edgeTasks, i)
		l.edgeCount += len(t.Parents) + len(t.Children)
		l.buf = appendEnds(appendEnds(l.buf[:0], t.Parents), t.Children)
		l.edges.add(l.buf)
	}
}

func (l *TaskList) packTask(t *TaskSpec) []byte {
	j := &t.Job
	flags := 0
	for _, f := range [...]struct {
		set  bool
		flag int
	}{
		{t.HasDecodeErrors, listedFaulty}, {t.Generator, listedGenerator}, {j.Command != nil, listedCommand}, {j.HasString, listedString},
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

// taskName is the name of a task.
func (l *TaskList) taskName(i int) string {
	r := recordReader{l.records.record(i)}
	return r.text()
}

// unpackTask unpacks a task without its edges. It reuses the slices of t; the strings
// belong to the list.
func (l *TaskList) unpackTask(i int, t *TaskSpec) {
	r := recordReader{l.records.record(i)}
	j := &t.Job
	command, environment, other := j.Command[:0], j.Environment[:0], j.Other[:0]
	*t = TaskSpec{Name: r.text()}
	flags := r.uint()
	has := func(flag uint64) bool { return flags&flag != 0 }
	t.HasDecodeErrors, t.Generator = l.hasDecodeErrors || has(listedFaulty), has(listedGenerator)
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
	for k, task := range l.edgeTasks {
		r := recordReader{l.edges.record(k)}
		parents = r.ends(parents[:0])
		children = r.ends(children[:0])
		yield(int(task), parents, children)
	}
}

// dropEdges forgets the edges: the plan has them.
func (l *TaskList) dropEdges() {
	l.edges, l.edgeTasks, l.edgeCount, l.buf = recordChunks{}, nil, 0, nil
}

// Has tells whether there is a task of a name.
func (l *TaskList) Has(name string) bool { return l.lookup(name) >= 0 }

// lookup is the task of a name, or -1.
func (l *TaskList) lookup(name string) int {
	if len(l.names) == 0 {
		return -1
	}
	mask := uint64(len(l.names) - 1)
	for at := maphash.String(l.seed, name) & mask; l.names[at] != 0; at = (at + 1) & mask {
		if i := int(l.names[at] - 1); l.taskName(i) == name {
			return i
		}
	}
	return -1
}

// indexName adds a name that is not in the index yet.
func (l *TaskList) indexName(name string, task uint32) {
	if l.names == nil {
		l.seed = maphash.MakeSeed()
	}
	if 3*l.Len() > 2*len(l.names) {
		grown := make([]uint32, max(64, 2*len(l.names)))
		for _, entry := range l.names {
			if entry != 0 {
				insertSlot(grown, maphash.String(l.seed, l.taskName(int(entry-1))), entry)
			}
		}
		l.names = grown
	}
	insertSlot(l.names, maphash.String(l.seed, name), task+1)
}

func insertSlot(names []uint32, hash uint64, entry uint32) {
	mask := uint64(len(names) - 1)
	at := hash & mask
	for names[at] != 0 {
		at = (at + 1) & mask
	}
	names[at] = entry
}

// recordReader reads what packTask wrote. This process wrote it, so it needs no checks.
type recordReader struct{ rest string }

func (r *recordReader) uint() uint64 {
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

func (r *recordReader) int() int64 {
	v := r.uint()
	return int64(v>>1) ^ -int64(v&1)
}

func (r *recordReader) fixed() uint64 {
	v := binary.BigEndian.Uint64([]byte(r.rest[:8]))
	r.rest = r.rest[8:]
	return v
}

func (r *recordReader) text() string {
	n := r.uint()
	s := r.rest[:n]
	r.rest = r.rest[n:]
	return s
}

func (r *recordReader) texts(dst []string) []string {
	for range r.uint() {
		dst = append(dst, r.text())
	}
	return dst
}

func (r *recordReader) ends(dst []EdgeSpec) []EdgeSpec {
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
