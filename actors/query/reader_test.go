package query_test

import (
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/actors/query"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/messages"
)

// outputNodes are the nodes of a cluster, with their output. A node whose store is nil does not answer.
type outputNodes struct {
	self   string
	stores map[string]*outputs.Store
}

func (n *outputNodes) Self() string    { return n.self }
func (n *outputNodes) Nodes() []string { return slices.Sorted(maps.Keys(n.stores)) }

func (n *outputNodes) OpenOutput(node string, id outputs.ID, out messages.Output) (outputs.Section, error) {
	if s := n.stores[node]; s != nil {
		return s.OpenSection(id, out)
	}
	return nil, &messages.Error{Code: messages.Unavailable, Text: "the node does not answer"}
}

// TestOutputIsReadWhereItIs proves that a node of a cluster reads output on the node of the record, which it
// names if that does not answer. A record from before the cluster names none of its nodes: then each may have
// the output.
func TestOutputIsReadWhereItIs(t *testing.T) {
	stores := map[string]*outputs.Store{"n1": nil, "n2": nil, "n3": nil}
	for node := range stores {
		s, err := outputs.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		stores[node] = s
	}
	const text = "output of the attempt"
	key := messages.AttemptKey{Run: 7, Task: 1, Attempt: 2}
	offsets, err := stores["n1"].Append(key, outputs.Part{Stream: messages.Stderr, Body: strings.NewReader(text), Length: int64(len(text))})
	if err != nil {
		t.Fatal(err)
	}
	record := func(node string) *messages.AttemptRecord {
		return &messages.AttemptRecord{Task: 1, Attempt: 2, Node: node, Stdout: messages.Output{Size: 2, Head: 2, Inline: []byte("ok")},
			Stderr: messages.Output{Size: int64(len(text)), Head: int64(len(text)), Offset: offsets[0]}}
	}
	stores["n3"].SetReplaced()
	for _, self := range []string{"n1", "n2", "n3"} {
		reader := &query.Reader{Outputs: stores[self], Cluster: &outputNodes{self, stores}}
		for _, node := range []string{"n1", "of-the-seed"} {
			if self == "n2" && node != "n1" {
				continue // began without the output: that would be damage
			}
			for stream, want := range []string{"ok", text} {
				log, err := reader.Output(7, record(node), messages.Stream(stream))
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(io.NewSectionReader(log, 0, 100))
				if err != nil || string(got) != want {
					t.Errorf("%s reads what %s has: %q, %v", self, node, got, err)
				}
				log.Close()
			}
		}
	}
	reader := &query.Reader{Outputs: stores["n2"], Cluster: &outputNodes{"n2", stores}}
	if err := stores["n2"].Damaged(); err != nil {
		t.Errorf("output of another node counts as damage: %v", err)
	}
	stores["n1"] = nil
	var known *messages.Error
	if _, err := reader.Output(7, record("n1"), messages.Stderr); !errors.As(err, &known) || known.Code != messages.Unavailable ||
		known.Text != "stderr of run 7, task 1, attempt 2 cannot be read: node n1: the node does not answer" {
		t.Errorf("the node of the output is down: %v", err)
	}
	if offsets, err = stores["n3"].Append(key, outputs.Part{Body: strings.NewReader("before"), Length: 6},
		outputs.Part{Stream: messages.Stderr, Body: strings.NewReader(text), Length: int64(len(text))}); err != nil {
		t.Fatal(err)
	}
	copied := record("n1")
	copied.Copy = &messages.OutputCopy{Node: "n3", Stderr: offsets[1]}
	for _, self := range []string{"n2", "n3"} {
		reader := &query.Reader{Outputs: stores[self], Cluster: &outputNodes{self, stores}}
		log, err := reader.Output(7, copied, messages.Stderr)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(io.NewSectionReader(log, 0, 100))
		if err != nil || string(got) != text {
			t.Errorf("%s reads the copy: %q, %v", self, got, err)
		}
		log.Close()
	}
	if _, err := reader.Output(7, record("n2"), messages.Stderr); !errors.As(err, &known) || known.Code != messages.Damaged || stores["n2"].Damaged() == nil {
		t.Errorf("a file of this node that is missing is damage: %v", err)
	}
}
