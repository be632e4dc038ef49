package dag

import (
	"slices"
	"strings"
	"testing"
)

// TestTextsThatCanOnlyFail: what no value of a parameter may make of a task is refused
// at its place, without an expansion of the task.
func TestTextsThatCanOnlyFail(t *testing.T) {
	many := make([]string, 1000)
	for i := range many {
		many[i] = "v"
	}
	parameters := []Parameter{
		{Name: "A", List: true, Values: []string{"a", "x=y"}},
		{Name: "E", List: true, Values: []string{"", "e"}},
		{Name: "F", List: true, Values: []string{"f", ""}},
		{Name: "K", Values: []string{"k"}},
		{Name: "M", List: true, Values: many},
		{Name: "N", List: true, Values: many},
	}
	env := func(entries ...string) Job { return Job{Command: []string{"true"}, HasEnv: true, Environment: entries} }
	for _, c := range []struct {
		name string
		job  Job
		want string // pointer below /tasks/t, and the problem; "" = sound
	}{
		{"= in a name", env("K{{A}}=v"), `/job/environment/0: the name of an environment variable has "=" when "A" is "x=y"`},
		{"= in a name of the second entry", env("X=1", "{{K}}{{A}}=v"), `/job/environment/1: the name of an environment variable has "=" when "A" is "x=y"`},
		{"= in a value", env("K={{A}}", "{{K}}={{A}}"), ""},
		{"empty name", env("{{E}}{{F}}=v"), `/job/environment/0: the name of an environment variable is empty when "E" and others are empty`},
		{"name that is never empty", env("{{E}}{{K}}=v", "_{{E}}=v", "K={{E}}"), ""},
		{"in a product of 1,000,000", env("{{M}}{{N}}{{A}}=v"), `/job/environment/0: the name of an environment variable has "=" when "A" is "x=y"`},
		{"empty program", Job{Command: []string{"{{E}}", "x"}}, `/job/command/0: the program of command is empty when "E" is empty`},
		{"empty argument", Job{Command: []string{"x", "{{E}}"}}, ""},
		{"program with a token", Job{Command: []string{"./{{E}}"}}, ""},
		{"empty command string", Job{CommandString: "{{E}}", HasString: true}, ""},
		{"command string and environment", Job{CommandString: "{{A}}", HasString: true, HasEnv: true, Environment: []string{"{{A}}=1"}}, `/job/environment/0: the name of an environment variable has "=" when "A" is "x=y"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, problems := NewPlan(&Spec{Parameters: parameters, Tasks: []TaskSpec{{Name: "t", Job: c.job}}}, Limits{})
			checkOne(t, problems, "/tasks/t", c.want)
		})
	}
	defaults := env("{{A}}=v")
	_, problems := NewPlan(&Spec{Parameters: parameters, Defaults: &defaults, Tasks: []TaskSpec{{Name: "t"}, {Name: "u"}}}, Limits{})
	checkOne(t, problems, "/jobDefaults", `/environment/0: the name of an environment variable has "=" when "A" is "x=y"`)
}

// TestGeneratorsNeedACommand is refused, also when the executor is a default.
func TestGeneratorsNeedACommand(t *testing.T) {
	const want = `/isGenerator: a generator must print tasks, and executor "noop" does not run a command`
	_, problems := NewPlan(&Spec{Tasks: []TaskSpec{{Name: "t", Generator: true, Job: Job{Executor: "noop"}}}}, Limits{})
	checkOne(t, problems, "/tasks/t", want)
	_, problems = NewPlan(&Spec{Defaults: &Job{Executor: "noop"}, Tasks: []TaskSpec{{Name: "t", Generator: true}}}, Limits{})
	checkOne(t, problems, "/tasks/t", want)
}

func checkOne(t *testing.T, problems Problems, at, want string) {
	t.Helper()
	got := make([]string, 0, len(problems))
	for _, p := range problems {
		got = append(got, strings.TrimPrefix(p.Pointer, at)+": "+p.Message)
	}
	if want == "" && len(got) > 0 || want != "" && !slices.Equal(got, []string{want}) {
		t.Errorf("got %q, want %q", got, want)
	}
}
