package dag_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/dag/specjson"
)

// planOf plans a spec given as JSON, which must be sound.
func planOf(t testing.TB, doc string) *dag.Plan {
	t.Helper()
	p, problems := specjson.Plan([]byte(doc), dag.Limits{})
	if len(problems) > 0 {
		t.Fatalf("%s\n%v", doc, problems)
	}
	return p
}

// problemLines is what is wrong with a spec, as "pointer: message", a limit marked by "!".
func problemLines(problems dag.Problems) []string {
	var lines []string
	for _, p := range problems {
		line := p.Pointer + ": " + p.Message
		if p.Limit {
			line = "! " + line
		}
		lines = append(lines, line)
	}
	return lines
}

func mustEqual(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n got %s\nwant %s", what, strings.Join(got, "\n     "), strings.Join(want, "\n     "))
	}
}

func taskNames(p *dag.Plan) []string {
	var names []string
	for i := range p.Tasks {
		names = append(names, p.TaskName(i))
	}
	return names
}

// edgesOf is the plan's edges as "parent>child", with the match after a colon, as
// the children tell them; the parents must tell the same.
func edgesOf(t *testing.T, p *dag.Plan) []string {
	t.Helper()
	var down, up []string
	for i, tm := range p.Templates {
		if tm.Index != i {
			t.Fatalf("template %d has the index %d", i, tm.Index)
		}
		for _, e := range tm.Parents {
			down = append(down, edgeText(t, p, e.Template, i, e.Match))
		}
		for _, e := range tm.Children {
			up = append(up, edgeText(t, p, i, e.Template, e.Match))
		}
	}
	slices.Sort(up)
	sorted := slices.Sorted(slices.Values(down))
	mustEqual(t, "edges from both ends", up, sorted)
	return down
}

func edgeText(t *testing.T, p *dag.Plan, parent, child int, m *dag.Match) string {
	text := p.Templates[parent].Name + ">" + p.Templates[child].Name
	if m == nil {
		return text
	}
	if m.Parent != parent || m.Child != child || p.Matches[m.ID] != m {
		t.Errorf("%s: match %d is of %d>%d", text, m.ID, m.Parent, m.Child)
	}
	return text + ":" + strings.Join(m.Names, ",")
}

func TestSeedExample(t *testing.T) {
	p := planOf(t, `{
		"tag": "mediumtest",
		"parameters": { "JOBNO": [ "1", "2" ] },
		"tasks": {
			"simple": {
				"job": { "command": [ "/usr/bin/python3", "script.py", "{{JOBNO}}" ], "cores": "1", "memoryMB": "100" }
			}
		}
	}`)
	if p.Tag != "mediumtest" || p.Tasks != 2 || len(p.Templates) != 1 {
		t.Fatalf("planned %+v", p)
	}
	mustEqual(t, "names", taskNames(p), []string{"simple_0", "simple_1"})
	for i := range p.Tasks {
		task := p.Task(i)
		mustEqual(t, task.Name, task.Command, []string{"/usr/bin/python3", "script.py", fmt.Sprint(i + 1)})
		if task.Index != i || task.Template != p.Templates[0] || task.Environment != nil || task.CommandString != "" {
			t.Errorf("task %d: %+v", i, task)
		}
	}
	job := p.Job(p.Templates[0], nil)
	if job.Cores != (dag.Quantity{Raw: `"1"`, Milli: 1000}) || job.MemoryMB != (dag.Quantity{Raw: `"100"`, Milli: 100_000}) {
		t.Errorf("quantities %+v %+v", job.Cores, job.MemoryMB)
	}
	if want := (dag.Class{Executor: "process", CPUMillis: 1000, MemoryBytes: 100 << 20}); p.Classes[p.Templates[0].Class] != want {
		t.Errorf("class %+v", p.Classes)
	}
}

// Every sentence of "Expansion".
func TestExpansion(t *testing.T) {
	const lists = `"parameters": {"B": ["b0", "b1"], "A": ["a0", "a1", "a2"], "ONE": ["only"], "S": "text", "weird name": ["w"]}`
	for _, c := range []struct {
		name, job string
		want      []string
	}{
		{"product, sorted parameters, the last fastest", `"command": ["x", "{{B}}{{S}}{{A}}"]`,
			[]string{"t_0 x b0texta0", "t_1 x b1texta0", "t_2 x b0texta1", "t_3 x b1texta1", "t_4 x b0texta2", "t_5 x b1texta2"}},
		{"one value still numbers", `"command": ["x", "{{ONE}}"]`, []string{"t_0 x only"}},
		{"a string leaves the name alone", `"command": ["x", "{{S}}"]`, []string{"t x text"}},
		{"a string beside a list", `"command": ["{{S}}", "{{B}}"]`, []string{"t_0 text b0", "t_1 text b1"}},
		{"no list", `"command": ["x"]`, []string{"t x"}},
		{"in commandString", `"commandString": "echo {{B}} {{B}}"`, []string{"t_0 sh:echo b0 b0", "t_1 sh:echo b1 b1"}},
		{"in environment", `"command": ["x"], "environment": ["K={{B}}", "L=1"]`, []string{"t_0 x K=b0 L=1", "t_1 x K=b1 L=1"}},
		{"in environment's names", `"command": ["x"], "environment": {"K{{B}}": "{{S}}"}`, []string{"t_0 x Kb0=text", "t_1 x Kb1=text"}},
		{"in workDir", `"command": ["x"], "workDir": "/d/{{B}}"`, []string{"t_0 x in /d/b0", "t_1 x in /d/b1"}},
		{"not elsewhere", `"command": ["x"], "queue": "{{B}}", "note": "{{NONE}}"`, []string{"t x"}},
		{"any name that is a parameter", `"command": ["x", "{{weird name}}"]`, []string{"t_0 x w"}},
		{"what has no name's form is text", `"command": ["x", "{{ B }}", "{{.Names}}", "{{", "}}", "{B}", "{{}}", "{{range .x}}"]`,
			[]string{"t x {{ B }} {{.Names}} {{ }} {B} {{}} {{range .x}}"}},
		{"the inner of more braces", `"command": ["x", "{{{S}}}", "{{{{S}}}}", "{{S}}}}{{S}}"]`, []string{"t x {text} {{text}} text}}text"}},
		{"case differs", `"command": ["x", "{{ONE}}", "{{ s}}"]`, []string{"t_0 x only {{ s}}"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := planOf(t, `{`+lists+`, "tasks": {"t": {"job": {`+c.job+`}}}}`)
			var got []string
			for i := range p.Tasks {
				got = append(got, taskText(p.Task(i)))
			}
			mustEqual(t, c.job, got, c.want)
		})
	}
}

func taskText(task dag.Task) string {
	words := []string{task.Name}
	words = append(words, task.Command...)
	if task.CommandString != "" {
		words = append(words, "sh:"+task.CommandString)
	}
	words = append(words, task.Environment...)
	if task.WorkDir != "" {
		words = append(words, "in", task.WorkDir)
	}
	return strings.Join(words, " ")
}

func TestSubstitutedValuesAreNotScannedAgain(t *testing.T) {
	p := planOf(t, `{"parameters": {"A": "{{B}}", "B": ["1", "2"], "end": "{{end}}"},
		"tasks": {"t": {"job": {"command": ["x", "{{A}}{{A}}", "{{end}}"]}}}}`)
	mustEqual(t, "task", []string{taskText(p.Task(0))}, []string{"t x {{B}}{{B}} {{end}}"})
}

func TestSpecProblems(t *testing.T) {
	for _, c := range []struct {
		name, doc string
		want      []string
	}{
		{"no tasks", `{"tasks": {}}`, []string{`/tasks: there must be at least one task`}},
		{"unknown token", `{"tasks": {"a": {"job": {"command": ["x", "{{NO}} {{NO}}"], "environment": {"K/~": "{{NO}}"}, "workDir": "{{n.o-1}}"}}}}`,
			[]string{`/tasks/a/job/command/1: unknown parameter "NO"`, `/tasks/a/job/environment/K~1~0: unknown parameter "NO"`,
				`/tasks/a/job/workDir: unknown parameter "n.o-1"`}},
		{"unknown token in commandString and a list", `{"tasks": {"a/b": {"job": {"commandString": "{{X}}", "environment": ["A=", "B={{X}}"]}}}}`,
			[]string{`/tasks/a~1b/job/commandString: unknown parameter "X"`, `/tasks/a~1b/job/environment/1: unknown parameter "X"`}},
		{"unknown token in the defaults, once", `{"jobDefaults": {"command": ["{{X}}"]}, "tasks": {"a": {}, "b": {"job": {"workDir": "{{Y}}"}}}}`,
			[]string{`/jobDefaults/command/0: unknown parameter "X"`, `/tasks/b/job/workDir: unknown parameter "Y"`}},
		{"empty list that is referred to", `{"parameters": {"E": []}, "tasks": {"a": {"job": {"command": ["x", "{{E}}"]}}}}`,
			[]string{`/tasks/a/job/command/1: parameter "E" is an empty list`}},
		{"clash", `{"parameters": {"L": ["1", "2"]}, "tasks": {"a": {"job": {"command": ["{{L}}"]}}, "a_1": {"job": {"command": ["x"]}},
			"a_2": {"job": {"command": ["x"]}}, "a_01": {"job": {"command": ["x"]}}, "a_0": {"job": {"command": ["{{L}}"]}}}}`,
			[]string{`/tasks/a_1: task "a_1" has a name that "a" expands to`}},
		{"no command", `{"tasks": {"a": {}, "b": {"job": {"executor": "noop"}}, "c": {"job": {"commandString": ""}}}}`,
			[]string{`/tasks/a/job: neither command nor commandString is given`}},
		{"both commands", `{"jobDefaults": {"command": ["x"], "commandString": "x"}, "tasks": {"a": {"job": {"command": ["x"], "commandString": "y"}}, "b": {}}}`,
			[]string{`/jobDefaults: both command and commandString are given`, `/tasks/a/job: both command and commandString are given`}},
		{"executor", `{"tasks": {"a": {"job": {"command": ["x"], "executor": "slurm"}}}}`,
			[]string{`/tasks/a/job/executor: unknown executor "slurm"`}},
		{"no cores", `{"tasks": {"a": {"job": {"command": ["x"], "cores": 0}}}}`, []string{`/tasks/a/job/cores: cores must be more than 0`}},
		{"unknown tasks", `{"tasks": {"a": {"job": {"command": ["x"]}, "parents": ["x"], "children": ["a_0", {"task": "y"}]}}}`,
			[]string{`/tasks/a/parents/0: unknown task "x"`, `/tasks/a/children/0: unknown task "a_0"`, `/tasks/a/children/1: unknown task "y"`}},
		{"self edge", `{"tasks": {"a": {"job": {"command": ["x"]}, "children": ["a"]}}}`,
			[]string{`/tasks/a: the tasks depend on each other: a -> a`}},
		{"cycle", `{"tasks": {"z": {"job": {"command": ["x"]}, "parents": ["b c"]}, "a": {"job": {"command": ["x"]}, "parents": ["b c"]},
			"b c": {"job": {"command": ["x"]}, "parents": ["d"]}, "d": {"job": {"command": ["x"]}, "parents": ["a"]}}}`,
			[]string{`/tasks/a: the tasks depend on each other: a -> d -> b c -> a`}},
		{"everything at once", `{"bad": 1, "jobDefaults": {"command": 5}, "tasks": {"a": {"parents": ["q", ""]}, "b": null, "c": {"parents": ["c"], "job": {"workDir": "{{W}}"}}}}`,
			[]string{`/bad: unknown member "bad": a spec has tag, tags, parameters, jobDefaults, tasks`, `/jobDefaults/command: command must be a list, it is a number`, `/tasks/a/parents/1: the name of a task is empty`,
				`/tasks/b: a task must be an object, it is null`, `/tasks/c/job/workDir: unknown parameter "W"`,
				`/tasks/a/parents/0: unknown task "q"`, `/tasks/c: the tasks depend on each other: c -> c`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, problems := specjson.Plan([]byte(c.doc), dag.Limits{})
			if p != nil {
				t.Error("there is a plan")
			}
			mustEqual(t, c.doc, problemLines(problems), c.want)
		})
	}
}

func TestLimits(t *testing.T) {
	list := func(n int) string { return `["v"` + strings.Repeat(`,"v"`, n-1) + `]` }
	doc := func(tasks string) string {
		return `{"parameters": {"A": ` + list(1000) + `, "B": ` + list(1000) + `, "C": ` + list(1000) + `, "D": ` + list(1000) + `, "E": ` + list(1000) +
			`, "F": ` + list(1000) + `, "G": ` + list(1000) + `}, "tasks": {` + tasks + `}}`
	}
	task := func(name, text string) string {
		return `"` + name + `": {"job": {"command": ["x", "` + text + `"]}}`
	}
	for _, c := range []struct {
		name, doc string
		limits    dag.Limits
		want      []string
	}{
		{"default", doc(task("a", "{{A}}{{B}}{{C}}")), dag.Limits{}, []string{`! /tasks: the run has 1000000000 tasks, the limit is 10000000`}},
		{"just right", doc(task("a", "{{A}}{{B}}") + "," + task("b", "")), dag.Limits{MaxTasks: 1_000_001}, nil},
		{"one too many", doc(task("a", "{{A}}{{B}}") + "," + task("b", "")), dag.Limits{MaxTasks: 1_000_000}, []string{`! /tasks: the run has 1000001 tasks, the limit is 1000000`}},
		{"beyond 64 bits", doc(task("a", "{{A}}{{B}}{{C}}{{D}}{{E}}{{F}}{{G}}")), dag.Limits{},
			[]string{`! /tasks: the run has more than 18446744073709551615 tasks, the limit is 10000000`}},
		{"sum beyond 64 bits", doc(task("a", "{{A}}{{B}}{{C}}{{D}}{{E}}{{F}}{{G}}") + "," + task("b", "")), dag.Limits{MaxTasks: 1 << 40},
			[]string{`! /tasks: the run has more than 18446744073709551615 tasks, the limit is 2147483647`}},
		{"more than there are indexes", doc(task("a", "{{A}}{{B}}{{C}}{{D}}")), dag.Limits{MaxTasks: 1 << 40},
			[]string{`! /tasks: the run has 1000000000000 tasks, the limit is 2147483647`}},
		{"machine", `{"jobDefaults": {"memoryMB": 2048.5}, "tasks": {"a": {"job": {"command": ["x"], "cores": "2.5"}}}}`,
			dag.Limits{MaxCPUMillis: 2000, MaxMemoryBytes: 2048 << 20},
			[]string{`/jobDefaults/memoryMB: asks for 2048.5 MB of memory, the machine has 2048`, `/tasks/a/job/cores: asks for 2.5 cores, the machine has 2`}},
		{"the machine has less than one core", `{"tasks": {"a": {"job": {"command": ["x"]}}}}`, dag.Limits{MaxCPUMillis: 500},
			[]string{`/tasks/a/job: asks for 1 cores, the machine has 0.5`}},
		{"other machines are larger", `{"jobDefaults": {"executor": "slurm", "cores": 64}, "tasks": {"a": {"job": {"command": ["x"], "memoryMB": 4096}},
			"b": {"job": {"command": ["x"], "executor": "process", "cores": 1, "memoryMB": 4096}}}}`,
			dag.Limits{MaxCPUMillis: 2000, MaxMemoryBytes: 2048 << 20, Executors: []string{"process", "slurm"}, ExternalExecutors: []string{"slurm"}},
			[]string{`/tasks/b/job/memoryMB: asks for 4096 MB of memory, the machine has 2048`}},
		{"what the defaults ask for is asked of this machine too", `{"jobDefaults": {"executor": "slurm", "cores": 64}, "tasks": {"a": {"job": {"command": ["x"]}},
			"b": {"job": {"command": ["x"], "executor": "process"}}}}`,
			dag.Limits{MaxCPUMillis: 2000, Executors: []string{"process", "slurm"}, ExternalExecutors: []string{"slurm"}},
			[]string{`/jobDefaults/cores: asks for 64 cores, the machine has 2`}},
		{"less than one core here", `{"tasks": {"a": {"job": {"command": ["x"], "executor": "slurm"}}}}`,
			dag.Limits{MaxCPUMillis: 500, Executors: []string{"process", "slurm"}, ExternalExecutors: []string{"slurm"}}, nil},
		{"executors", `{"tasks": {"a": {"job": {"command": ["x"], "executor": "slurm"}}, "b": {"job": {"executor": "noop"}}}}`,
			dag.Limits{Executors: []string{"process", "slurm"}}, []string{`/tasks/b/job/executor: unknown executor "noop"`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, problems := specjson.Plan([]byte(c.doc), c.limits)
			mustEqual(t, c.name, problemLines(problems), c.want)
		})
	}
}

// What the kernel cannot start a process with is refused with its limit, the longest
// values substituted. A command string goes through a file and has no such limit.
func TestTextsTooLongForTheKernel(t *testing.T) {
	text := func(n int) string { return strings.Repeat("x", n) }
	parameters := `"parameters": {"S": "` + text(1000) + `", "L": ["a", "` + text(100_000) + `"]}, `
	for _, c := range []struct {
		name, doc string
		limit     int
		want      []string
	}{
		{"the longest argument", `{"tasks": {"a": {"job": {"command": ["x", "` + text(131071) + `"]}}}}`, 0, nil},
		{"a byte more", `{"tasks": {"a": {"job": {"command": ["x", "` + text(131072) + `"]}}}}`, 0,
			[]string{`/tasks/a/job/command/1: has 131072 bytes, the kernel takes at most 131071 in an argument`}},
		{"after substitution", `{` + parameters + `"tasks": {"a": {"job": {"command": ["x", "y{{S}}{{L}}` + text(30_071) + `"]}}}}`, 0,
			[]string{`/tasks/a/job/command/1: has 131072 bytes when the longest values are substituted, the kernel takes at most 131071 in an argument`}},
		{"just right after substitution", `{` + parameters + `"tasks": {"a": {"job": {"command": ["x", "{{S}}{{L}}` + text(30_071) + `"]}}}}`, 0, nil},
		{"environment", `{` + parameters + `"tasks": {"a": {"job": {"commandString": "x", "environment": {"K": "{{L}}{{L}}"}}}}}`, 0,
			[]string{`/tasks/a/job/environment/K: has 200002 bytes when the longest values are substituted, the kernel takes at most 131071 in an entry of the environment`}},
		{"a long script", `{` + parameters + `"tasks": {"a": {"job": {"commandString": "{{L}}{{L}}` + text(1_000_000) + `"}}}}`, 1_000_000, nil},
		{"defaults, once", `{"jobDefaults": {"environment": ["K=` + text(131070) + `"]}, "tasks": {"a": {"job": {"command": ["x"]}}, "b": {"job": {"command": ["x"]}}}}`, 0,
			[]string{`/jobDefaults/environment/0: has 131072 bytes, the kernel takes at most 131071 in an entry of the environment`}},
		{"folder", `{"tasks": {"a": {"job": {"command": ["x"], "workDir": "/` + text(4095) + `"}}}}`, 0,
			[]string{`/tasks/a/job/workDir: has 4096 bytes, the kernel takes at most 4095 in the name of a folder`}},
		{"all together", `{` + parameters + `"tasks": {"a": {"job": {"command": ["x", "{{L}}", "{{S}}"], "environment": ["K={{S}}"]}}}}`, 102_000,
			[]string{`/tasks/a/job: has 102039 bytes when the longest values are substituted in its command and environment, the kernel takes at most 102000 of a process on this machine`}},
		{"all together, just right", `{` + parameters + `"tasks": {"a": {"job": {"command": ["x", "{{L}}", "{{S}}"], "environment": ["K={{S}}"]}}}}`, 102_039, nil},
		{"no process", `{"tasks": {"a": {"job": {"executor": "noop", "command": ["x", "` + text(131072) + `"]}}}}`, 0, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, problems := specjson.Plan([]byte(c.doc), dag.Limits{MaxStartBytes: c.limit})
			mustEqual(t, c.name, problemLines(problems), c.want)
		})
	}
}

func TestJobDefaults(t *testing.T) {
	p := planOf(t, `{
		"parameters": {"L": ["1", "2"]},
		"jobDefaults": {"command": ["d", "{{L}}"], "environment": ["D={{L}}"], "workDir": "/d", "cores": 2, "memoryMB": "5", "executor": "noop",
			"timeoutSeconds": "1.5", "queue": "long", "x": [1, 2]},
		"tasks": {
			"all": {},
			"own": {"job": {"commandString": "o", "environment": [], "workDir": "/o", "cores": 0.25, "memoryMB": 0, "executor": "process", "timeoutSeconds": 9, "x": null, "y": 1}},
			"some": {"job": {"environment": {"E": "1"}}}
		}}`)
	mustEqual(t, "names", taskNames(p), []string{"all_0", "all_1", "own", "some_0", "some_1"})
	all, own, some := p.Templates[0], p.Templates[1], p.Templates[2]
	mustEqual(t, "all", []string{taskText(p.Task(1))}, []string{"all_1 d 2 D=2 in /d"})
	mustEqual(t, "own", []string{taskText(p.Task(2))}, []string{"own sh:o in /o"})
	mustEqual(t, "some", []string{taskText(p.Task(3))}, []string{"some_0 d 1 E=1 in /d"})
	if p.Task(2).Command != nil {
		t.Error("own has the default's command beside its commandString")
	}
	if p.Task(0).Timeout != 1500*time.Millisecond || p.Task(2).Timeout != 9*time.Second {
		t.Errorf("timeouts %v %v", p.Task(0).Timeout, p.Task(2).Timeout)
	}
	if c := p.Classes[all.Class]; c != (dag.Class{Executor: "noop", CPUMillis: 2000, MemoryBytes: 5 << 20}) || some.Class != all.Class {
		t.Errorf("class of all: %+v", c)
	}
	if c := p.Classes[own.Class]; c != (dag.Class{Executor: "process", CPUMillis: 250}) {
		t.Errorf("class of own: %+v", c)
	}
	members := func(j *dag.Job) (lines []string) {
		for _, m := range j.Other {
			lines = append(lines, m.Name+"="+m.Raw)
		}
		return lines
	}
	mustEqual(t, "all", members(p.Job(all, nil)), []string{`timeoutSeconds="1.5"`, `queue="long"`, `x=[1, 2]`})
	mustEqual(t, "own", members(p.Job(own, nil)), []string{`timeoutSeconds=9`, `x=null`, `y=1`, `queue="long"`})
}

func TestDefaultsWithoutOtherMembers(t *testing.T) {
	p := planOf(t, `{"jobDefaults": {"command": ["x"]}, "tasks": {"a": {"job": {"q": 1}}}}`)
	if got := p.Job(p.Templates[0], nil).Other; len(got) != 1 || got[0] != (dag.Member{Name: "q", Raw: "1"}) {
		t.Errorf("members %v", got)
	}
	_, problems := specjson.Plan([]byte(`{"jobDefaults": {"command": ["x"], "workDir": "/w"}, "tasks": {"a": {"job": {"environment": ["A={{Q}}"]}},
		"b": {"job": {"commandString": "{{Q}}"}}}}`), dag.Limits{})
	mustEqual(t, "own texts", problemLines(problems), []string{`/tasks/a/job/environment/0: unknown parameter "Q"`, `/tasks/b/job/commandString: unknown parameter "Q"`})
}

func TestDefaultsOfATask(t *testing.T) {
	p := planOf(t, `{"tasks": {"a": {"job": {"command": ["x"]}}}}`)
	a := p.Templates[0]
	if a.Retry != (dag.RetryPolicy{}) || a.Generator || a.Depth != 0 || a.Set != 0 || a.Origin != -1 || a.Expanded || a.Count != 1 {
		t.Errorf("template %+v", a)
	}
	if c := p.Classes[a.Class]; c != (dag.Class{Executor: "process", CPUMillis: 1000}) {
		t.Errorf("class %+v", c)
	}
}

func TestManyClasses(t *testing.T) {
	var doc strings.Builder
	doc.WriteString(`{"tasks": {`)
	for i := range 100 {
		fmt.Fprintf(&doc, `"a%d": {"job": {"executor": "noop", "cores": %d}},`, i, i%50+1)
	}
	doc.WriteString(`"last": {"job": {"executor": "noop"}}}}`)
	p := planOf(t, doc.String())
	if len(p.Classes) != 50 {
		t.Fatalf("%d classes", len(p.Classes))
	}
	for i, tm := range p.Templates {
		if got, want := p.Classes[tm.Class].CPUMillis, int64(i%50+1)*1000; got != want {
			t.Errorf("%s: %d, want %d", tm.Name, got, want)
		}
	}
}

func TestMergedDefaultsAreBounded(t *testing.T) {
	const members, tasks = 3000, 1500
	s := &dag.Spec{Defaults: &dag.Job{HasString: true}}
	for i := range members {
		s.Defaults.Other = append(s.Defaults.Other, dag.Member{Name: fmt.Sprint("m", i), Raw: "1"})
	}
	for i := range tasks {
		s.Tasks = append(s.Tasks, dag.TaskSpec{Name: fmt.Sprint("t", i), Job: dag.Job{Other: []dag.Member{{Name: "own", Raw: "1"}}}, HasDecodeErrors: true})
	}
	_, problems := dag.NewPlan(s, dag.Limits{})
	mustEqual(t, "problems", problemLines(problems), []string{`! /tasks: the tasks have more than 4000000 job members in all, with those of jobDefaults`})
	s.Tasks = s.Tasks[:tasks/2]
	if _, problems = dag.NewPlan(s, dag.Limits{}); problems != nil {
		t.Error(problems)
	}
}

// A short document must not make a task that does not fit in memory.
func TestSubstitutionIsBounded(t *testing.T) {
	const tokens, value = 50_000, 100_000
	doc := `{"parameters": {"P": ["", "` + strings.Repeat("p", value) + `"]}, "tasks": {"a": {"job": {"command": ["x", "` + strings.Repeat("{{P}}", tokens) + `"]}}}}`
	_, problems := specjson.Plan([]byte(doc), dag.Limits{})
	mustEqual(t, "problems", problemLines(problems), []string{fmt.Sprintf(
		"/tasks/a/job: the job has %d bytes when the longest values are substituted, the limit is 4194304", tokens*value)})
}

func TestSpecsFromElsewhere(t *testing.T) {
	_, problems := dag.NewPlan(&dag.Spec{Tasks: []dag.TaskSpec{
		{Name: "a", Job: dag.Job{HasString: true, MemoryMB: dag.Quantity{Raw: "-1", Milli: -1000}}},
		{Name: "a", Job: dag.Job{HasString: true, Cores: dag.Quantity{Raw: "-1", Milli: -1000}}},
	}}, dag.Limits{})
	mustEqual(t, "problems", problemLines(problems), []string{`/tasks/a/job/memoryMB: memoryMB must not be negative`,
		`/tasks/a/job/cores: cores must be more than 0`, `/tasks/a: task "a" is defined twice`})
}
