package main

import (
	"encoding/json"
	"fmt"
	"strings"
)

// The graphs of the workloads, once as a document and once as a Makefile. Both forms have the same
// tasks and edges. They are made before the measurement begins; reading them is part of it, for Caravan
// as for the references.

// taskSpec is a task of a document, by the names of its JSON members.
type taskSpec map[string]any

// noopTask is a task without a process. The parameters that it expands over are in its command,
// which a no-op does not run: without a reference to a parameter it would be one task.
func noopTask(parameters []string, parents ...string) taskSpec {
	job := map[string]any{"executor": "noop"}
	if len(parameters) > 0 {
		job["command"] = append([]string{"noop"}, parameterTokens("", parameters)...)
	}
	return taskSpec{"job": job, "parents": parents}
}

// processTask is a task that runs a program. Its parameters are in the environment and not in the
// arguments: with an argument, /bin/true looks for --help in all languages of the machine, which
// doubles its time.
func processTask(command, parameters []string, parents ...string) taskSpec {
	job := map[string]any{"command": command}
	if len(parameters) > 0 {
		job["environment"] = parameterTokens("=", parameters)
	}
	return taskSpec{"job": job, "parents": parents}
}

// parameterTokens returns references to parameters, each preceded by its name and the sign if the
// sign is not empty: "{{N}}" for the sign "", "N={{N}}" for "=".
func parameterTokens(sign string, parameters []string) (list []string) {
	for _, p := range parameters {
		token := "{{" + p + "}}"
		if sign != "" {
			token = p + sign + token
		}
		list = append(list, token)
	}
	return list
}

// graphDocument returns the JSON of a graph, as it is submitted.
func graphDocument(parameters map[string][]string, tasks map[string]taskSpec) ([]byte, error) {
	for _, t := range tasks {
		if t["parents"].([]string) == nil {
			t["parents"] = []string{}
		}
	}
	return json.Marshal(map[string]any{"tag": "bench", "parameters": parameters, "tasks": tasks})
}

// numberStrings returns the numbers from 0 to n-1 in decimal digits.
func numberStrings(n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprint(i)
	}
	return list
}

// parameterProduct returns parameters with n combinations in a small document. Beyond 10,000 they
// are the product of two lists, one of which has 1,000 values: 1,000,000 tasks are a document of 12 KB.
// A document that lists each task would measure its transfer and its parser. n that is not a multiple
// of 1,000 gives a single list.
func parameterProduct(n int) (parameters map[string][]string, names []string) {
	if n <= 10_000 || n%1000 != 0 {
		return map[string][]string{"N": numberStrings(n)}, []string{"N"}
	}
	return map[string][]string{"M": numberStrings(n / 1000), "N": numberStrings(1000)}, []string{"M", "N"}
}

// fanGraph is 1 -> n -> 1, of no-ops or of a program.
func fanGraph(n int, command ...string) ([]byte, error) {
	make := noopTask
	if len(command) > 0 {
		make = func(parameters []string, parents ...string) taskSpec {
			return processTask(command, parameters, parents...)
		}
	}
	parameters, names := parameterProduct(n)
	return graphDocument(parameters, map[string]taskSpec{
		"first": make(nil), "mid": make(names, "first"), "last": make(nil, "mid"),
	})
}

// fanMakefile is the same graph for make. All targets have the recipe. They are phony, so make does not
// look for files of their names.
func fanMakefile(n int, recipe string) string {
	var b strings.Builder
	fmt.Fprintf(&b, ".PHONY: last first $(MID)\nMID := $(addprefix m,%s)\nlast: $(MID)\n\t%s\n$(MID): first\n\t%s\nfirst:\n\t%s\n",
		strings.Join(numberStrings(n), " "), recipe, recipe, recipe)
	return b.String()
}

// fanNinja is the same graph for ninja. The files that it names never exist, so that ninja makes all
// of them.
func fanNinja(n int, command string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "rule run\n  command = %s\nbuild first: run\n", command)
	for i := range n {
		fmt.Fprintf(&b, "build m%d: run first\n", i)
	}
	b.WriteString("build last: run")
	for i := range n {
		fmt.Fprintf(&b, " m%d", i)
	}
	b.WriteString("\ndefault last\n")
	return b.String()
}

// chainGraph is t0 -> t1 -> … of no-ops.
func chainGraph(n int) ([]byte, error) {
	tasks := map[string]taskSpec{"t0": noopTask(nil)}
	for i := 1; i < n; i++ {
		tasks[fmt.Sprintf("t%d", i)] = noopTask(nil, fmt.Sprintf("t%d", i-1))
	}
	return graphDocument(map[string][]string{}, tasks)
}

// chainMakefile is the same graph for make. Its targets are names of files that do not exist.
func chainMakefile(n int, recipe string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "all: t%d\n", n-1)
	for i := n - 1; i > 0; i-- {
		fmt.Fprintf(&b, "t%d: t%d\n\t%s\n", i, i-1, recipe)
	}
	fmt.Fprintf(&b, "t0:\n\t%s\n", recipe)
	return b.String()
}

// layeredGraph has n layers of width tasks. Each task waits for the whole layer before it, which is
// (n-1) * width * width edges between tasks, and n-1 between templates.
func layeredGraph(n, width int) ([]byte, error) {
	tasks := map[string]taskSpec{"l0": noopTask([]string{"N"})}
	for i := 1; i < n; i++ {
		tasks[fmt.Sprintf("l%d", i)] = noopTask([]string{"N"}, fmt.Sprintf("l%d", i-1))
	}
	return graphDocument(map[string][]string{"N": numberStrings(width)}, tasks)
}

// layersMakefile is the same graph for make, with every edge between two tasks.
func layersMakefile(n, width int, recipe string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "all: $(addprefix l%d-,%s)\n", n-1, strings.Join(numberStrings(width), " "))
	for i := range n {
		before := ""
		if i > 0 {
			before = fmt.Sprintf(" $(addprefix l%d-,%s)", i-1, strings.Join(numberStrings(width), " "))
		}
		fmt.Fprintf(&b, "$(addprefix l%d-,%s):%s\n\t%s\n", i, strings.Join(numberStrings(width), " "), before, recipe)
	}
	return b.String()
}
