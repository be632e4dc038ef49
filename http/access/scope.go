package access

import (
	"fmt"
	"strings"

	"github.com/caravan-dag/caravan/messages"
)

// Scopes is a set of things that a caller may do. They are independent: Submit does
// not include Read.
type Scopes uint8

const (
	Read    Scopes = 1 << iota // see runs, tasks, logs, events, metrics
	Submit                     // submit graphs, which runs commands; validate them
	Control                    // kill, pause, resume and restart runs and tasks

	All = Read | Submit | Control
)

func scopeNames() []string { return []string{"read", "submit", "control"} }

// ParseScopes reads scopes that are separated by commas.
func ParseScopes(s string) (Scopes, error) {
	var out Scopes
	for word := range strings.SplitSeq(s, ",") {
		var one Scopes
		for i, name := range scopeNames() {
			if word == name {
				one = 1 << i
			}
		}
		switch {
		case one == 0:
			return 0, fmt.Errorf("unknown scope %q: want read, submit, control, separated by commas", word)
		case out&one != 0:
			return 0, fmt.Errorf("scope %q is given twice", word)
		}
		out |= one
	}
	return out, nil
}

// String is what ParseScopes reads.
func (s Scopes) String() string {
	var words []string
	for i, name := range scopeNames() {
		if s&(1<<i) != 0 {
			words = append(words, name)
		}
	}
	return strings.Join(words, ",")
}

// Caller is a client and what it may do.
type Caller struct {
	messages.Principal
	Scopes Scopes
}
