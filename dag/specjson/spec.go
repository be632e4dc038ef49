package specjson

import (
	"slices"
	"strconv"
	"strings"

	"github.com/caravan-dag/caravan/dag"
)

// spec reads a spec. It returns false when the spec has no object of tasks to plan.
func (d *reader) spec(s *dag.Spec) bool {
	given, hasTasks, sound := false, false, true
	d.object(func(name string) {
		switch name {
		case "tag":
			s.Tag = d.tag()
		case "tags":
			s.Tags = d.labels()
		case "parameters":
			s.Parameters = d.parameters()
		case "jobDefaults":
			s.Defaults = new(dag.Job)
			before := d.Len()
			if d.expect('{', "jobDefaults") {
				d.job(s.Defaults)
			}
			sound = d.Len() == before
		case "tasks":
			given = true
			if hasTasks = d.expect('{', "tasks"); hasTasks {
				if d.stream {
					s.TaskList = d.taskList()
				} else {
					s.Tasks = d.tasks()
				}
			}
		default:
			d.unknown(name, specMembers)
		}
	})
	if !given {
		d.problem("tasks is missing")
	}
	if !sound { // a member that a task takes from the defaults may be missing
		for i := range s.Tasks {
			s.Tasks[i].HasDecodeErrors = true
		}
		if s.TaskList != nil {
			s.TaskList.MarkDecodeErrors()
		}
	}
	return hasTasks
}

// Hints about the members of each object, for errors about unknown members. A job may
// have any members.
const (
	specMembers = "a spec has tag, tags, parameters, jobDefaults, tasks"
	taskMembers = "a task has job, parents, children, maxRetries, retryIntervalSeconds, retryBackoff, retryMaxIntervalSeconds, isGenerator"
	edgeMembers = "an edge has task, match"
)

// unknown reports a member that does not belong here, with the members that do.
func (d *reader) unknown(name, members string) {
	d.problem("unknown member " + dag.Quote(name) + ": " + members)
	d.skip()
}

// string reads a string.
func (d *reader) string(what string) (value string, ok bool) {
	if !d.expect('"', what) {
		return "", false
	}
	value = d.unquote(d.raw())
	return value, d.checkLength(what, value, MaxValueBytes)
}

// execString reads a string that reaches execve.
func (d *reader) execString(what string) (value string, ok bool) {
	value, ok = d.string(what)
	if ok && strings.IndexByte(value, 0) >= 0 {
		d.problem(what + " must not have a NUL byte")
		return value, false
	}
	return value, ok
}

// name checks the name of a task or a parameter.
func (d *reader) name(what, name string) bool {
	switch {
	case name == "":
		d.problem("the name of " + what + " is empty")
	case strings.IndexByte(name, 0) >= 0:
		d.problem("the name of " + what + " must not have a NUL byte")
	default:
		return d.checkLength("the name of "+what, name, MaxNameBytes)
	}
	return false
}

func (d *reader) labels() (labels []dag.Label) {
	if !d.expect('{', "tags") {
		return nil
	}
	d.object(func(name string) {
		labels = d.label(labels, name)
	})
	slices.SortFunc(labels, func(a, b dag.Label) int { return strings.Compare(a.Name, b.Name) })
	return labels
}

func (d *reader) parameters() (parameters []dag.Parameter) {
	if !d.expect('{', "parameters") {
		return nil
	}
	d.object(func(name string) {
		if d.name("a parameter", name) && strings.ContainsAny(name, "{}") {
			d.problem("the name of a parameter must not have braces")
		}
		p := dag.Parameter{Name: name}
		switch d.peek() {
		case '[':
			p.List = true
			d.list = d.list[:0]
			d.array(func(int) {
				d.list = append(d.list, d.parameterValue("a value"))
			})
			p.Values = slices.Clone(d.list)
		case '"':
			p.Values = []string{d.parameterValue("a parameter")}
		default:
			d.expect('"', "a parameter, unless it is a list of strings,")
			p.Values = []string{""} // so that its tokens are not reported as unknown
		}
		parameters = append(parameters, p)
	})
	slices.SortFunc(parameters, func(a, b dag.Parameter) int { return strings.Compare(a.Name, b.Name) })
	return parameters
}

// tasks reads an object of tasks.
func (d *reader) tasks() []dag.TaskSpec {
	var tasks []dag.TaskSpec
	d.object(func(name string) {
		t := dag.TaskSpec{Name: name}
		d.name("a task", name)
		if d.expect('{', "a task") {
			d.task(&t)
		} else {
			t.HasDecodeErrors = true
		}
		tasks = append(d.growTasks(tasks), t)
	})
	return tasks
}

// taskList reads an object of tasks of any number into a packed list.
func (d *reader) taskList() *dag.TaskList {
	tasks := new(dag.TaskList)
	var t dag.TaskSpec
	d.members(&nameSet{list: tasks}, func(name string) {
		t = dag.TaskSpec{Name: name}
		d.name("a task", name)
		if d.expect('{', "a task") {
			d.task(&t)
		} else {
			t.HasDecodeErrors = true
		}
		tasks.Append(&t)
	})
	return tasks
}

// growTasks grows a full list of tasks to the estimated number in the document, so that
// a long list is copied only once or twice.
func (d *reader) growTasks(tasks []dag.TaskSpec) []dag.TaskSpec {
	n := len(tasks)
	if n < cap(tasks) || n < 8 {
		return tasks
	}
	done := int(d.decoder.InputOffset())
	rest := float64(d.text.end()-done) / float64(done)
	return slices.Grow(tasks, n/8+int(float64(n)*min(rest*1.1, 16)))
}

func (d *reader) task(t *dag.TaskSpec) {
	d.object(func(name string) {
		before := d.Len()
		switch name {
		case "job":
			if d.expect('{', "job") {
				d.job(&t.Job)
			}
			t.HasDecodeErrors = t.HasDecodeErrors || d.Len() > before
		case "parents":
			t.Parents = d.edges("parents")
			t.HasDecodeErrors = t.HasDecodeErrors || d.Len() > before
		case "children":
			t.Children = d.edges("children")
			t.HasDecodeErrors = t.HasDecodeErrors || d.Len() > before
		case "maxRetries":
			t.Retry.MaxRetries = d.readMaxRetries()
		case "retryIntervalSeconds":
			t.Retry.Interval = d.seconds("retryIntervalSeconds")
		case "retryMaxIntervalSeconds":
			t.Retry.MaxInterval = d.seconds("retryMaxIntervalSeconds")
		case "retryBackoff":
			t.Retry.Backoff = d.readBackoff()
		case "isGenerator":
			if d.expect('t', "isGenerator") {
				t.Generator = d.raw() == "true"
			}
		default:
			d.unknown(name, taskMembers)
		}
	})
}

// edges reads a list of edges: names of tasks, or objects with a task and its match.
func (d *reader) edges(what string) []dag.EdgeSpec {
	if !d.expect('[', what) {
		return nil
	}
	d.ends = d.ends[:0]
	d.array(func(int) {
		var e dag.EdgeSpec
		before := d.Len()
		if d.peek() == '{' {
			d.edge(&e)
		} else if e.Task, _ = d.string("the task of an edge"); e.Task == "" && d.Len() == before {
			d.problem("the name of a task is empty")
		}
		if d.Len() > before {
			e = dag.EdgeSpec{} // keeps the indexes of later edges
		}
		d.ends = append(d.ends, e)
	})
	return slices.Clone(d.ends)
}

func (d *reader) edge(e *dag.EdgeSpec) {
	hasTask := false
	d.object(func(name string) {
		switch name {
		case "task":
			hasTask = true
			if task, ok := d.string("the task of an edge"); ok && d.name("a task", task) {
				e.Task = task
			}
		case "match":
			if d.expect('[', "match") {
				d.array(func(int) {
					if p, ok := d.string("a parameter's name"); ok {
						e.Match = append(e.Match, p)
					}
				})
			}
		default:
			d.unknown(name, edgeMembers)
		}
	})
	if !hasTask {
		d.problem("the task of an edge is missing")
	}
}

// tag reads the spec's tag.
func (d *reader) tag() string {
	tag, ok := d.string("tag")
	if !ok || !d.checkLength("tag", tag, MaxTagBytes) {
		return ""
	}
	return strings.Clone(tag) // does not keep the whole document alive
}

// label reads the value of a label.
func (d *reader) label(labels []dag.Label, name string) []dag.Label {
	value, ok := d.string("a tag")
	switch {
	case !ok:
	case !d.checkLength("the name of a tag", name, MaxLabelNameBytes), !d.checkLength("a tag", value, MaxLabelBytes):
	case len(labels) == MaxLabels:
		d.problem("there are more than " + strconv.Itoa(MaxLabels) + " tags")
	default:
		labels = append(labels, dag.Label{Name: strings.Clone(name), Value: strings.Clone(value)})
	}
	return labels
}

// parameterValue reads one value of a parameter.
func (d *reader) parameterValue(what string) string {
	value, ok := d.execString(what)
	if ok && !d.checkLength(what, value, MaxParameterBytes) {
		return ""
	}
	return value
}

// job reads a job or jobDefaults, an object that is next.
func (d *reader) job(j *dag.Job) {
	d.object(func(name string) {
		switch name {
		case "command":
			d.command(j)
		case "commandString":
			j.HasString = true
			j.CommandString, _ = d.execString("commandString")
		case "environment":
			d.environment(j)
		case "workDir":
			j.WorkDir, _ = d.execString("workDir")
		case "executor":
			if executor, ok := d.string("executor"); ok && executor == "" {
				d.problem("executor is empty")
			} else {
				j.Executor = executor
			}
		case "cores":
			j.Cores = d.quantity("cores")
		case "memoryMB":
			j.MemoryMB = d.quantity("memoryMB")
		case "timeoutSeconds":
			raw := d.readTimeout(j)
			j.Other = append(j.Other, dag.Member{Name: name, Raw: raw})
		default:
			d.warnUnknownMember(name)
			raw := d.skip()
			d.checkLength("the member", raw, MaxValueBytes)
			j.Other = append(j.Other, dag.Member{Name: name, Raw: raw})
		}
	})
}

func (d *reader) command(j *dag.Job) {
	if !d.expect('[', "command") {
		return
	}
	d.list = d.list[:0]
	d.array(func(i int) {
		arg, ok := d.execString("an argument of command")
		if ok && i == 0 && arg == "" {
			d.problem("the program of command is empty")
		}
		d.list = append(d.list, arg)
	})
	j.Command = append([]string{}, d.list...)
	if len(j.Command) == 0 && d.syntax == nil {
		d.problem("command is empty")
	}
}

// environment reads a list of K=V, or an object.
func (d *reader) environment(j *dag.Job) {
	j.HasEnv = true
	d.list = d.list[:0]
	switch d.peek() {
	case '{':
		j.EnvObject = true
		d.object(func(name string) {
			switch {
			case name == "":
				d.problem("the name of an environment variable is empty")
			case strings.ContainsAny(name, "=\x00"):
				d.problem("the name of an environment variable must not have \"=\" or a NUL byte")
			}
			value, _ := d.execString("the value of an environment variable")
			d.list = append(d.list, name+"="+value)
		})
	case '[':
		d.array(func(int) {
			entry, ok := d.execString("an entry of environment")
			if ok && strings.IndexByte(entry, '=') <= 0 {
				d.problem("environment entry " + dag.Quote(entry) + " is not of the form K=V")
			}
			d.list = append(d.list, entry)
		})
	default:
		d.expect('[', "environment, unless it is an object,")
	}
	j.Environment = slices.Clone(d.list)
}
