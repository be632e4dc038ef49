package dag

import (
	"math"
	"time"
)

// Spec is a submitted graph, decoded and syntactically sound, not yet validated
// as a graph (see NewPlan). It is immutable.
type Spec struct {
	Tag        string
	Tags       []Label     // sorted by name
	Parameters []Parameter // sorted by name
	Defaults   *Job        // jobDefaults; nil when absent
	Tasks      []TaskSpec  // in the order of the document
	TaskList   *TaskList   // replaces Tasks for a long document, else nil. The plan takes it over
}

// Label is one member of a spec's `tags`.
type Label struct{ Name, Value string }

// Parameter is one member of a spec's `parameters`: a string or a list of strings.
type Parameter struct {
	Name   string
	List   bool     // given as a list; a list of one value is still a list
	Values []string // exactly one value when List is false
}

// TaskSpec is one task as defined, before expansion.
type TaskSpec struct {
	Name      string
	Job       Job
	Parents   []EdgeSpec
	Children  []EdgeSpec
	Retry     RetryPolicy
	Generator bool
	// HasDecodeErrors is set by a decoder that has reported problems inside this task and
	// left parts of it out. Planning then does not report these parts as missing.
	HasDecodeErrors bool
}

// EdgeSpec names the other end of an edge, by its name as defined. Match is nil
// for all-to-all, or the parameters whose values must be the same at both ends.
type EdgeSpec struct {
	Task  string
	Match []string
}

// Job says what an attempt executes. A zero member means "not given".
//
// {{NAME}} in Command, CommandString, Environment or WorkDir stands for a value of
// the parameter NAME, byte for byte: no spaces inside the braces, upper and lower
// case differ. A substituted value is not expanded again. An unknown NAME is a
// problem when it looks like a name: a letter, a digit or "_", then letters, digits,
// "_", "-" and ".". All other text with braces stays as it is: "{{", "{{ x }}",
// "{{.Names}}". In "{{{A}}}" the inner two pairs are the token. For a literal "{{end}}",
// define a parameter "end" with that value.
type Job struct {
	Command       []string // argv; nil when not given
	CommandString string   // run by /bin/sh -c
	HasString     bool     // commandString was given (it may be empty)
	Environment   []string // K=V, in the order submitted (an object: in the order of the document)
	HasEnv        bool
	EnvObject     bool // environment was submitted as an object (for pointers of problems)
	WorkDir       string
	Executor      string        // "" = "process"
	Timeout       time.Duration // 0 = none
	Cores         Quantity
	MemoryMB      Quantity
	// Other holds the remaining members as submitted, in the order of the document;
	// they are kept and echoed. timeoutSeconds is among them, so that it is echoed
	// as it was written.
	Other []Member
}

// Quantity is a number that is echoed exactly as it was submitted.
type Quantity struct {
	Raw   string // the JSON text: `"1"` or `1`; "" when not given
	Milli int64  // thousandths: cores "1" is 1000; memoryMB "100" is 100000
}

// bytes converts a quantity of MiB, the unit of memoryMB, to bytes. It rounds down,
// and stops at the largest int64.
func (q Quantity) bytes() int64 {
	if q.Milli >= math.MaxInt64>>20 {
		return math.MaxInt64
	}
	return q.Milli << 20 / 1000
}

// Member is one JSON object member, its value as raw JSON text.
type Member struct{ Name, Raw string }

// RetryPolicy says when a failed attempt is followed by another one.
type RetryPolicy struct {
	MaxRetries  uint32        // attempts after the first
	Interval    time.Duration // before the first retry
	Backoff     float64       // factor per further retry, >= 1; 0 counts as 1
	MaxInterval time.Duration // cap of the interval; 0 = none
}

// Problem is one mistake in a submitted document.
type Problem struct {
	Pointer string // JSON pointer (RFC 6901) to the place, "" for the whole document
	Message string // one sentence that names the thing, without the place
	// Limit is set when the document is sound but too large (HTTP 422).
	Limit bool
}

// Problems lists all mistakes in a document, in the order of the document where that
// is known. It is an error when it is not empty.
type Problems []Problem
