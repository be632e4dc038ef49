package specjson

import (
	"slices"
	"strings"

	"github.com/caravan-dag/caravan/dag"
)

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
