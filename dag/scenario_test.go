package dag

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

var rewrite = flag.Bool("rewrite", false, "write what comes out into the scenario files")

// TestScenarios plays testdata/*.txt: commands, and after ---- what came out.
//
//	plan           a new run; lines are `param NAME=v,w`, `lost N` (the limit), or tasks:
//	               NAME [cores=N] [parents=a,b:P+Q] [children=…] [retries=N] [interval=D]
//	               [backoff=F] [cap=D] [uses=P,Q] [generator]; a:P is one to one over P
//	grant C N      N slots of class C
//	start, ok, fail, lost, revoke, due TASK [ATTEMPT]
//	generate TASK  ok, with the tasks of the lines as its set
//	kill [TASK], pause, resume, restart
//	tick D         time goes on
//	allowed        what the user may ask for
//	recover        go on with a run that was made of the records alone
//
// Effects are printed in their order, then the run's state and the tasks'. Time
// is from the beginning, to the millisecond: two changes of the run are never at the same. All invariants are checked after each command,
// and that a recovery would give the same.
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no scenarios", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := playScenario(t, file, string(data))
			if *rewrite {
				if err := os.WriteFile(file, []byte(got), 0o666); err != nil {
					t.Fatal(err)
				}
			} else if got != string(data) {
				t.Errorf("%s differs; -rewrite writes this:\n%s", file, diffLines(string(data), got))
			}
		})
	}
}

// diffLines shows the first line that differs, with what is around it.
func diffLines(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range g {
		if i >= len(w) || w[i] != g[i] {
			from := max(0, i-8)
			return fmt.Sprintf("line %d\nwant:\n%s\ngot:\n%s", i+1,
				strings.Join(w[min(from, len(w)):min(i+4, len(w))], "\n"), strings.Join(g[from:min(i+4, len(g))], "\n"))
		}
	}
	return "there is more in the file"
}

// playScenario returns the file with what came out.
func playScenario(t *testing.T, file, text string) string {
	var out strings.Builder
	s := &scenario{}
	for i, block := range strings.Split(strings.TrimRight(text, "\n"), "\n\n") {
		if i > 0 {
			out.WriteString("\n")
		}
		input, _, isCommand := strings.Cut(block, "\n----")
		out.WriteString(input + "\n")
		if !isCommand {
			continue // a comment
		}
		var lines []string
		for _, line := range strings.Split(input, "\n") {
			if !strings.HasPrefix(line, "#") {
				lines = append(lines, line)
			}
		}
		result, err := s.command(strings.Fields(lines[0]), lines[1:])
		if err != nil {
			t.Fatalf("%s: %s: %v", file, lines[0], err)
		}
		out.WriteString("----\n" + result)
		if s.run != nil {
			s.run.CheckInvariants()
			s.records = append(s.records, s.run.TakeRecords(nil))
			if len(s.records[len(s.records)-1]) == 0 {
				s.records = s.records[:len(s.records)-1]
			}
			again, err := Recover(s.run.plan, s.run.config, nil, nil, s.records)
			if err != nil {
				t.Fatalf("%s: %s: %v", file, lines[0], err)
			}
			mustMatch(t, again, s.run)
		}
	}
	return out.String()
}

// scenario is one run that commands are applied to.
type scenario struct {
	run     *Run
	now     int64
	records [][]byte
}

func (s *scenario) command(words, lines []string) (string, error) {
	switch words[0] {
	case "plan":
		spec, config, err := scenarioSpec(lines)
		if err != nil {
			return "", err
		}
		plan, problems := NewPlan(spec, Limits{})
		if len(problems) > 0 {
			return "", problems
		}
		*s = scenario{run: NewRun(plan, config, 0)}
		return s.show(s.run.Init()), nil
	case "tick":
		d, err := time.ParseDuration(words[1])
		s.now += int64(d)
		return "", err
	case "allowed":
		var b strings.Builder
		for _, to := range []RunState{RunQueued, RunRunning, RunPaused, RunKilled, RunCompleted} {
			if err := s.run.Allowed(to); err != nil {
				fmt.Fprintf(&b, "%s: no, %v\n", to, err)
			} else {
				fmt.Fprintf(&b, "%s: yes\n", to)
			}
		}
		return b.String(), nil
	case "recover":
		r, err := Recover(s.run.plan, s.run.config, nil, nil, s.records)
		if err != nil {
			return "", err
		}
		s.run = r
		return s.show(r.Init()), nil
	}
	e, err := s.event(words, lines)
	if err != nil {
		return "", err
	}
	return s.show(s.run.Apply(e)), nil
}

func (s *scenario) event(words, lines []string) (Event, error) {
	switch words[0] {
	case "pause":
		return Pause{s.now}, nil
	case "resume":
		return Resume{s.now}, nil
	case "restart":
		return Restart{s.now}, nil
	case "grant":
		class, _ := strconv.Atoi(words[1])
		n, err := strconv.Atoi(words[2])
		return Grant{class, n, s.now}, err
	}
	if words[0] == "kill" && len(words) == 1 {
		return Kill{s.now}, nil
	}
	task, ok := s.run.plan.FindTask(words[1])
	if !ok {
		return nil, fmt.Errorf("no task %q", words[1])
	}
	attempt := s.run.Attempt(task)
	if len(words) > 2 {
		n, err := strconv.Atoi(words[2])
		if err != nil {
			return nil, err
		}
		attempt = uint32(n)
	}
	switch words[0] {
	case "start":
		return Started{Task: task, Attempt: attempt, At: s.now}, nil
	case "ok", "fail":
		return Finished{task, attempt, words[0] == "ok", s.now, 0, 0}, nil
	case "lost":
		return Lost{task, attempt, s.now, 0, 0}, nil
	case "revoke":
		return Revoked{task, attempt, s.now}, nil
	case "due":
		return RetryDue{task, attempt, s.now}, nil
	case "kill":
		return KillTask{task, s.now}, nil
	case "generate":
		spec, _, err := scenarioSpec(lines)
		if err != nil {
			return nil, err
		}
		next, problems := s.run.plan.Extend(task, spec.Tasks, s.run.Started)
		if len(problems) > 0 {
			return nil, problems
		}
		return Generated{task, attempt, next, s.now, 0, 0}, nil
	}
	return nil, fmt.Errorf("no command %q", words[0])
}

// show prints effects and states.
func (s *scenario) show(effects []Effect) string {
	var b strings.Builder
	name, at := s.run.plan.TaskName, func(ns int64) string { return time.Duration(ns).Round(time.Millisecond).String() }
	for _, e := range effects {
		switch e := e.(type) {
		case Demand:
			fmt.Fprintf(&b, "want %d of class %d\n", e.Want, e.Class)
		case Release:
			fmt.Fprintf(&b, "release %d of class %d\n", e.N, e.Class)
		case Start:
			fmt.Fprintf(&b, "start %s attempt %d\n", name(e.Task), e.Attempt)
		case Signal:
			fmt.Fprintf(&b, "signal %s attempt %d\n", name(e.Task), e.Attempt)
		case Cancel:
			fmt.Fprintf(&b, "cancel %s attempt %d\n", name(e.Task), e.Attempt)
		case RetryAt:
			fmt.Fprintf(&b, "retry %s at %s\n", name(e.Task), at(e.Due))
		case TaskEnded:
			fmt.Fprintf(&b, "ended %s %s\n", name(e.Task), e.State)
		case RunChanged:
			fmt.Fprintf(&b, "run %s at %s\n", e.State, at(e.At))
		}
	}
	fmt.Fprintf(&b, "= %s", s.run.State())
	if s.run.KillRequested() {
		b.WriteString(" (being killed)")
	}
	b.WriteString(":")
	for task := uint32(0); task < s.run.plan.Tasks; {
		first, word := task, s.word(task)
		t := s.run.plan.TemplateOf(task)
		for task++; task < t.Base+t.Count && s.word(task) == word; task++ {
		}
		fmt.Fprintf(&b, " %s", name(first))
		if last := task - 1; last > first {
			fmt.Fprintf(&b, "…%d", last-t.Base)
		}
		fmt.Fprintf(&b, " %s", word)
		if task < s.run.plan.Tasks {
			b.WriteString(",")
		}
	}
	return b.String() + "\n"
}

// word is a task's state, with GRANTED told from QUEUED.
func (s *scenario) word(task uint32) string {
	word := taskNames[s.run.TaskState(task)]
	if s.run.TaskKillRequested(task) {
		word += " (being killed)"
	}
	return word
}

// scenarioSpec reads the lines of a plan.
func scenarioSpec(lines []string) (*Spec, Config, error) {
	spec, config := &Spec{}, Config{}
	for _, line := range lines {
		words := strings.Fields(line)
		switch {
		case words[0] == "lost":
			n, err := strconv.Atoi(words[1])
			if err != nil {
				return nil, config, err
			}
			config.LostLimit = uint32(n)
		case words[0] == "param":
			name, values, _ := strings.Cut(words[1], "=")
			spec.Parameters = append(spec.Parameters, Parameter{Name: name, List: true, Values: strings.Split(values, ",")})
		default:
			task, err := scenarioTask(words)
			if err != nil {
				return nil, config, fmt.Errorf("%s: %w", line, err)
			}
			spec.Tasks = append(spec.Tasks, task)
		}
	}
	slices.SortFunc(spec.Parameters, func(a, b Parameter) int { return strings.Compare(a.Name, b.Name) })
	return spec, config, nil
}

func scenarioTask(words []string) (TaskSpec, error) {
	t := TaskSpec{Name: words[0], Job: Job{Command: []string{"run"}}}
	for _, word := range words[1:] {
		key, value, _ := strings.Cut(word, "=")
		var err error
		switch key {
		case "generator":
			t.Generator = true
		case "parents":
			t.Parents = scenarioEdges(value)
		case "children":
			t.Children = scenarioEdges(value)
		case "uses":
			for name := range strings.SplitSeq(value, ",") {
				t.Job.Command = append(t.Job.Command, "{{"+name+"}}")
			}
		case "cores":
			var n int64
			n, err = strconv.ParseInt(value, 10, 64)
			t.Job.Cores = Quantity{Raw: value, Milli: n * 1000}
		case "retries":
			var n uint64
			n, err = strconv.ParseUint(value, 10, 32)
			t.Retry.MaxRetries = uint32(n)
		case "interval":
			t.Retry.Interval, err = time.ParseDuration(value)
		case "cap":
			t.Retry.MaxInterval, err = time.ParseDuration(value)
		case "backoff":
			t.Retry.Backoff, err = strconv.ParseFloat(value, 64)
		default:
			err = fmt.Errorf("no attribute %q", key)
		}
		if err != nil {
			return t, err
		}
	}
	return t, nil
}

func scenarioEdges(value string) []EdgeSpec {
	var edges []EdgeSpec
	for name := range strings.SplitSeq(value, ",") {
		name, match, matched := strings.Cut(name, ":")
		e := EdgeSpec{Task: name}
		if matched {
			e.Match = strings.Split(match, "+")
		}
		edges = append(edges, e)
	}
	return edges
}

// mustMatch compares a recovered run with the one that goes on.
func mustMatch(t testing.TB, got, want *Run) {
	t.Helper()
	got.CheckInvariants()
	if g, w := fingerprint(got), fingerprint(want); !bytes.Equal(g, w) {
		t.Fatalf("recovered:\n%s\nwas:\n%s", g, w)
	}
}

// fingerprint is everything that a recovery keeps.
func fingerprint(r *Run) []byte {
	var b bytes.Buffer
	fmt.Fprintln(&b, r.State(), r.KillRequested(), r.LastUpdate(), r.StateChanges(), r.plan.Tasks, r.readyTasks, r.live.members())
	counts := r.Counts()
	counts[TaskGranted] += counts[TaskRunning]
	counts[TaskRunning] = 0
	fmt.Fprintln(&b, counts)
	for task := range r.plan.Tasks {
		fmt.Fprint(&b, " ", storedState(r.stateBytes[task]), "#", r.attempts[task])
		if tr, ok := r.retries[task]; ok {
			fmt.Fprint(&b, tr)
		}
	}
	return b.Bytes()
}
