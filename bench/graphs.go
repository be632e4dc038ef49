package main

import (
	"encoding/json"
	"fmt"
	"strings"
)

// The graphs of the workloads, once as a document and once as a Makefile.

type task map[string]any

func noop(parameter string, parents ...string) task {
	job := map[string]any{"executor": "noop"}
	if parameter != "" {
		job["command"] = []string{"noop", "{{" + parameter + "}}"}
	}
	return task{"job": job, "parents": parents}
}

// process is a task that runs a program. The parameter, which makes it many, is in
// its environment and not an argument: with one, /bin/true looks for --help in all
// the languages that the machine has, which takes as long again as the rest of it.
func process(program, parameter string, parents ...string) task {
	job := map[string]any{"command": []string{program}}
	if parameter != "" {
		job["environment"] = []string{parameter + "={{" + parameter + "}}"}
	}
	return task{"job": job, "parents": parents}
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

// fan is 1 -> n -> 1, of no-ops, or of a program.
func fan(n int, program string) ([]byte, error) {
	make := noop
	if program != "" {
		make = func(parameter string, parents ...string) task { return process(program, parameter, parents...) }
	}
	return document(map[string][]string{"N": numbers(n)}, map[string]task{
		"first": make(""), "mid": make("N", "first"), "last": make("", "mid"),
	})
}

// fanMakefile is the same for make; recipe is each target's.
func fanMakefile(n int, recipe string) string {
	var b strings.Builder
	fmt.Fprintf(&b, ".PHONY: last first $(MID)\nMID := $(addprefix m,%s)\nlast: $(MID)\n\t%s\n$(MID): first\n\t%s\nfirst:\n\t%s\n",
		strings.Join(numbers(n), " "), recipe, recipe, recipe)
	return b.String()
}

// chain is t0 -> t1 -> … of no-ops.
func chain(n int) ([]byte, error) {
	tasks := map[string]task{"t0": noop("")}
	for i := 1; i < n; i++ {
		tasks[fmt.Sprintf("t%d", i)] = noop("", fmt.Sprintf("t%d", i-1))
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
	tasks := map[string]task{"l0": noop("N")}
	for i := 1; i < n; i++ {
		tasks[fmt.Sprintf("l%d", i)] = noop("N", fmt.Sprintf("l%d", i-1))
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
