package history

import (
	"fmt"
	"maps"
	"slices"

	"github.com/anishathalye/porcupine"
)

// keyState is what the service knows of an idempotency key. A key that was never used is the zero value.
type keyState struct {
	isUsed   bool
	document string // the tag of the document that has the key
	runKnown bool   // false after a submission without an answer
	run      uint64
}

// after returns the state after a submission with the key, and whether its answer is right. An
// unknown outcome always takes effect here. This accepts the same histories: a submission that never
// happened is the last in the order, after all answers.
func (s keyState) after(o *Operation) (keyState, bool) {
	switch {
	case o.Outcome == KeyReused:
		return s, s.isUsed && s.document != o.Tag
	case !s.isUsed:
		s = keyState{isUsed: true, document: o.Tag}
		if o.Outcome == Acknowledged {
			s.runKnown, s.run = true, o.Run
		}
		return s, true
	case o.Outcome == Unknown:
		return s, true
	case s.document != o.Tag || s.runKnown && s.run != o.Run:
		return s, false
	}
	s.runKnown, s.run = true, o.Run
	return s, true
}

// keyModel is an idempotency key as porcupine needs it.
var keyModel = porcupine.Model{
	Init: func() any { return keyState{} },
	Step: func(state, input, _ any) (bool, any) {
		next, ok := state.(keyState).after(input.(*Operation))
		return ok, next
	},
	DescribeOperation: func(input, _ any) string { return input.(*Operation).String() },
}

// checkKeys: rule keys.
func (c *check) checkKeys() {
	byKey := map[string][]porcupine.Operation{}
	for i := range c.Operations {
		o := &c.Operations[i]
		if o.Kind == Submit && o.Key != "" && o.Outcome != Rejected {
			byKey[o.Key] = append(byKey[o.Key], porcupineOperation(o))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(byKey)) {
		c.reportSearch("keys", fmt.Sprintf("key %q", key), keyModel, byKey[key])
	}
}
