package history

import (
	"encoding/json"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// mutation turns a good history into a bad one.
type mutation struct {
	name string
	rule string // that must find it; others may, too
	// damage changes the history. It returns false if the history lacks a place for it.
	damage func(*rand.Rand, *History) bool
}

// someOf calls damage on elements in a random order, until it returns true.
func someOf[T any](rng *rand.Rand, all []T, damage func(*T) bool) bool {
	return slices.ContainsFunc(rng.Perm(len(all)), func(i int) bool { return damage(&all[i]) })
}

func submissionOf(h *History, run uint64) *Operation {
	for i := range h.Operations {
		if o := &h.Operations[i]; o.Kind == Submit && o.Outcome == Acknowledged && o.Run == run {
			return o
		}
	}
	return nil
}

func recordOf(h *History, run uint64) *Record {
	i := slices.IndexFunc(h.Records, func(r Record) bool { return r.Run == run })
	return &h.Records[i]
}

func isChanged(h *History, run uint64) bool {
	return slices.ContainsFunc(h.Operations, func(o Operation) bool { return o.Kind == Change && o.Run == run })
}

var mutations = []mutation{
	{"an acknowledged run is lost", "found", func(rng *rand.Rand, h *History) bool {
		return someOf(rng, h.Operations, func(o *Operation) bool {
			if o.Kind != Submit || o.Outcome != Acknowledged {
				return false
			}
			h.Records = slices.DeleteFunc(h.Records, func(r Record) bool { return r.Run == o.Run })
			return true
		})
	}},
	{"an acknowledged run is another one", "found", func(rng *rand.Rand, h *History) bool {
		return someOf(rng, h.Operations, func(o *Operation) bool {
			if o.Kind != Submit || o.Outcome != Acknowledged {
				return false
			}
			recordOf(h, o.Run).Tag = "another"
			return true
		})
	}},
	{"a run with a process is lost", "found", func(rng *rand.Rand, h *History) bool {
		return someOf(rng, h.Marks, func(m *Mark) bool {
			if m.Kind != MarkStarted || submissionOf(h, m.Run) != nil {
				return false
			}
			h.Records = slices.DeleteFunc(h.Records, func(r Record) bool { return r.Run == m.Run })
			return true
		})
	}},
	{"a run is unknown after it was acknowledged", "register", func(rng *rand.Rand, h *History) bool {
		return someOf(rng, h.Operations, func(o *Operation) bool {
			if o.Kind != Read || o.Outcome != Acknowledged {
				return false
			}
			s := submissionOf(h, o.Run)
			if s == nil || s.Return >= o.Call {
				return false
			}
			o.Outcome = NotFound
			return true
		})
	}},
	{"a read is stale", "register", staleRead},
	{"a read is stale", "forward", staleRead},
	{"a list is stale", "register", func(rng *rand.Rand, h *History) bool {
		return someOf(rng, h.Operations, func(o *Operation) bool {
			return o.Kind == List && o.Outcome == Acknowledged && someOf(rng, o.Listed, func(l *ListedRun) bool {
				if isChanged(h, l.Run) || !wasSeenFinal(h, l.Run, o.Call) {
					return false
				}
				l.State = stateRunning
				return true
			})
		})
	}},
	{"a run has two ends", "forward", func(rng *rand.Rand, h *History) bool {
		return someOf(rng, h.Operations, func(o *Operation) bool {
			if o.Kind != Read || o.State != stateCompleted || !wasSeenFinal(h, o.Run, o.Call) || isChanged(h, o.Run) {
				return false
			}
			o.State = stateErrored
			return true
		})
	}},
	{"a kill is ignored", "register", func(rng *rand.Rand, h *History) bool {
		return someOf(rng, h.Operations, func(o *Operation) bool {
			if o.Kind != Read || o.State != stateKilled || o.Outcome != Acknowledged || !wasSeenKilled(h, o) {
				return false
			}
			o.State = stateCompleted
			return true
		})
	}},
	{"a key gives two runs", "keys", func(rng *rand.Rand, h *History) bool {
		return someOf(rng, h.Operations, func(o *Operation) bool {
			return o.Key != "" && o.Outcome == Acknowledged && someOf(rng, h.Operations, func(p *Operation) bool {
				if p == o || p.Key != o.Key || p.Outcome != Acknowledged {
					return false
				}
				p.Run += 1000
				return true
			})
		})
	}},
	{"a key is used for two documents", "keys", func(rng *rand.Rand, h *History) bool {
		return someOf(rng, h.Operations, func(o *Operation) bool {
			if o.Outcome != KeyReused {
				return false
			}
			o.Outcome, o.Run = Acknowledged, 1000
			return slices.ContainsFunc(h.Operations, func(p Operation) bool { return p.Key == o.Key && p.Tag != o.Tag && p.Outcome == Acknowledged })
		})
	}},
	{"a submission makes two runs", "origin", func(rng *rand.Rand, h *History) bool {
		return someOf(rng, h.Records, func(r *Record) bool {
			second := *r
			second.Run = 1000
			h.Records = append(h.Records, second)
			return true
		})
	}},
	{"two submissions make one run", "origin", func(rng *rand.Rand, h *History) bool {
		return someOf(rng, h.Operations, func(o *Operation) bool {
			return o.Kind == Submit && o.Outcome == Acknowledged && someOf(rng, h.Operations, func(p *Operation) bool {
				if p.Kind != Submit || p.Outcome != Acknowledged || p.Tag == o.Tag {
					return false
				}
				p.Run = o.Run
				return true
			})
		})
	}},
	{"a run was not submitted", "origin", func(rng *rand.Rand, h *History) bool {
		h.Records = append(h.Records, Record{Run: 1000, Tag: "from nowhere", StateChanges: []StateChange{{1, stateQueued}}})
		return true
	}},
	{"a rejected submission takes effect", "origin", func(rng *rand.Rand, h *History) bool {
		return someOf(rng, h.Operations, func(o *Operation) bool {
			if o.Kind != Submit || o.Outcome != Acknowledged || o.Key != "" {
				return false
			}
			o.Outcome, o.Run = Rejected, 0
			return true
		})
	}},
	{"a list leaves out a run", "listed", func(rng *rand.Rand, h *History) bool {
		return someOf(rng, h.Operations, func(o *Operation) bool {
			return o.Kind == List && someOf(rng, o.Listed, func(l *ListedRun) bool {
				s := submissionOf(h, l.Run)
				if s == nil || s.Return >= o.Call {
					return false
				}
				*l = o.Listed[len(o.Listed)-1]
				o.Listed = o.Listed[:len(o.Listed)-1]
				return true
			})
		})
	}},
	{"a list has a run twice", "listed", func(rng *rand.Rand, h *History) bool {
		return someOf(rng, h.Operations, func(o *Operation) bool {
			if len(o.Listed) == 0 {
				return false
			}
			o.Listed = append(o.Listed, o.Listed[0])
			return true
		})
	}},
	{"a run moves illegally", "records", func(rng *rand.Rand, h *History) bool {
		return someOf(rng, h.Records, func(r *Record) bool {
			if r.State() != stateCompleted {
				return false
			}
			r.StateChanges = append(r.StateChanges, StateChange{r.StateChanges[len(r.StateChanges)-1].Nanos + 1, stateRunning})
			return true
		})
	}},
	{"times of a run do not ascend", "records", func(rng *rand.Rand, h *History) bool {
		return someOf(rng, h.Records, func(r *Record) bool {
			if len(r.StateChanges) < 2 {
				return false
			}
			r.StateChanges[1].Nanos = r.StateChanges[0].Nanos
			return true
		})
	}},
	{"a state that was seen is taken back", "records", func(rng *rand.Rand, h *History) bool {
		return someOf(rng, h.Operations, func(o *Operation) bool {
			if o.Kind != Read || o.State != stateErrored || o.Outcome != Acknowledged {
				return false
			}
			r := recordOf(h, o.Run)
			r.StateChanges = slices.DeleteFunc(r.StateChanges, func(s StateChange) bool { return s.State == stateErrored })
			return true
		})
	}},
	{"a COMPLETED run has an open task", "records", func(rng *rand.Rand, h *History) bool {
		return someOf(rng, h.Records, func(r *Record) bool {
			r.TaskStates["b"] = stateQueued
			return r.State() == stateCompleted
		})
	}},
	{"an attempt is recorded twice", "records", func(rng *rand.Rand, h *History) bool {
		return someOf(rng, h.Records, func(r *Record) bool {
			r.Attempts["a"] = append(r.Attempts["a"], r.Attempts["a"]...)
			return len(r.Attempts["a"]) > 0
		})
	}},
	{"a task succeeds twice", "completed", func(rng *rand.Rand, h *History) bool {
		return someOf(rng, h.Records, func(r *Record) bool {
			if r.TaskStates["a"] != stateCompleted || isChanged(h, r.Run) {
				return false
			}
			r.Attempts["a"] = append(r.Attempts["a"], Attempt{len(r.Attempts["a"]) + 1, 0})
			return true
		})
	}},
	{"a COMPLETED task runs again", "completed", func(rng *rand.Rand, h *History) bool {
		return someOf(rng, h.Records, func(r *Record) bool {
			if r.TaskStates["a"] != stateCompleted || isChanged(h, r.Run) {
				return false
			}
			h.Marks = append(h.Marks, Mark{r.Run, "a", len(r.Attempts["a"]) + 1, MarkStarted, 0, time.Hour})
			return true
		})
	}},
	{"a position goes back", "events", func(rng *rand.Rand, h *History) bool {
		return someOf(rng, h.Streams, func(s *Stream) bool {
			s.Events = append([]Event{{ID: 1000}}, s.Events...)
			return true
		})
	}},
	{"an end is left out", "events", func(rng *rand.Rand, h *History) bool {
		return someOf(rng, h.Streams, func(s *Stream) bool {
			if recordOf(h, s.Run).TaskStates["b"] != stateCompleted || recordOf(h, s.Run).State() != stateCompleted || isChanged(h, s.Run) {
				return false
			}
			s.Events = slices.DeleteFunc(s.Events, func(e Event) bool {
				return len(e.Tasks) > 0 && e.Tasks[0].Task == "b" && e.Tasks[0].State == stateCompleted
			})
			return true
		})
	}},
	{"changes are missed", "events", func(rng *rand.Rand, h *History) bool {
		return someOf(rng, h.Streams, func(s *Stream) bool {
			s.Events = append(s.Events, Event{ID: s.Events[len(s.Events)-1].ID, Missed: 3})
			return true
		})
	}},
	{"a task changes after COMPLETED", "events", func(rng *rand.Rand, h *History) bool {
		return someOf(rng, h.Streams, func(s *Stream) bool {
			last := s.Events[len(s.Events)-1].ID
			s.Events = append(s.Events, Event{ID: last, Tasks: []TaskChange{{"a", "RETRY", 99}}})
			return recordOf(h, s.Run).TaskStates["a"] == stateCompleted
		})
	}},
	{"a task completes twice", "events", func(rng *rand.Rand, h *History) bool {
		return someOf(rng, h.Streams, func(s *Stream) bool {
			if slices.ContainsFunc(s.Events, func(e Event) bool { return e.Resumed }) {
				return false
			}
			i := slices.IndexFunc(s.Events, func(e Event) bool { return len(e.Tasks) > 0 && e.Tasks[0].State == stateCompleted })
			if i < 0 {
				return false
			}
			s.Events = slices.Insert(s.Events, i, s.Events[i])
			return true
		})
	}},
	{"an attempt number goes back", "events", func(rng *rand.Rand, h *History) bool {
		return someOf(rng, h.Streams, func(s *Stream) bool {
			return someOf(rng, s.Events, func(e *Event) bool {
				if len(e.Tasks) == 0 || e.Tasks[0].Attempt < 2 || e.Tasks[0].State != stateRunning {
					return false
				}
				e.Tasks[0].Attempt = 0
				return true
			})
		})
	}},
	{"a stream breaks off", "events", func(rng *rand.Rand, h *History) bool {
		return someOf(rng, h.Streams, func(s *Stream) bool {
			last := s.Events[len(s.Events)-1]
			s.Events = s.Events[:len(s.Events)-1]
			return isFinal(last.State)
		})
	}},
	{"an attempt starts twice", "attempts", func(rng *rand.Rand, h *History) bool {
		return someOf(rng, h.Marks, func(m *Mark) bool {
			again := *m
			h.Marks = append(h.Marks, again)
			return again.Kind == MarkStarted
		})
	}},
	{"an attempt goes on after its end", "attempts", func(rng *rand.Rand, h *History) bool {
		return someOf(rng, h.Marks, func(m *Mark) bool {
			if m.Kind != MarkEnded {
				return false
			}
			h.Marks = append(h.Marks, Mark{m.Run, m.Task, m.Attempt, MarkAlive, 0, m.Time})
			return true
		})
	}},
	{"attempts overlap", "attempts", func(rng *rand.Rand, h *History) bool {
		for i := range h.Marks {
			end := h.Marks[i]
			next := slices.IndexFunc(h.Marks, func(m Mark) bool {
				return m.taskKey() == end.taskKey() && m.Kind == MarkStarted && m.Attempt == end.Attempt+1
			})
			if end.Kind == MarkEnded && next >= 0 { // the end moves behind the next start
				h.Marks = slices.Insert(h.Marks, next+1, end)
				h.Marks = slices.Delete(h.Marks, i, i+1)
				return true
			}
		}
		return false
	}},
	{"a child starts before its parent has ended", "parents", func(rng *rand.Rand, h *History) bool {
		return someOf(rng, h.Marks, func(m *Mark) bool {
			if m.Kind != MarkStarted || m.Task != "b" {
				return false
			}
			start := *m
			i := slices.Index(h.Marks, start)
			h.Marks = slices.Delete(h.Marks, i, i+1)
			end := slices.IndexFunc(h.Marks, func(m Mark) bool { return m.Run == start.Run && m.Task == "a" && m.Kind == MarkEnded && m.RC == 0 })
			h.Marks = slices.Insert(h.Marks, end, start)
			return true
		})
	}},
	{"an edge names an unknown task", "parents", func(rng *rand.Rand, h *History) bool {
		return someOf(rng, h.Records, func(r *Record) bool {
			h.Parents[r.Tag]["b"] = []string{"a_0"}
			return true
		})
	}},
	{"replicas differ", "replicas", func(rng *rand.Rand, h *History) bool {
		return someOf(rng, h.Digests, func(d *Digest) bool { d.Sum = "other"; return true })
	}},
	{"digests are of different positions", "replicas", func(rng *rand.Rand, h *History) bool {
		return someOf(rng, h.Digests, func(d *Digest) bool { d.Position++; return true })
	}},
}

// wasSeenFinal reports whether a read had shown the end of a run before the given time.
func wasSeenFinal(h *History, run uint64, before time.Duration) bool {
	return slices.ContainsFunc(h.Operations, func(o Operation) bool {
		return o.Kind == Read && o.Outcome == Acknowledged && o.Run == run && isFinal(o.State) && o.Return < before
	})
}

// wasSeenKilled reports whether another read had shown KILLED before this one, and the run was not
// restarted.
func wasSeenKilled(h *History, read *Operation) bool {
	seen, restarted := false, false
	for _, o := range h.Operations {
		seen = seen || o.Kind == Read && o.Outcome == Acknowledged && o.Run == read.Run && o.State == stateKilled && o.Return < read.Call
		restarted = restarted || o.Kind == Change && o.Run == read.Run && o.State == stateQueued
	}
	return seen && !restarted
}

func staleRead(rng *rand.Rand, h *History) bool {
	return someOf(rng, h.Operations, func(o *Operation) bool {
		if o.Kind != Read || o.Outcome != Acknowledged || !wasSeenFinal(h, o.Run, o.Call) || isChanged(h, o.Run) {
			return false
		}
		o.State = stateQueued
		return true
	})
}

// TestMutationsAreFound: each kind of damage to a good history is found by its rule.
func TestMutationsAreFound(t *testing.T) {
	each := 5
	if testing.Short() {
		each = 1
	}
	for i, m := range mutations {
		t.Run(m.name, func(t *testing.T) {
			done := 0
			for seed := uint64(0); done < each; seed++ {
				if seed == 200 {
					t.Fatalf("only %d of %d histories have a place for it", done, seed)
				}
				h := clone(t, simulate(seed))
				if !m.damage(rand.New(rand.NewPCG(seed, uint64(i))), h) {
					continue
				}
				done++
				found := Check(h, Options{})
				if !slices.ContainsFunc(found, func(v Violation) bool { return v.Rule == m.rule }) {
					t.Errorf("seed %d: rule %s does not find it: %v", seed, m.rule, found)
				}
			}
		})
	}
}

// TestEveryRuleHasAMutation keeps the list of mutations complete.
func TestEveryRuleHasAMutation(t *testing.T) {
	for _, rule := range []string{"register", "keys", "found", "origin", "forward", "listed", "records", "completed", "events", "attempts", "parents", "replicas"} {
		if !slices.ContainsFunc(mutations, func(m mutation) bool { return m.rule == rule }) {
			t.Errorf("no mutation proves that the rule %s finds anything", rule)
		}
	}
}

// clone copies a history through its stored form.
func clone(t *testing.T, h *History) *History {
	t.Helper()
	text, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	second := new(History)
	if err := json.Unmarshal(text, second); err != nil {
		t.Fatal(err)
	}
	return second
}
