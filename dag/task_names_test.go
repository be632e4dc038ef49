package dag_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/dag"
)

func TestFindTask(t *testing.T) {
	for _, more := range []int{0, 20} { // few names and many are found in different ways
		tasks := []string{`a {{L}}`, `b -`, `a_b {{N}}`, `a_7 -`, `_ {{L}}`, `x_00 -`, `a/b~c {{M}}`, `big_99999999999 -`}
		for i := range more {
			tasks = append(tasks, fmt.Sprintf("more%d -", i))
		}
		p := planOf(t, graph(tasks...))
		for i := range p.Tasks {
			name := p.TaskName(i)
			if got, ok := p.FindTask(name); !ok || got != i {
				t.Errorf("%q is %d %v, want %d", name, got, ok, i)
			}
			if got := string(p.AppendTaskName([]byte("pre-"), i)); got != "pre-"+name {
				t.Errorf("appended %q", got)
			}
			if tm := p.TemplateOf(i); i < tm.Base || i >= tm.Base+tm.Count {
				t.Errorf("task %d is not of %+v", i, tm)
			}
		}
		for _, name := range []string{"", "a", "a_2", "a_00", "a_01", "a_-1", "a_+1", "a_ 1", "a_0x1", "a_1_", "a_", "b_0", "a_b", "a_b_1", "_0x", "_", "__2",
			"x", "x_0", "7", "_7", "A_0", "a_4294967296", "a_4294967297", "a_18446744073709551616", "big", "a/b~c", "a/b~c_3"} {
			if i, ok := p.FindTask(name); ok {
				t.Errorf("%q is found as %d, %q", name, i, p.TaskName(i))
			}
		}
	}
}

func TestTaskNamesOfAnyKind(t *testing.T) {
	long := strings.Repeat("n", 200)
	p := planOf(t, `{"parameters": {"L": ["1", "2"]}, "tasks": {
		"a b/c~d\"é\n": {"job": {"command": ["{{L}}"]}}, "`+long+`": {"job": {"command": ["{{L}}"]}}}}`)
	mustEqual(t, "names", taskNames(p), []string{"a b/c~d\"é\n_0", "a b/c~d\"é\n_1", long + "_0", long + "_1"})
	if got := p.Task(3).Name; got != long+"_1" {
		t.Errorf("long name is %q", got)
	}
}

func TestTaskOutOfRangePanics(t *testing.T) {
	p := planOf(t, graph(`a {{L}}`))
	defer func() {
		if got := recover(); got != "dag: task 2 of a plan of 2" {
			t.Errorf("panic %v", got)
		}
	}()
	p.Task(2)
}

func TestTaskIntoKeepsApart(t *testing.T) {
	p := planOf(t, graph(`a {{L}}`, `b plain`))
	var task dag.Task
	p.TaskInto(&task, 2)
	task.Command[1] = "changed"
	if got := p.Job(p.Templates[1], nil).Command[1]; got != "plain" {
		t.Errorf("the template's command is %q", got)
	}
	p.TaskInto(&task, 0)
	name, arg := task.Name, task.Command[1]
	p.TaskInto(&task, 1)
	if name != "a_0" || arg != "l0" || task.Name != "a_1" || task.Command[1] != "l1" {
		t.Errorf("%q %q, then %+v", name, arg, task)
	}
}

func TestTaskIntoAllocatesOnce(t *testing.T) {
	p := planOf(t, `{"parameters": {"L": ["1", "2", "3"]}, "tasks": {
		"a": {"job": {"command": ["x", "{{L}}", "{{L}}{{L}}"], "environment": ["A={{L}}", "B=2"], "workDir": "/{{L}}"}}}}`)
	var task dag.Task
	i := uint32(0)
	if n := testing.AllocsPerRun(100, func() { p.TaskInto(&task, i%p.Tasks); i++ }); n > 1 {
		t.Errorf("%v allocations", n)
	}
}
