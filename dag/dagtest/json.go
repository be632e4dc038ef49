package dagtest

import (
	"encoding/json"

	"github.com/caravan-dag/caravan/dag"
)

// JSON is a spec as a user submits it: its parameters, and of its tasks the command,
// the parents and the retries; those of the noop executor when noop is set.
func JSON(s *dag.Spec, noop bool) []byte {
	type edge struct {
		Task  string   `json:"task"`
		Match []string `json:"match,omitempty"`
	}
	type task struct {
		Job        map[string]any `json:"job"`
		Parents    []any          `json:"parents,omitempty"`
		MaxRetries uint32         `json:"maxRetries,omitempty"`
	}
	parameters, tasks := map[string]any{}, object{}
	for _, p := range s.Parameters {
		if p.List {
			parameters[p.Name] = p.Values
		} else {
			parameters[p.Name] = p.Values[0]
		}
	}
	for _, t := range s.Tasks {
		out := task{Job: map[string]any{"command": t.Job.Command}, MaxRetries: t.Retry.MaxRetries}
		if noop {
			out.Job["executor"] = "noop"
		}
		for _, e := range t.Parents {
			if len(e.Match) == 0 {
				out.Parents = append(out.Parents, e.Task)
			} else {
				out.Parents = append(out.Parents, edge{e.Task, e.Match})
			}
		}
		tasks = append(tasks, member{t.Name, out})
	}
	text, err := json.Marshal(map[string]any{"parameters": parameters, "tasks": tasks})
	if err != nil {
		panic(err)
	}
	return text
}

// object is a JSON object whose members keep their order.
type object []member

type member struct {
	name  string
	value any
}

func (o object) MarshalJSON() ([]byte, error) {
	text := []byte{'{'}
	for i, m := range o {
		if i > 0 {
			text = append(text, ',')
		}
		name, err := json.Marshal(m.name)
		if err != nil {
			return nil, err
		}
		value, err := json.Marshal(m.value)
		if err != nil {
			return nil, err
		}
		text = append(append(append(text, name...), ':'), value...)
	}
	return append(text, '}'), nil
}
