package dag

import (
	"strconv"
	"strings"
)

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

// Bounds on the problems of one document.
const (
	maxProblems    = 1_000 // entries; one more says how many were left out
	maxQuotedBytes = 100   // of a name in a message
)

// MaxPointerBytes bounds the pointers of problems: longer ones are cut to a place
// that encloses theirs.
const MaxPointerBytes = 4_096

// Error is one line: the first problem, and how many more there are.
func (p Problems) Error() string {
	if len(p) == 0 {
		return "no problem"
	}
	text := p[0].Message
	if p[0].Pointer != "" {
		text = pointerInLine(p[0].Pointer) + ": " + text
	}
	if len(p) > 1 {
		text += " (and " + strconv.Itoa(len(p)-1) + " more)"
	}
	return text
}

// pointerInLine returns a pointer for use within a line: quoted when a name in it has
// unprintable characters.
func pointerInLine(pointer string) string {
	for _, r := range pointer {
		if !strconv.IsPrint(r) {
			return strconv.Quote(pointer)
		}
	}
	return pointer
}

// ProblemCollector gathers problems in the order in which they are found. It keeps
// 1,000; a last entry says how many more there are. The zero value is ready.
type ProblemCollector struct {
	found   Problems
	dropped int
}

// Add adds a problem, unless it is the one that was added last.
func (c *ProblemCollector) Add(p Problem) {
	n := len(c.found)
	if n >= maxProblems {
		c.dropped++
		return
	}
	if n > 0 && c.found[n-1] == p {
		return
	}
	if len(p.Pointer) > MaxPointerBytes {
		p.Pointer = p.Pointer[:strings.LastIndexByte(p.Pointer[:MaxPointerBytes], '/')]
	}
	c.found = append(c.found, p)
}

// Full tells that a further problem would only be counted, so that its message
// need not be made.
func (c *ProblemCollector) Full() bool { return len(c.found) >= maxProblems }

// Len is how many problems were added.
func (c *ProblemCollector) Len() int { return len(c.found) + c.dropped }

// Problems returns all problems that were added, or nil.
func (c *ProblemCollector) Problems() Problems {
	if c.dropped == 0 {
		return c.found
	}
	last := Problem{Message: "and " + strconv.Itoa(c.dropped) + " more problems"}
	return append(c.found[:len(c.found):len(c.found)], last)
}

// JoinProblems is two lists as one, within the same bound.
func JoinProblems(first, second Problems) Problems {
	if len(first) > maxProblems {
		return first
	}
	c := ProblemCollector{found: first[:len(first):len(first)]}
	for _, p := range second {
		c.Add(p)
	}
	return c.Problems()
}

// Quote returns a name as messages show it: in double quotes, escaped, and truncated
// beyond 100 bytes.
func Quote(name string) string {
	if len(name) <= maxQuotedBytes {
		return strconv.Quote(name)
	}
	cut := strings.ToValidUTF8(name[:maxQuotedBytes], "")
	return strconv.Quote(cut+"…") + " (" + strconv.Itoa(len(name)) + " bytes)"
}

// EscapePointer returns a member's name as a segment of a JSON pointer (RFC 6901). A
// name longer than MaxPointerBytes is truncated: a ProblemCollector drops that segment anyway.
func EscapePointer(name string) string {
	name = name[:min(len(name), MaxPointerBytes)]
	if !strings.ContainsAny(name, "~/") {
		return name
	}
	return strings.ReplaceAll(strings.ReplaceAll(name, "~", "~0"), "/", "~1")
}
