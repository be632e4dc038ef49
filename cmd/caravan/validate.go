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
		Use:   "validate FILE",
		Short: "Check a graph without running it, and list all that is wrong with it",
		Long: "Validate asks the server whether it would accept the graph in FILE (- for standard input).\n" +
			"Where no server answers at the default address, and with --offline, the graph is checked by this\n" +
			"program: by the same rules, but without the limits of a server's machine.",
		Args: args(1, 1, "one FILE"),
	}
	r := m.talks(m.shows(cmd))
	var offline bool
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
			v, err = c.Validate(ctx, spec)
		} else {
			v = checkSpec(spec)
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
		}
		return nil
	}
	return cmd
}

// checkSpec judges a document as a server would, the limits of its machine aside.
func checkSpec(doc []byte) *client.Validation {
	_, problems := specjson.Plan(doc, dag.Limits{})
	if len(problems) == 0 {
		return &client.Validation{Valid: true}
	}
	v := &client.Validation{Error: problems.Error()}
	for _, p := range problems {
		v.Errors = append(v.Errors, client.Problem{Pointer: p.Pointer, Message: p.Message})
	}
	return v
}
