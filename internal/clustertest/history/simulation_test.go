package history

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// simulation is a service without failures, and clients whose answers are delayed or lost, in
// virtual time. Every history that it gives is good.
type simulation struct {
	rng      *rand.Rand
	now      time.Duration
	due      []scheduled // ascending by time
	recorder *Recorder
	runs     []*simulatedRun
	keys     map[string]*simulatedRun
	marks    []Mark
}

type scheduled struct {
	at time.Duration
	do func()
}

// simulatedRun is a chain of three tasks.
type simulatedRun struct {
	id        uint64
	tag       string
	state     string
	killing   bool
	leftAlone bool // no client changes it
	changes   []StateChange
	tasks     map[string]string
	attempts  map[string][]Attempt
	current   int // index of the first task that is not COMPLETED
	live      bool
	ticking   bool
	events    []Event
	position  uint64
}

var simulatedTasks = []string{"a", "b", "c"}

// simulate runs clients against a service and returns what they saw.
func simulate(seed uint64) *History {
	s := &simulation{rng: rand.New(rand.NewPCG(seed, 1)), keys: map[string]*simulatedRun{}}
	s.recorder = NewRecorder(func() time.Duration { return s.now })
	for client := range 4 {
		s.after(0, func() { s.nextCall(client, 40) })
	}
	for len(s.due) > 0 {
		next := s.due[0]
		s.due = s.due[1:]
		s.now = next.at
		next.do()
	}
	h := s.recorder.History()
	h.Marks, h.Parents = s.marks, map[string]map[string][]string{}
	for _, r := range s.runs {
		h.Records = append(h.Records, Record{r.id, r.tag, r.changes, r.tasks, r.attempts})
		h.Streams = append(h.Streams, Stream{9, r.id, true, r.events})
		if end := slices.IndexFunc(r.events, func(e Event) bool { return isFinal(e.State) }); end >= 0 {
			h.Streams = append(h.Streams, Stream{10, r.id, true, slices.Clone(r.events[:end+1])})
		}
		h.Parents[r.tag] = map[string][]string{"b": {"a"}, "c": {"a", "b"}}
	}
	for partition := range 2 {
		for _, node := range []string{"n1", "n2", "n3"} {
			h.Digests = append(h.Digests, Digest{node, partition, 77, fmt.Sprint("sum", partition)})
		}
	}
	return h
}

// after schedules do within d and twice d.
func (s *simulation) after(d time.Duration, do func()) {
	at := s.now + d + time.Duration(s.rng.Int64N(int64(d)+1)) + 1
	i, _ := slices.BinarySearchFunc(s.due, at, func(e scheduled, at time.Duration) int { return int(e.at - at) })
	s.due = slices.Insert(s.due, i, scheduled{at, do})
}

const latency = 5 * time.Millisecond

// nextCall makes a client call, and the next one after its answer, left times in all.
func (s *simulation) nextCall(client, left int) {
	if left == 0 {
		return
	}
	o, effect := s.choose(client, left)
	pending := s.recorder.Begin(o)
	again := func() { s.nextCall(client, left-1) }
	if s.rng.IntN(8) == 0 { // the answer is lost
		if s.rng.IntN(2) == 0 {
			s.after(time.Duration(s.rng.IntN(40))*latency, func() { effect(&Operation{}) })
		}
		s.after(4*latency, again)
		return
	}
	if s.rng.IntN(20) == 0 {
		s.after(latency, func() { pending.End(func(o *Operation) { o.Outcome, o.Error = Rejected, "no leader" }); again() })
		return
	}
	s.after(latency, func() {
		var answer Operation
		effect(&answer)
		s.after(latency, func() {
			pending.End(func(o *Operation) {
				o.Outcome, o.Listed = answer.Outcome, answer.Listed
				switch {
				case o.Kind == Submit:
					o.Run = answer.Run
				case o.Kind == Read && answer.Outcome == Acknowledged:
					o.State = answer.State
				}
			})
			again()
		})
	})
}

// choose returns an operation, and what it does to the service: effect fills its answer.
func (s *simulation) choose(client, left int) (o Operation, effect func(*Operation)) {
	o = Operation{Client: client, Node: fmt.Sprint("n", 1+s.rng.IntN(3))}
	choice := s.rng.IntN(10)
	if len(s.runs) == 0 {
		choice = 0
	}
	switch {
	case choice < 2:
		o.Kind, o.Tag = Submit, fmt.Sprintf("t%d-%d", client, left)
		return o, func(answer *Operation) { s.submit(&o, answer) }
	case choice < 4: // with a key of a few, for one of two documents
		number := s.rng.IntN(8)
		o.Kind, o.Key, o.Tag = Submit, fmt.Sprint("key", number), fmt.Sprintf("keyed%d-%d", number, s.rng.IntN(5)/4)
		return o, func(answer *Operation) { s.submit(&o, answer) }
	case choice < 5:
		o.Kind = List
		return o, func(answer *Operation) {
			for _, r := range s.runs {
				answer.Listed = append(answer.Listed, ListedRun{r.id, r.tag, r.state})
			}
			answer.Outcome = Acknowledged
		}
	}
	o.Run = uint64(s.rng.IntN(len(s.runs) + 1))
	o.Kind = Read
	if choice > 7 {
		o.Kind, o.State = Change, []string{stateKilled, stateKilled, statePaused, stateRunning, stateQueued}[s.rng.IntN(5)]
	}
	if o.Kind == Change && o.Run < uint64(len(s.runs)) && s.runs[o.Run].leftAlone {
		o.Kind = Read
	}
	return o, func(answer *Operation) {
		if o.Run >= uint64(len(s.runs)) {
			answer.Outcome = NotFound
			return
		}
		r := s.runs[o.Run]
		answer.Outcome, answer.State = Acknowledged, r.state
		if o.Kind == Change && (r.leftAlone || !s.change(r, o.State)) {
			answer.Outcome = Conflict
			if r.leftAlone { // it did not exist when the client decided; a paused run refuses nothing
				answer.Outcome = Rejected
			}
		}
	}
}

func (s *simulation) submit(o, answer *Operation) {
	if r := s.keys[o.Key]; o.Key != "" && r != nil {
		answer.Outcome, answer.Run = Acknowledged, r.id
		if r.tag != o.Tag {
			answer.Outcome, answer.Run = KeyReused, 0
		}
		return
	}
	r := &simulatedRun{id: uint64(len(s.runs)), tag: o.Tag, leftAlone: s.rng.IntN(2) == 0,
		tasks: map[string]string{}, attempts: map[string][]Attempt{}}
	for _, task := range simulatedTasks {
		r.tasks[task] = stateQueued
	}
	s.runs = append(s.runs, r)
	if o.Key != "" {
		s.keys[o.Key] = r
	}
	s.setState(r, stateQueued)
	answer.Outcome, answer.Run = Acknowledged, r.id
	s.tick(r)
}

func (s *simulation) setState(r *simulatedRun, state string) {
	r.state = state
	r.changes = append(r.changes, StateChange{int64(s.now) + int64(len(r.changes)), state})
	r.position++
	r.events = append(r.events, Event{ID: r.position, State: state})
	if isFinal(state) || state == stateQueued {
		r.killing = false
	}
}

func (s *simulation) setTask(r *simulatedRun, task, state string) {
	r.tasks[task] = state
	change := TaskChange{task, state, len(r.attempts[task])}
	r.events = append(r.events, Event{ID: r.position, Tasks: []TaskChange{change}})
	if s.rng.IntN(10) == 0 { // a connection breaks; the next one repeats the change
		r.events = append(r.events, Event{Resumed: true}, Event{ID: r.position, Tasks: []TaskChange{change}})
	}
}

// change carries out what a user asks for, or reports that the state does not allow it.
func (s *simulation) change(r *simulatedRun, to string) bool {
	switch {
	case to == stateKilled:
		r.killing = !isFinal(r.state)
	case r.killing:
		return false
	case to == statePaused && (r.state == stateQueued || r.state == stateRunning):
		s.setState(r, statePaused)
	case to == stateRunning && r.state == statePaused:
		s.setState(r, stateRunning)
	case to == stateQueued && (r.state == statePaused || r.state == stateErrored || r.state == stateKilled):
		s.setState(r, stateQueued)
		if task := simulatedTasks[r.current]; r.tasks[task] != stateRunning {
			s.setTask(r, task, stateQueued)
		}
		if r.live {
			s.setState(r, stateRunning)
		}
	default:
		return false
	}
	s.tick(r)
	return true
}

// tick lets the run move by itself, until it is final or waits for a user.
func (s *simulation) tick(r *simulatedRun) {
	if !r.ticking {
		r.ticking = true
		s.after(6*latency, func() {
			r.ticking = false
			if s.move(r) {
				s.tick(r)
			}
		})
	}
}

// move does one step of the run, and reports whether there may be another one.
func (s *simulation) move(r *simulatedRun) bool {
	if isFinal(r.state) {
		return false
	}
	task := simulatedTasks[r.current]
	switch {
	case r.live:
		s.endAttempt(r, task)
	case r.killing:
		s.setState(r, stateKilled)
	case r.state == statePaused:
		return false
	default:
		if r.state == stateQueued {
			s.setState(r, stateRunning)
		}
		if s.rng.IntN(6) == 0 { // a slot is granted and taken back
			next := len(r.attempts[task]) + 1
			r.events = append(r.events, Event{ID: r.position, Tasks: []TaskChange{{task, stateQueued, next}, {task, stateQueued, next - 1}}})
		}
		r.live = true
		r.attempts[task] = append(r.attempts[task], Attempt{Number: len(r.attempts[task]) + 1, RC: -1})
		s.mark(r, task, MarkStarted, 0)
		s.setTask(r, task, stateRunning)
	}
	return true
}

func (s *simulation) endAttempt(r *simulatedRun, task string) {
	r.live = false
	attempts := r.attempts[task]
	rc := 0
	if s.rng.IntN(4) == 0 {
		rc = 1
	}
	attempts[len(attempts)-1].RC = rc
	s.mark(r, task, MarkAlive, 0)
	s.mark(r, task, MarkEnded, rc)
	switch {
	case r.killing:
		s.setTask(r, task, stateKilled)
		s.setState(r, stateKilled)
	case rc == 0:
		s.setTask(r, task, stateCompleted)
		if r.current++; r.current == len(simulatedTasks) {
			s.setState(r, stateCompleted)
		}
	case len(attempts)%3 == 0:
		s.setTask(r, task, stateErrored)
		s.setState(r, stateErrored)
	default:
		s.setTask(r, task, "RETRY")
		s.setTask(r, task, stateQueued)
	}
}

func (s *simulation) mark(r *simulatedRun, task string, kind MarkKind, rc int) {
	s.marks = append(s.marks, Mark{r.id, task, len(r.attempts[task]), kind, rc, s.now.Truncate(clockResolution)})
}

// TestGoodHistoriesPass: a service without failures breaks no rule, whatever its clients miss.
func TestGoodHistoriesPass(t *testing.T) {
	var outcomes = map[Outcome]int{}
	seeds := uint64(100)
	if testing.Short() {
		seeds = 20
	}
	for seed := range seeds {
		h := simulate(seed)
		for i := range h.Operations {
			outcomes[h.Operations[i].Outcome]++
		}
		for _, v := range Check(h, Options{}) {
			t.Fatalf("seed %d: %v", seed, v)
		}
	}
	t.Log(outcomes)
	for _, o := range []Outcome{Acknowledged, NotFound, Conflict, KeyReused, Rejected, Unknown} {
		if outcomes[o] == 0 {
			t.Errorf("no operation has the outcome %s", o)
		}
	}
}
