package actors

import (
	"errors"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// TestPausedServer: a paused server starts nothing, of any executor, and takes what comes;
// what ran goes on.
func TestPausedServer(t *testing.T) {
	var saved []string
	var fails error
	r := newRig(t, func(c *Config) {
		c.Paused = "a copy"
		c.SavePaused = func(reason string) error { saved = append(saved, reason); return fails }
	})
	noop := r.submit(`{"tasks":{"a":{"job":{"executor":"noop"}}}}`)
	run := r.submit(`{"tasks":{"a":{"job":{"command":["a"]}},"b":{"job":{"command":["b"]},"parents":["a"]}}}`)
	killed := r.submit(`{"tasks":{"a":{"job":{"command":["a"]}}}}`)
	if err := r.node.Kill(t.Context(), killed); err != nil {
		t.Fatal(err)
	}
	r.awaitState(killed, dag.RunKilled)
	if n := len(r.fake.Orders()); n != 0 || r.node.Paused(t.Context()) != "a copy" {
		t.Fatalf("%d orders, paused %q", n, r.node.Paused(t.Context()))
	}
	if err := r.node.SetPaused(t.Context(), ""); err != nil || r.node.Paused(t.Context()) != "" {
		t.Fatal(t.Context(), t.Context(), t.Context(), t.Context(), err, r.node.Paused(t.Context()))
	}
	r.awaitState(noop, dag.RunCompleted)
	first := r.order(1)
	r.fake.Begin(first)
	if err := r.node.SetPaused(t.Context(), "maintenance"); err != nil || r.node.Paused(t.Context()) != "maintenance" {
		t.Fatal(t.Context(), t.Context(), t.Context(), t.Context(), err, r.node.Paused(t.Context()))
	}
	r.fake.End(first, messages.AttemptSucceeded, 0)
	r.await(run, "a has ended", func(s *messages.Summary) bool { return s.Counts[dag.TaskCompleted] == 1 })
	r.submit(`{"tasks":{"a":{"job":{"command":["c"]}}}}`)
	if err := r.node.SetPaused(t.Context(), "maintenance"); err != nil { // the dispatcher has seen what came before
		t.Fatal(err)
	}
	if n := len(r.fake.Orders()); n != 1 {
		t.Errorf("%d orders while paused", n)
	}
	fails = errors.New("no space left")
	if err := r.node.SetPaused(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "no space left") || r.node.Paused(t.Context()) != "maintenance" {
		t.Errorf("a change that cannot be stored: %v, paused %q", err, r.node.Paused(t.Context()))
	}
	fails = nil
	r.fake.SetScript(succeed)
	if err := r.node.SetPaused(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	r.awaitState(run, dag.RunCompleted)
	if len(saved) != 5 || saved[0] != "" || saved[1] != "maintenance" {
		t.Errorf("stored %q", saved)
	}
}
