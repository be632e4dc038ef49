package specjson

import (
	"slices"
	"strconv"
	"strings"

	"github.com/caravan-dag/caravan/dag"
)

// readSpec reads a spec. It returns false when the spec lacks an object of tasks, so that planning
// it would only report the lack again.
//
// Members come in any order, so jobDefaults may follow the tasks that use it. A mistake in it must not
// be reported once for each task that lacks a command: HasDecodeErrors then keeps planning from it.
//
// It and the functions below read one value each, of any kind, and leave the reader after it, whatever
// the value is: so the members that follow are still checked.
func (d *reader) readSpec(s *dag.Spec) bool {
	given, hasTasks, sound := false, false, true
	d.readObject(func(name string) {
		switch name {
		case "tag":
			s.Tag = d.readTag()
		case "tags":
			s.Tags = d.readTags()
		case "parameters":
			s.Parameters = d.readParameters()
		case "jobDefaults":
			s.Defaults = new(dag.Job)
			before := d.Len()
			if d.expectKind('{', "jobDefaults") {
				d.readJob(s.Defaults)
			}
			sound = d.Len() == before
		case "tasks":
			given = true
			if hasTasks = d.expectKind('{', "tasks"); hasTasks {
				if d.stream {
					s.TaskList = d.readTaskList()
				} else {
					s.Tasks = d.readTasks()
				}
			}
		default:
			d.rejectUnknownMember(name, specMembers)
		}
	})
	if !given {
		d.addProblem("tasks is missing")
	}
	if !sound {
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
	taskMembers = "a task has job, " + taskOnlyMembers
	edgeMembers = "an edge has task, match"
)

// rejectUnknownMember reports a member that does not belong here, with the members that do.
func (d *reader) rejectUnknownMember(name, members string) {
	d.addProblem("unknown member " + dag.Quote(name) + ": " + members)
	d.skipValue()
}

// readString reads a string. what names it in a problem, as in "what must be a string". ok is false
// after a problem, which is reported here.
func (d *reader) readString(what string) (value string, ok bool) {
	if !d.expectKind('"', what) {
		return "", false
	}
	value = d.unquote(d.readRaw())
	return value, d.checkLength(what, value, MaxValueBytes)
}

// readExecString reads a string that reaches execve: its arguments end at a NUL byte, so the rest
// of the text would be lost without a trace.
func (d *reader) readExecString(what string) (value string, ok bool) {
	value, ok = d.readString(what)
	if ok && strings.IndexByte(value, 0) >= 0 {
		d.addProblem(what + " must not have a NUL byte")
		return value, false
	}
	return value, ok
}

// checkName checks the name of a task or a parameter. Any text is allowed that an environment variable
// can hold (CARAVAN_TASK); paths of the REST API escape it.
func (d *reader) checkName(what, name string) bool {
	switch {
	case name == "":
		d.addProblem("the name of " + what + " is empty")
	case strings.IndexByte(name, 0) >= 0:
		d.addProblem("the name of " + what + " must not have a NUL byte")
	default:
		return d.checkLength("the name of "+what, name, MaxNameBytes)
	}
	return false
}

// readTags reads the spec's tags, sorted by name. The plan, and every list of runs, has them in
// this order.
func (d *reader) readTags() (labels []dag.Label) {
	if !d.expectKind('{', "tags") {
		return nil
	}
	d.readObject(func(name string) {
		labels = d.addTag(labels, name)
	})
	slices.SortFunc(labels, func(a, b dag.Label) int { return strings.Compare(a.Name, b.Name) })
	return labels
}

// readParameters reads the parameters, sorted by name: the axes of a task are in this order. A
// parameter of a wrong type is kept with an empty value, so that its tokens are not reported as
// unknown too.
func (d *reader) readParameters() (parameters []dag.Parameter) {
	if !d.expectKind('{', "parameters") {
		return nil
	}
	d.readObject(func(name string) {
		if d.checkName("a parameter", name) && strings.ContainsAny(name, "{}") {
			d.addProblem("the name of a parameter must not have braces")
		}
		p := dag.Parameter{Name: name}
		switch d.peekKind() {
		case '[':
			p.List = true
			d.list = d.list[:0]
			d.readArray(func(int) {
				d.list = append(d.list, d.readParameterValue("a value"))
			})
			p.Values = slices.Clone(d.list)
		case '"':
			p.Values = []string{d.readParameterValue("a parameter")}
		default:
			d.expectKind('"', "a parameter, unless it is a list of strings,")
			p.Values = []string{""}
		}
		parameters = append(parameters, p)
	})
	slices.SortFunc(parameters, func(a, b dag.Parameter) int { return strings.Compare(a.Name, b.Name) })
	return parameters
}

// readTasks reads an object of tasks, in the order of the document, which gives them their indexes.
// A task with problems stays in the list, marked, so that edges to it are not unknown.
func (d *reader) readTasks() []dag.TaskSpec {
	var tasks []dag.TaskSpec
	d.readObject(func(name string) {
		t := dag.TaskSpec{Name: name}
		d.checkName("a task", name)
		if d.expectKind('{', "a task") {
			d.readTask(&t)
		} else {
			t.HasDecodeErrors = true
		}
		tasks = append(d.growTasks(tasks), t)
	})
	return tasks
}

// readTaskList reads an object of tasks of any number into a packed list. One TaskSpec is used for
// all of them; the list's own index of names finds duplicates, in place of a second set of a
// million names.
func (d *reader) readTaskList() *dag.TaskList {
	tasks := new(dag.TaskList)
	var t dag.TaskSpec
	d.readMembers(&nameSet{list: tasks}, func(name string) {
		t = dag.TaskSpec{Name: name}
		d.checkName("a task", name)
		if d.expectKind('{', "a task") {
			d.readTask(&t)
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
	rest := float64(d.text.endOffset()-done) / float64(done)
	return slices.Grow(tasks, n/8+int(float64(n)*min(rest*1.1, 16)))
}

// readTask reads the members of a task, an object that is next. Problems in a job or in edges leave
// parts of it out, so they mark the task; a wrong number is zero, which planning accepts.
func (d *reader) readTask(t *dag.TaskSpec) {
	d.readObject(func(name string) {
		before := d.Len()
		switch name {
		case "job":
			if d.expectKind('{', "job") {
				d.readJob(&t.Job)
			}
			t.HasDecodeErrors = t.HasDecodeErrors || d.Len() > before
		case "parents":
			t.Parents = d.readEdges("parents")
			t.HasDecodeErrors = t.HasDecodeErrors || d.Len() > before
		case "children":
			t.Children = d.readEdges("children")
			t.HasDecodeErrors = t.HasDecodeErrors || d.Len() > before
		case "maxRetries":
			t.Retry.MaxRetries = d.readMaxRetries()
		case "retryIntervalSeconds":
			t.Retry.Interval = d.readSeconds("retryIntervalSeconds")
		case "retryMaxIntervalSeconds":
			t.Retry.MaxInterval = d.readSeconds("retryMaxIntervalSeconds")
		case "retryBackoff":
			t.Retry.Backoff = d.readBackoff()
		case "isGenerator":
			if d.expectKind('t', "isGenerator") {
				t.Generator = d.readRaw() == "true"
			}
		default:
			d.rejectUnknownMember(name, taskMembers)
		}
	})
}

// readEdges reads a list of edges: names of tasks, or objects with a task and its match. A wrong
// edge is an empty one: it keeps its place, so that planning reports later edges at their own
// indexes. Both forms may be in one list: ["fetch", {"task": "build", "match": ["OS", "ARCH"]}].
func (d *reader) readEdges(what string) []dag.EdgeSpec {
	if !d.expectKind('[', what) {
		return nil
	}
	d.ends = d.ends[:0]
	d.readArray(func(int) {
		var e dag.EdgeSpec
		before := d.Len()
		if d.peekKind() == '{' {
			d.readEdge(&e)
		} else if e.Task, _ = d.readString("the task of an edge"); e.Task == "" && d.Len() == before {
			d.addProblem("the name of a task is empty")
		}
		if d.Len() > before {
			e = dag.EdgeSpec{}
		}
		d.ends = append(d.ends, e)
	})
	return slices.Clone(d.ends)
}

// readEdge reads an edge that is given as an object, which is next.
func (d *reader) readEdge(e *dag.EdgeSpec) {
	hasTask := false
	d.readObject(func(name string) {
		switch name {
		case "task":
			hasTask = true
			if task, ok := d.readString("the task of an edge"); ok && d.checkName("a task", task) {
				e.Task = task
			}
		case "match":
			if d.expectKind('[', "match") {
				d.readArray(func(int) {
					if p, ok := d.readString("a parameter's name"); ok {
						e.Match = append(e.Match, p)
					}
				})
			}
		default:
			d.rejectUnknownMember(name, edgeMembers)
		}
	})
	if !hasTask {
		d.addProblem("the task of an edge is missing")
	}
}

// readTag reads the spec's tag.
func (d *reader) readTag() string {
	tag, ok := d.readString("tag")
	if !ok || !d.checkLength("tag", tag, MaxTagBytes) {
		return ""
	}
	return strings.Clone(tag) // does not keep the whole document alive
}

// addTag reads the value of a member of tags and appends it to labels.
func (d *reader) addTag(labels []dag.Label, name string) []dag.Label {
	value, ok := d.readString("a tag")
	switch {
	case !ok:
	case !d.checkLength("the name of a tag", name, MaxLabelNameBytes), !d.checkLength("a tag", value, MaxLabelBytes):
	case len(labels) == MaxLabels:
		d.addProblem("there are more than " + strconv.Itoa(MaxLabels) + " tags")
	default:
		labels = append(labels, dag.Label{Name: strings.Clone(name), Value: strings.Clone(value)})
	}
	return labels
}

// readParameterValue reads one value of a parameter.
func (d *reader) readParameterValue(what string) string {
	value, ok := d.readExecString(what)
	if ok && !d.checkLength(what, value, MaxParameterBytes) {
		return ""
	}
	return value
}

// readJob reads a job or jobDefaults, an object that is next. Members that the engine does not know
// are kept as they were written: other executors may use them. timeoutSeconds is kept in that way
// too, so that it is echoed as it was submitted, "1e1" as "1e1".
func (d *reader) readJob(j *dag.Job) {
	d.readObject(func(name string) {
		switch name {
		case "command":
			d.readCommand(j)
		case "commandString":
			j.HasString = true
			j.CommandString, _ = d.readExecString("commandString")
		case "environment":
			d.readEnvironment(j)
		case "workDir":
			j.WorkDir, _ = d.readExecString("workDir")
		case "executor":
			if executor, ok := d.readString("executor"); ok && executor == "" {
				d.addProblem("executor is empty")
			} else {
				j.Executor = executor
			}
		case "cores":
			j.Cores = d.readQuantity("cores")
		case "memoryMB":
			j.MemoryMB = d.readQuantity("memoryMB")
		case "timeoutSeconds":
			raw := d.readTimeout(j)
			j.Other = append(j.Other, dag.Member{Name: name, Raw: raw})
		default:
			d.warnUnknownMember(name)
			raw := d.skipValue()
			d.checkLength("the member", raw, MaxValueBytes)
			j.Other = append(j.Other, dag.Member{Name: name, Raw: raw})
		}
	})
}

// readCommand reads an argv list. It is never nil afterwards, even when it is wrong: a task with a
// wrong command has one, and does not take that of jobDefaults.
func (d *reader) readCommand(j *dag.Job) {
	if !d.expectKind('[', "command") {
		return
	}
	d.list = d.list[:0]
	d.readArray(func(i int) {
		arg, ok := d.readExecString("an argument of command")
		if ok && i == 0 && arg == "" {
			d.addProblem("the program of command is empty")
		}
		d.list = append(d.list, arg)
	})
	j.Command = append([]string{}, d.list...)
	if len(j.Command) == 0 && d.syntax == nil {
		d.addProblem("command is empty")
	}
}

// readEnvironment reads a list of K=V, or an object of names and values, which becomes such a list
// in the order of the document. EnvObject remembers the form, for the pointers of problems.
func (d *reader) readEnvironment(j *dag.Job) {
	j.HasEnv = true
	d.list = d.list[:0]
	switch d.peekKind() {
	case '{':
		j.EnvObject = true
		d.readObject(func(name string) {
			switch {
			case name == "":
				d.addProblem("the name of an environment variable is empty")
			case strings.ContainsAny(name, "=\x00"):
				d.addProblem("the name of an environment variable must not have \"=\" or a NUL byte")
			}
			value, _ := d.readExecString("the value of an environment variable")
			d.list = append(d.list, name+"="+value)
		})
	case '[':
		d.readArray(func(int) {
			entry, ok := d.readExecString("an entry of environment")
			if ok && strings.IndexByte(entry, '=') <= 0 {
				d.addProblem("environment entry " + dag.Quote(entry) + " is not of the form K=V")
			}
			d.list = append(d.list, entry)
		})
	default:
		d.expectKind('[', "environment, unless it is an object,")
	}
	j.Environment = slices.Clone(d.list)
}
