package history

import (
	"strings"
	"testing"
	"time"
)

// The operations of a scenario are written as functions of their two times, in ms.

func submitted(run uint64) Operation {
	return Operation{Kind: Submit, Tag: "t", Outcome: Acknowledged, Run: run}
}

func read(state string) Operation { return Operation{Kind: Read, Outcome: Acknowledged, State: state} }

func missing() Operation { return Operation{Kind: Read, Outcome: NotFound} }

func set(state string, outcome Outcome) Operation {
	return Operation{Kind: Change, State: state, Outcome: outcome}
}

func (o Operation) at(call, end int) Operation {
	o.Call, o.Return = time.Duration(call)*time.Millisecond, time.Duration(end)*time.Millisecond
	return o
}

// inTurn gives operations times that do not overlap.
func inTurn(operations ...Operation) []Operation {
	for i := range operations {
		operations[i] = operations[i].at(10*i+1, 10*i+5)
	}
	return operations
}

// TestRegister: which answers about the state of run 0 an order of the calls explains.
func TestRegister(t *testing.T) {
	unknownSubmission := Operation{Kind: Submit, Tag: "t", Outcome: Unknown}
	for _, c := range []struct {
		name string
		good bool
		all  []Operation
	}{
		{"a life", true, inTurn(missing(), submitted(0), read("QUEUED"), read("RUNNING"), read("RUNNING"), read("COMPLETED"), read("COMPLETED"))},
		{"states may be missed", true, inTurn(submitted(0), read("ERRORED"))},
		{"never submitted", false, inTurn(read("QUEUED"))},
		{"lost", false, inTurn(submitted(0), missing())},
		{"back to QUEUED", false, inTurn(submitted(0), read("RUNNING"), read("QUEUED"))},
		{"back from the end", false, inTurn(submitted(0), read("COMPLETED"), read("RUNNING"))},
		{"two ends", false, inTurn(submitted(0), read("COMPLETED"), read("ERRORED"))},
		{"killed by itself", false, inTurn(submitted(0), read("KILLED"))},
		{"unknown word", false, inTurn(submitted(0), read("DONE"))},

		{"a read during the submission may see the run", true, []Operation{submitted(0).at(1, 50), read("QUEUED").at(10, 20)}},
		{"or not", true, []Operation{submitted(0).at(1, 50), missing().at(10, 20)}},
		{"but not first see it and then not", false, []Operation{submitted(0).at(1, 50), read("QUEUED").at(10, 20), missing().at(30, 40)}},
		{"overlapping reads have any order", true, []Operation{submitted(0).at(1, 2), read("RUNNING").at(10, 30), read("QUEUED").at(11, 31)}},

		{"a submission without an answer took effect", true, inTurn(unknownSubmission, read("QUEUED"))},
		{"or never did", true, inTurn(unknownSubmission, missing(), missing())},
		{"or much later", true, inTurn(unknownSubmission, missing(), missing(), read("QUEUED"))},
		{"but not backwards", false, inTurn(unknownSubmission, read("QUEUED"), missing())},

		{"killed", true, inTurn(submitted(0), read("RUNNING"), set("KILLED", Acknowledged), read("RUNNING"), read("KILLED"))},
		{"killed while queued", true, inTurn(submitted(0), set("KILLED", Acknowledged), read("KILLED"))},
		{"a kill of a finished run", true, inTurn(submitted(0), read("COMPLETED"), set("KILLED", Acknowledged), read("COMPLETED"))},
		{"a kill may come too late", true, inTurn(submitted(0), set("KILLED", Acknowledged), read("COMPLETED"))},
		{"a run that is being killed does not complete", false, inTurn(submitted(0), set("KILLED", Acknowledged), read("RUNNING"), read("COMPLETED"))},
		{"a kill without an answer may be late", true, inTurn(submitted(0), set("KILLED", Unknown), read("RUNNING"), read("COMPLETED"))},
		{"a kill without an answer kills", true, inTurn(submitted(0), set("KILLED", Unknown), read("RUNNING"), read("KILLED"))},
		{"a rejected kill does not", false, inTurn(submitted(0), set("KILLED", Rejected), read("KILLED"))},
		{"a kill of an unknown run", true, inTurn(set("KILLED", NotFound), submitted(0))},
		{"a kill does not find a run that exists", false, inTurn(submitted(0), set("KILLED", NotFound))},

		{"paused", true, inTurn(submitted(0), set("PAUSED", Acknowledged), read("PAUSED"), read("PAUSED"))},
		{"a paused run does not start", false, inTurn(submitted(0), set("PAUSED", Acknowledged), read("RUNNING"))},
		{"a paused run may come to its end", true, inTurn(submitted(0), set("PAUSED", Acknowledged), read("COMPLETED"))},
		{"paused twice", false, inTurn(submitted(0), set("PAUSED", Acknowledged), set("PAUSED", Acknowledged))},
		{"paused twice, refused", true, inTurn(submitted(0), set("PAUSED", Acknowledged), set("PAUSED", Conflict))},
		{"a pause is refused while the run runs", false, inTurn(submitted(0), set("PAUSED", Conflict), read("RUNNING"))},
		{"a pause is refused at the end", true, inTurn(submitted(0), set("PAUSED", Conflict), read("COMPLETED"))},
		{"a pause is refused during a kill", true, inTurn(submitted(0), set("KILLED", Acknowledged), set("PAUSED", Conflict), read("RUNNING"))},
		{"resumed", true, inTurn(submitted(0), set("PAUSED", Acknowledged), set("RUNNING", Acknowledged), read("RUNNING"))},
		{"resumed, but not paused", false, inTurn(submitted(0), read("RUNNING"), set("RUNNING", Acknowledged))},

		{"restarted", true, inTurn(submitted(0), read("ERRORED"), set("QUEUED", Acknowledged), read("QUEUED"), read("COMPLETED"))},
		{"restarted from a kill", true, inTurn(submitted(0), set("KILLED", Acknowledged), read("KILLED"), set("QUEUED", Acknowledged), read("RUNNING"))},
		{"a COMPLETED run is not restarted", false, inTurn(submitted(0), read("COMPLETED"), set("QUEUED", Acknowledged))},
		{"a COMPLETED run is not restarted: refused", true, inTurn(submitted(0), read("COMPLETED"), set("QUEUED", Conflict), read("COMPLETED"))},
		{"a restart is refused without reason", false, inTurn(submitted(0), read("ERRORED"), set("QUEUED", Conflict))},
	} {
		t.Run(c.name, func(t *testing.T) {
			found := violations(&History{Operations: c.all}, "register")
			if c.good && len(found) > 0 {
				t.Errorf("it is good, but %v", found)
			}
			if !c.good && len(found) == 0 {
				t.Error("it is bad, and passes")
			}
		})
	}
}

// violations checks a history without its records, by one rule.
func violations(h *History, rule string) (found []Violation) {
	for _, o := range h.Operations {
		if o.Kind == Submit && o.Outcome == Unknown { // a record ties it to its run
			h.Records = []Record{{Run: o.Run, Tag: o.Tag}}
		}
	}
	for _, v := range Check(h, Options{}) {
		if v.Rule == rule {
			found = append(found, v)
		}
	}
	return found
}

// TestKeys: which answers to submissions with one idempotency key an order of the calls explains.
func TestKeys(t *testing.T) {
	keyed := func(tag string, outcome Outcome, run uint64) Operation {
		return Operation{Kind: Submit, Key: "k", Tag: tag, Outcome: outcome, Run: run}
	}
	for _, c := range []struct {
		name string
		good bool
		all  []Operation
	}{
		{"repeated", true, inTurn(keyed("a", Acknowledged, 1), keyed("a", Acknowledged, 1), keyed("b", KeyReused, 0))},
		{"two runs", false, inTurn(keyed("a", Acknowledged, 1), keyed("a", Acknowledged, 2))},
		{"two runs at a time", false, []Operation{keyed("a", Acknowledged, 1).at(1, 9), keyed("a", Acknowledged, 2).at(2, 8)}},
		{"two documents", false, inTurn(keyed("a", Acknowledged, 1), keyed("b", Acknowledged, 2))},
		{"two documents, one run", false, inTurn(keyed("a", Acknowledged, 1), keyed("b", Acknowledged, 1))},
		{"refused without reason", false, inTurn(keyed("a", KeyReused, 0))},
		{"refused for the same document", false, inTurn(keyed("a", Acknowledged, 1), keyed("a", KeyReused, 0))},
		{"no answer, then repeated", true, inTurn(keyed("a", Unknown, 0), keyed("a", Acknowledged, 1), keyed("a", Acknowledged, 1))},
		{"no answer, then another document is refused", true, inTurn(keyed("a", Unknown, 0), keyed("b", KeyReused, 0))},
		{"no answer, then another document has it", true, inTurn(keyed("a", Unknown, 0), keyed("b", Acknowledged, 1), keyed("a", KeyReused, 0))},
		{"no answer, and both documents have it", false, inTurn(keyed("a", Unknown, 0), keyed("b", Acknowledged, 1), keyed("a", Acknowledged, 2))},
		{"a rejected submission leaves it free", true, inTurn(keyed("a", Rejected, 0), keyed("b", Acknowledged, 1))},
	} {
		t.Run(c.name, func(t *testing.T) {
			found := violations(&History{Operations: c.all}, "keys")
			if c.good != (len(found) == 0) {
				t.Errorf("good: %v; found: %v", c.good, found)
			}
		})
	}
}

// TestUndecidedSearchIsReported: a search that is cut off is not a success.
func TestUndecidedSearchIsReported(t *testing.T) {
	var all []Operation
	for i := range 24 { // changes without answers may take effect in any order
		all = append(all, set([]string{"PAUSED", "RUNNING", "QUEUED"}[i%3], Unknown).at(10, 20))
	}
	all = append(all, submitted(0).at(1, 2), read("RUNNING").at(100, 101), missing().at(102, 103))
	found := Check(&History{Operations: all}, Options{SearchLimit: time.Nanosecond})
	if len(found) == 0 || found[0].Rule != "register" || !strings.Contains(found[0].Text, "took longer") {
		t.Errorf("found %v", found)
	}
}

// TestVisualize: the page of a run is HTML and shows its operations.
func TestVisualize(t *testing.T) {
	var page strings.Builder
	if err := Visualize(&History{Operations: inTurn(submitted(0), read("RUNNING"), missing())}, 0, &page); err != nil {
		t.Fatal(err)
	}
	if text := page.String(); !strings.Contains(text, "<html") || !strings.Contains(text, "read run 0") {
		t.Errorf("the page: %.300s", text)
	}
}
