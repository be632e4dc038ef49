package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/caravan-dag/caravan/client"
	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/dag/specjson"
)

func (m *Main) validateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:        "validate FILE",
		SuggestFor: []string{"lint", "verify"},
		Short:      "Check a graph without running it, and list all that is wrong with it",
		Long: "Validate asks the server whether it would accept the graph in FILE (- for standard input).\n" +
			"Where no server answers at the default address, and with --offline, the graph is checked by this\n" +
			"program: by the same rules, but without the limits of a server's machine.",
		Args: args(1, 1, "one FILE"),
	}
	r := m.talks(m.shows(cmd))
	var offline, strict bool
	m.strictFlag(cmd, &strict)
	cmd.Flags().BoolVar(&offline, "offline", false, "ask no server")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		spec, err := m.read(ctx, args[0])
		if err != nil {
			return err
		}
		c, err := r.client()
		if err != nil {
			return err
		}
		var v *client.Validation
		if _, named := r.address(); !offline && (named || r.answers(ctx)) {
			v, err = c.Validate(ctx, spec, client.SubmitOptions{Strict: strict})
		} else {
			v = checkSpec(spec, strict)
		}
		if err != nil {
			return err
		}
		if m.json {
			if err := m.printJSON(v); err != nil {
				return err
			}
		}
		if !v.Valid {
			return &invalidError{text: v.Error, problems: v.Errors}
		}
		if !m.json {
			fmt.Fprintln(m.Stdout, "valid")
			m.warn(v.Warnings)
		}
		return nil
	}
	return cmd
}

// checkSpec judges a document as a server would, the limits of its machine aside.
func checkSpec(doc []byte, strict bool) *client.Validation {
	c := specjson.Check(doc, dag.Limits{})
	if strict {
		c.Strict()
	}
	if len(c.Problems) == 0 {
		return &client.Validation{Valid: true, Warnings: clientProblems(c.Warnings)}
	}
	return &client.Validation{Error: c.Problems.Error(), Errors: clientProblems(c.Problems)}
}

func clientProblems(list dag.Problems) (out []client.Problem) {
	for _, p := range list {
		out = append(out, client.Problem{Pointer: p.Pointer, Message: p.Message})
	}
	return out
}

// strictFlag gives a command the flag that makes warnings errors.
func (m *Main) strictFlag(cmd *cobra.Command, strict *bool) {
	cmd.Flags().BoolVar(strict, "strict", false, "members of jobs that are not known are errors, not warnings")
}

// warn prints warnings about a graph that is taken all the same.
func (m *Main) warn(warnings []client.Problem) {
	for _, w := range warnings {
		text := printable(w.Message)
		if w.Pointer != "" {
			text = printable(w.Pointer) + ": " + text
		}
		fmt.Fprintf(m.Stderr, "caravan: warning: %s\n", text)
	}
}
