package main

import (
	"encoding/json"
	"fmt"
	"strings"
)

// The graphs of the workloads, once as a document and once as a Makefile.

type task map[string]any

func noop(parameters []string, parents ...string) task {
	job := map[string]any{"executor": "noop"}
	if len(parameters) > 0 {
		job["command"] = append([]string{"noop"}, tokens("", parameters)...)
	}
	return task{"job": job, "parents": parents}
}

// process is a task that runs a program. The parameters, which make it many, are in
// its environment and not arguments: with one, /bin/true looks for --help in all
// the languages that the machine has, which takes as long again as the rest of it.
func process(command, parameters []string, parents ...string) task {
	job := map[string]any{"command": command}
	if len(parameters) > 0 {
		job["environment"] = tokens("=", parameters)
	}
	return task{"job": job, "parents": parents}
}

// tokens are references to parameters, each behind its name when there is a sign
// to put between them.
func tokens(sign string, parameters []string) (list []string) {
	for _, p := range parameters {
		token := "{{" + p + "}}"
		if sign != "" {
			token = p + sign + token
		}
		list = append(list, token)
	}
	return list
}

func document(parameters map[string][]string, tasks map[string]task) ([]byte, error) {
	for _, t := range tasks {
		if t["parents"].([]string) == nil {
			t["parents"] = []string{}
		}
	}
	return json.Marshal(map[string]any{"tag": "bench", "parameters": parameters, "tasks": tasks})
}

func numbers(n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprint(i)
	}
	return list
}

// many are parameters with n combinations, in a document that stays small: beyond
// 10,000 the product of two lists, of which one has 1,000 values.
func many(n int) (parameters map[string][]string, names []string) {
	if n <= 10_000 || n%1000 != 0 {
		return map[string][]string{"N": numbers(n)}, []string{"N"}
	}
	return map[string][]string{"M": numbers(n / 1000), "N": numbers(1000)}, []string{"M", "N"}
}

// fan is 1 -> n -> 1, of no-ops, or of a program.
func fan(n int, command ...string) ([]byte, error) {
	make := noop
	if len(command) > 0 {
		make = func(parameters []string, parents ...string) task { return process(command, parameters, parents...) }
	}
	parameters, names := many(n)
	return document(parameters, map[string]task{
		"first": make(nil), "mid": make(names, "first"), "last": make(nil, "mid"),
	})
}

// fanMakefile is the same for make; recipe is each target's.
func fanMakefile(n int, recipe string) string {
	var b strings.Builder
	fmt.Fprintf(&b, ".PHONY: last first $(MID)\nMID := $(addprefix m,%s)\nlast: $(MID)\n\t%s\n$(MID): first\n\t%s\nfirst:\n\t%s\n",
		strings.Join(numbers(n), " "), recipe, recipe, recipe)
	return b.String()
}

// fanNinja is the same for ninja. The files that it names never come to be, so that
// every one is made.
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

// chain is t0 -> t1 -> … of no-ops.
func chain(n int) ([]byte, error) {
	tasks := map[string]task{"t0": noop(nil)}
	for i := 1; i < n; i++ {
		tasks[fmt.Sprintf("t%d", i)] = noop(nil, fmt.Sprintf("t%d", i-1))
	}
	return document(map[string][]string{}, tasks)
}

func chainMakefile(n int, recipe string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "all: t%d\n", n-1)
	for i := n - 1; i > 0; i-- {
		fmt.Fprintf(&b, "t%d: t%d\n\t%s\n", i, i-1, recipe)
	}
	fmt.Fprintf(&b, "t0:\n\t%s\n", recipe)
	return b.String()
}

// layers is n layers of width tasks, each waiting for all of the layer before.
func layers(n, width int) ([]byte, error) {
	tasks := map[string]task{"l0": noop([]string{"N"})}
	for i := 1; i < n; i++ {
		tasks[fmt.Sprintf("l%d", i)] = noop([]string{"N"}, fmt.Sprintf("l%d", i-1))
	}
	return document(map[string][]string{"N": numbers(width)}, tasks)
}

func layersMakefile(n, width int, recipe string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "all: $(addprefix l%d-,%s)\n", n-1, strings.Join(numbers(width), " "))
	for i := range n {
		before := ""
		if i > 0 {
			before = fmt.Sprintf(" $(addprefix l%d-,%s)", i-1, strings.Join(numbers(width), " "))
		}
		fmt.Fprintf(&b, "$(addprefix l%d-,%s):%s\n\t%s\n", i, strings.Join(numbers(width), " "), before, recipe)
	}
	return b.String()
}
