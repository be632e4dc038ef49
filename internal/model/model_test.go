package model

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "write the counterexamples to testdata/counterexamples.txt instead of comparing them")

// stateLimit bounds a check. A scope that exceeds it is too large for a test.
const stateLimit = 1_500_000

// scopes are the worlds in which the protocol must hold. Each one combines faults that matter to each
// other. The lease has two ticks where the drift or the age of a renewal matters, and one elsewhere.
var scopes = []Scope{
	{Name: "takeovers", Faults: Faults{Elections: 2, Breaks: 1}},
	{Name: "node crashes", Faults: Faults{Elections: 1, NodeCrashes: 1, Breaks: 1}},
	{Name: "engine failures", Faults: Faults{Elections: 1, EngineFailures: 1, Breaks: 1}},
	{Name: "engine and worker", Faults: Faults{EngineFailures: 1, Losses: 1}},
	{Name: "worker kills", Faults: Faults{Elections: 1, Kills: 2}},
	{Name: "power failures", Faults: Faults{Elections: 1, Kills: 1, PowerCuts: 1}},
	{Name: "lost machines", Faults: Faults{Elections: 2, PowerCuts: 1, Losses: 1}},
	{Name: "late worker", Faults: Faults{Elections: 2, Kills: 1}, LateWorker: true},
	{Name: "leases", Faults: Faults{Elections: 1}, Lease: 1, Settled: true, PromptReports: true},
	{Name: "longer leases", Faults: Faults{Elections: 1}, Lease: 2, Settled: true, PromptReports: true},
	{Name: "leases and workers", Faults: Faults{Kills: 1, Losses: 1}, Lease: 1, Settled: true, PromptReports: true},
	{Name: "leases and frozen workers", Faults: Faults{Freezes: 1}, Lease: 1, Settled: true, PromptReports: true},
	{Name: "drift and grace", Lease: 2, Drift: 1, Grace: 1, Settled: true, PromptReports: true},
}

func scopeOf(t *testing.T, name string) Scope {
	for _, s := range scopes {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("unknown scope %q", name)
	return Scope{}
}

// shortScopes are those that are checked with -short, as a sample.
var shortScopes = []string{"takeovers", "engine and worker", "leases and frozen workers"}

// shortReason is why tests are skipped with -short.
const shortReason = "-short takes a sample: each check is one goroutine, so the race detector only makes it slow"

// countingModel counts how often each step was possible.
type countingModel struct {
	Model
	steps [stepCount]int
}

func (m *countingModel) Next(s State, yield func(Step, State)) {
	m.Model.Next(s, func(step Step, next State) {
		m.steps[step.Kind]++
		yield(step, next)
	})
}

// TestProtocolHolds visits all states of each scope. It also checks that every step happens somewhere:
// a step that never does would hide what could follow it.
func TestProtocolHolds(t *testing.T) {
	var mu sync.Mutex
	var steps [stepCount]int
	t.Run("scopes", func(t *testing.T) {
		for _, scope := range scopes {
			t.Run(scope.Name, func(t *testing.T) {
				t.Parallel()
				if testing.Short() && !slices.Contains(shortScopes, scope.Name) {
					t.Skip(shortReason)
				}
				m := &countingModel{Model: Model{Rules: AllRules, Scope: scope}}
				r, err := Explore(m, stateLimit)
				if err != nil {
					t.Fatal(err)
				}
				t.Logf("%d states, %d transitions", r.States, r.Transitions)
				if r.Violation != "" {
					t.Errorf("%s:\n%s%v", r.Violation, traceText(r.Trace), r.Last)
				}
				mu.Lock()
				defer mu.Unlock()
				for kind, n := range m.steps {
					steps[kind] += n
				}
			})
		}
	})
	if testing.Short() {
		return
	}
	// These exist only without LeaseFromSending, without TakeoverReadsAll, and with PlacedGrants.
	steps[stepSendFrame], steps[stepCatchUp], steps[stepPlaceGrant] = 1, 1, 1
	for kind := stepNone + 1; kind < stepCount; kind++ {
		if steps[kind] == 0 {
			t.Errorf("never happens: %s", stepTexts[kind])
		}
	}
}

// neededRules are rules that cannot be left out, each with the scope that shows it. Rules that stand
// together cover for each other: one of them can be left out, both cannot.
var neededRules = []struct {
	rules []Rule
	scope string
}{
	{[]Rule{FenceByTerm}, "lost machines"},
	{[]Rule{TakeoverReadsAll}, "takeovers"},
	{[]Rule{ResolveBeforeRestart}, "engine and worker"},
	{[]Rule{CommitBeforeOrder}, "takeovers"},
	{[]Rule{UnknownEndsEngine}, "leases"},
	{[]Rule{AcknowledgeAfterCommit}, "takeovers"},
	{[]Rule{HighestEpoch}, "takeovers"},
	{[]Rule{NoteIsDurable, RegisterIncarnations}, "worker kills"},
	{[]Rule{NewestSession}, "takeovers"},
	{[]Rule{StartOnce}, "takeovers"},
	{[]Rule{RegisterWorkers}, "late worker"},
	{[]Rule{ResumeHearsAll}, "takeovers"},
	{[]Rule{AbsenceFromFirstReport}, "takeovers"},
	{[]Rule{SilentIsLost}, "lost machines"},
	{[]Rule{SilenceEndsSession}, "leases"},
	{[]Rule{IntentBeforeFork}, "worker kills"},
	{[]Rule{RecoverDeadWorkers}, "worker kills"},
	{[]Rule{EndProcessesFirst}, "worker kills"},
	{[]Rule{TornJournalProvesNothing}, "power failures"},
	{[]Rule{OperatorDeclaresDeath}, "lost machines"},
	{[]Rule{LeaseEndsAttempts}, "leases"},
	{[]Rule{LeaseNeedsNoWorker}, "leases and workers"},
	{[]Rule{LeaseNeedsNoWorker}, "leases and frozen workers"},
	{[]Rule{BeginUnderLease}, "leases"},
	{[]Rule{OverIsOver}, "leases"},
	{[]Rule{LeaseFromSending}, "leases"},
	{[]Rule{RenewWhileLeading}, "leases"},
	{[]Rule{FullWaitAtTakeover}, "leases"},
	{[]Rule{MarginCoversGrace}, "drift and grace"},
}

// TestEveryRuleIsNeeded leaves each rule out and expects a counterexample. The counterexamples are in
// testdata/counterexamples.txt, in the order of the rules: they say what each rule is for.
func TestEveryRuleIsNeeded(t *testing.T) {
	if testing.Short() {
		t.Skip(shortReason)
	}
	const file = "testdata/counterexamples.txt"
	texts := make([]string, len(neededRules))
	covered := map[Rule]bool{}
	t.Run("rules", func(t *testing.T) {
		for i, needed := range neededRules {
			for _, rule := range needed.rules {
				covered[rule] = true
			}
			t.Run(fmt.Sprint(needed.rules[0], " ", needed.scope), func(t *testing.T) {
				t.Parallel()
				m := &Model{Rules: AllRules.Without(needed.rules...), Scope: scopeOf(t, needed.scope)}
				r, err := Explore(m, stateLimit)
				if err != nil {
					t.Fatal(err)
				}
				if r.Violation == "" {
					t.Fatalf("the protocol holds without %v: they are redundant, or the scope is too small", needed.rules)
				}
				texts[i] = fmt.Sprintf("without %s, scope %q: %s\n%s%v", join(needed.rules), needed.scope, r.Violation, traceText(r.Trace), r.Last)
			})
		}
	})
	for rule := range ruleCount {
		if !covered[rule] {
			t.Errorf("rule %v is not in neededRules", rule)
		}
	}
	if t.Failed() {
		return
	}
	got := strings.Join(texts, "\n")
	if *rewrite {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; read the difference, then run go test ./internal/model -run TestEveryRuleIsNeeded -rewrite", file)
	}
}

// TestRulesThatCoverForEachOther shows that one of the two rules is enough: either a worker that was
// restarted still knows the highest epoch, or a former leader cannot register it.
func TestRulesThatCoverForEachOther(t *testing.T) {
	for _, rule := range []Rule{NoteIsDurable, RegisterIncarnations} {
		t.Run(rule.String(), func(t *testing.T) {
			t.Parallel()
			m := &Model{Rules: AllRules.Without(rule), Scope: Scope{Faults: Faults{Elections: 1, Kills: 1}}}
			r, err := Explore(m, stateLimit)
			if err != nil {
				t.Fatal(err)
			}
			if r.Violation != "" {
				t.Errorf("%s:\n%s%v", r.Violation, traceText(r.Trace), r.Last)
			}
		})
	}
}

// longScope is the largest scope.
const longScope = "longer leases"

// TestPlacedGrantsHold visits the scopes with grants that name the worker.
func TestPlacedGrantsHold(t *testing.T) {
	if testing.Short() {
		t.Skip(shortReason)
	}
	for _, scope := range scopes {
		if scope.Name == longScope {
			continue // its faults are those of "leases"
		}
		t.Run(scope.Name, func(t *testing.T) {
			t.Parallel()
			r, err := Explore(&Model{Rules: AllRules, Scope: scope, PlacedGrants: true}, stateLimit)
			if err != nil {
				t.Fatal(err)
			}
			if r.Violation != "" {
				t.Errorf("%s:\n%s%v", r.Violation, traceText(r.Trace), r.Last)
			}
		})
	}
}

// TestRulesOfPlacedGrants leaves rules out of the variant. Workers are not registered there, and the
// variant holds without the note that survives the worker.
func TestRulesOfPlacedGrants(t *testing.T) {
	if testing.Short() {
		t.Skip(shortReason)
	}
	for _, needed := range neededRules {
		if needed.rules[0] == RegisterWorkers || needed.rules[0] == NoteIsDurable {
			continue
		}
		t.Run(fmt.Sprint(needed.rules[0], " ", needed.scope), func(t *testing.T) {
			t.Parallel()
			m := &Model{Rules: AllRules.Without(needed.rules...), Scope: scopeOf(t, needed.scope), PlacedGrants: true}
			r, err := Explore(m, stateLimit)
			if err != nil {
				t.Fatal(err)
			}
			if r.Violation == "" {
				t.Errorf("the protocol holds without %v: they are redundant, or the scope is too small", needed.rules)
			}
		})
	}
	t.Run("without the note", func(t *testing.T) {
		t.Parallel()
		m := &Model{Rules: AllRules.Without(NoteIsDurable), Scope: Scope{Faults: Faults{Elections: 1, Kills: 1}}, PlacedGrants: true}
		r, err := Explore(m, stateLimit)
		if err != nil {
			t.Fatal(err)
		}
		if r.Violation != "" {
			t.Errorf("%s:\n%s%v", r.Violation, traceText(r.Trace), r.Last)
		}
	})
}

// traceText numbers the steps of a trace.
func traceText(trace []Step) string {
	var b strings.Builder
	for i, step := range trace {
		fmt.Fprintf(&b, "%3d  %v\n", i+1, step)
	}
	return b.String()
}

func join(rules []Rule) string {
	var names []string
	for _, r := range rules {
		names = append(names, r.String())
	}
	return strings.Join(names, " and ")
}
