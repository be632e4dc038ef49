package dagtest

import (
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"slices"
)

// OpKind is the kind of an operation. A and B choose the task or the number of slots, modulo what is
// possible at that moment. An operation that is not possible is skipped.
type OpKind uint8

// The kinds of operations. Their numbers are in stored scripts: new ones go before numKinds. A script is
// decoded modulo numKinds, so a new kind changes what fuzzers have stored with greater numbers, but not
// the scripts that Encode wrote.
const (
	OpGrant    OpKind = iota // A class, B slots
	OpStarted                // A task
	OpOK                     // A task; of a generator: A, B its output
	OpFail                   // A task
	OpLost                   // A task
	OpRevoked                // A task, of those that may answer so
	OpDue                    // A task; the clock goes to its due time
	OpEarly                  // A task; RetryDue before its time, or for another attempt
	OpStale                  // A an earlier event, once more
	OpTick                   // the clock advances by A/64 s, or is set back by A/16 s (B)
	OpKillTask               // A task
	OpPause                  //
	OpResume                 //
	OpRestart                //
	OpKill                   //
	OpCut                    // a snapshot begins; A: chunks written with each event, B: when its header is taken
	OpCrash                  // loses the newest A % 3 events; B: which live attempts are adopted
	numKinds
)

var kindNames = [numKinds]string{"grant", "started", "ok", "fail", "lost", "revoked", "due", "early", "stale",
	"tick", "killtask", "pause", "resume", "restart", "kill", "cut", "crash"}

// kindWeights are the weights of the kinds in a random script, in the order of the kinds. Grants and
// ends of attempts are frequent, so that runs get far; kills and crashes end much, so they are rare.
var kindWeights = [numKinds]int{24, 16, 30, 14, 4, 8, 10, 2, 6, 8, 2, 2, 5, 5, 1, 2, 2}

func (k OpKind) String() string { return kindNames[k] }

// Op is one operation of a script. The kind says what A and B mean. They are bytes instead of
// names of tasks, so that an operation stays valid when shrinking removes the tasks or the operations
// before it.
type Op struct {
	Kind OpKind
	A, B uint8
}

// maxOps bounds the time that one script takes, because a fuzzer finds more with many short scripts.
const maxOps = 400

// Script is a whole test as data. The same script plays the same on every machine: neither side reads
// a clock or a random number. Its bytes are
//
//	n  spec, n bytes  kind A B  kind A B  …
//
// where n is one byte, so a spec has at most 255 choices.
type Script struct {
	Spec []byte // see ChoiceSource and RandomSpec
	Ops  []Op
}

// RandomScript makes a script. Each has its own mixture of operations, without some and with much of
// others, so that rare operations meet more often than in a uniform mixture: a weight is multiplied by
// 0, 1, 1, 1 or 4. The spec has 120, 60 or 30 bytes, so that some specs end in plain tasks. The same
// seed and number of operations give the same script.
func RandomScript(seed uint64, ops int) Script {
	r := rand.New(rand.NewPCG(seed, 1))
	s := Script{Spec: make([]byte, 120)}
	for i := range s.Spec {
		s.Spec[i] = byte(r.Uint32())
	}
	s.Spec = s.Spec[:len(s.Spec)>>r.IntN(3)]
	kinds := []OpKind{OpGrant, OpOK}
	for k, w := range kindWeights {
		kinds = append(kinds, slices.Repeat([]OpKind{OpKind(k)}, w*[]int{0, 1, 1, 1, 4}[r.IntN(5)])...)
	}
	for range ops {
		s.Ops = append(s.Ops, Op{kinds[r.IntN(len(kinds))], byte(r.Uint32()), byte(r.Uint32())})
	}
	return s
}

// DecodeScript reads a script from bytes; any bytes are valid. The first byte is the length of the
// spec. Three bytes per operation follow, up to maxOps.
func DecodeScript(b []byte) Script {
	var s Script
	if len(b) == 0 {
		return s
	}
	n := min(int(b[0]), len(b)-1)
	s.Spec, b = b[1:1+n], b[1+n:]
	for ; len(b) >= 3 && len(s.Ops) < maxOps; b = b[3:] {
		s.Ops = append(s.Ops, Op{OpKind(b[0]) % numKinds, b[1], b[2]})
	}
	return s
}

// Encode is the reverse of DecodeScript.
func (s Script) Encode() []byte {
	b := append([]byte{byte(len(s.Spec))}, s.Spec...)
	for _, op := range s.Ops {
		b = append(b, byte(op.Kind), op.A, op.B)
	}
	return b
}

// String is the script in hex, as the flag -dag.script takes it.
func (s Script) String() string { return hex.EncodeToString(s.Encode()) }

// ParseScript reads what String wrote.
func ParseScript(text string) (Script, error) {
	b, err := hex.DecodeString(text)
	if err != nil {
		return Script{}, fmt.Errorf("script: %w", err)
	}
	return DecodeScript(b), nil
}

// ShrinkScript looks for a smaller script that still fails. It removes ever smaller parts of the
// operations and of the spec, and sets bytes to zero. It plays at most the given number of scripts.
//
// It is greedy: a candidate that still fails replaces the script, until a whole pass is without success.
// A pass removes parts of the operations (all, a half, a quarter, … one), cuts the end of the spec in
// the same way, and zeroes single bytes of the spec and then A and B of single operations.
//
// A smaller script may fail for another reason than the first one. That is accepted: it is a failure,
// too, and the first one is found again once it is repaired. fails must not panic; PlayScript turns
// panics into errors.
func ShrinkScript(s Script, plays int, fails func(Script) bool) Script {
	try := func(t Script) bool {
		if plays == 0 {
			return false
		}
		plays--
		if fails(t) {
			s = t
			return true
		}
		return false
	}
	for again := true; again && plays > 0; {
		again = false
		for size := len(s.Ops); size >= 1; size /= 2 {
			// After a removal the next part has moved to this place.
			for at := 0; at+size <= len(s.Ops); {
				if try(Script{s.Spec, slices.Delete(slices.Clone(s.Ops), at, at+size)}) {
					again = true
				} else {
					at += size
				}
			}
		}
		// Only the end of the spec is cut: a byte in the middle shifts the meaning of all after it.
		for size := len(s.Spec); size >= 1; size /= 2 {
			if size <= len(s.Spec) && try(Script{s.Spec[:len(s.Spec)-size], s.Ops}) {
				again = true
			}
		}
		for i := range s.Spec {
			if i < len(s.Spec) && s.Spec[i] != 0 {
				zeroed := slices.Clone(s.Spec)
				zeroed[i] = 0
				again = try(Script{zeroed, s.Ops}) || again
			}
		}
		for i := range s.Ops {
			if s.Ops[i].A|s.Ops[i].B != 0 {
				zeroed := slices.Clone(s.Ops)
				zeroed[i].A, zeroed[i].B = 0, 0
				again = try(Script{s.Spec, zeroed}) || again
			}
		}
	}
	return s
}
