package query_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/actors/query"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/messages"
)

// TestOutputOfAnotherNodeIsNotDamage proves that a node of a cluster does not take the output of another
// one for a lost file, and still shows what the record itself holds.
func TestOutputOfAnotherNodeIsNotDamage(t *testing.T) {
	files, err := outputs.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	long := &messages.AttemptRecord{Task: 1, Attempt: 2, Node: "n1", Stdout: messages.Output{Size: 9000, Head: 9000}}
	short := &messages.AttemptRecord{Task: 1, Attempt: 2, Node: "n1", Stdout: messages.Output{Size: 2, Head: 2, Inline: []byte("ok")}}
	there := &query.Reader{Outputs: files, Node: "n2"}
	for _, rec := range []*messages.AttemptRecord{short, {Node: "n1"}} {
		log, err := there.Output(7, rec, messages.Stdout)
		if err != nil {
			t.Fatal(err)
		}
		log.Close()
	}
	var known *messages.Error
	if _, err := there.Output(7, long, messages.Stdout); !errors.As(err, &known) || known.Code != messages.NotFound ||
		!strings.Contains(known.Text, "run 7: the output of task 1, attempt 2 is on node n1") {
		t.Errorf("got %v", err)
	}
	if err := files.Damaged(); err != nil {
		t.Errorf("it counts as damage: %v", err)
	}
	here := &query.Reader{Outputs: files, Node: "n1"}
	if _, err := here.Output(7, long, messages.Stdout); !errors.As(err, &known) || known.Code != messages.Damaged || files.Damaged() == nil {
		t.Errorf("a file of this node that is missing is damage: got %v", err)
	}
}
