package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/caravan-dag/caravan/client"
)

func (m *Main) submitCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:        "submit FILE",
		SuggestFor: []string{"trigger", "create", "apply", "post", "enqueue"},
		Short:      "Submit a graph to a server and print the run's id",
		Long: "Submit sends the graph in FILE (- for standard input) to a server and prints the id of its run.\n" +
			"The run is durable by then. Every submission carries an idempotency key, so that one whose answer\n" +
			"is lost is repeated safely; give your own to make the command itself safe to repeat.\n\n" +
			"With --lines FILE has a graph per line, of which there may be any number: they are sent in one request.",
		Args: args(1, 1, "one FILE"),
	}
	r := m.talks(m.shows(cmd))
	var wait, lines, strict bool
	m.strictFlag(cmd, &strict)
	var key string
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until the run has ended, and exit by how it did")
	cmd.Flags().StringVar(&key, "idempotency-key", "", "the same `key` and document always give the same run")
	cmd.Flags().BoolVar(&lines, "lines", false, "FILE has a graph per line: print an id per line, - for one that is refused")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		if lines {
			if wait {
				return usagef("--wait is for one graph: it does not go with --lines")
			}
			return m.submitLines(ctx, r, args[0], client.SubmitOptions{IdempotencyKey: key, Strict: strict})
		}
		spec, err := m.read(ctx, args[0])
		if err != nil {
			return err
		}
		c, err := r.client()
		if err != nil {
			return err
		}
		id, err := c.Submit(ctx, spec, client.SubmitOptions{IdempotencyKey: orRandom(key), Strict: strict, Warned: m.warn})
		if err != nil {
			return err
		}
		if !wait {
			return m.printRunID(id)
		}
		if !m.json {
			fmt.Fprintln(m.Stdout, id)
		}
		return m.await(ctx, c, id)
	}
	return cmd
}

// submitLines sends a graph per line, and prints what became of each as it becomes
// known.
func (m *Main) submitLines(ctx context.Context, r *remote, path string, o client.SubmitOptions) error {
	in := m.Stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return &usageError{err}
		}
		defer f.Close()
		in = f
	}
	c, err := r.client()
	if err != nil {
		return err
	}
	o.IdempotencyKey = orRandom(o.IdempotencyKey)
	line, refused := 0, 0
	for s, err := range c.SubmitLines(ctx, in, o) {
		line++
		if err != nil {
			return fmt.Errorf("line %d and what follows: %w", line, err)
		}
		if s.Err != nil {
			refused++
			fmt.Fprintf(m.Stderr, "line %d: %s\n", line, printable(s.Err.Error()))
		}
		for _, w := range s.Warnings {
			m.warn([]client.Problem{{Pointer: w.Pointer, Message: fmt.Sprintf("line %d: %s", line, w.Message)}})
		}
		switch {
		case m.json && s.Err != nil:
			err = json.NewEncoder(m.Stdout).Encode(client.Validation{Error: s.Err.Error(), Errors: s.Err.Problems})
		case m.json:
			err = json.NewEncoder(m.Stdout).Encode(runIDOf{s.RunID})
		case s.Err != nil:
			_, err = fmt.Fprintln(m.Stdout, "-")
		default:
			_, err = fmt.Fprintln(m.Stdout, s.RunID)
		}
		if err != nil {
			return err
		}
	}
	if refused > 0 {
		return &invalidError{text: fmt.Sprintf("%d of %s refused", refused, plural(line, "graph"))}
	}
	return nil
}

// runIDOf is a run's id as the API gives it.
type runIDOf struct {
	RunID uint64 `json:"runID"`
}

// orRandom is the user's idempotency key, or one that nobody else has.
func orRandom(key string) string {
	if key != "" {
		return key
	}
	return "caravan-cli-" + rand.Text()
}

func (m *Main) printRunID(id uint64) error {
	if m.json {
		return m.printJSON(runIDOf{id})
	}
	_, err := fmt.Fprintln(m.Stdout, id)
	return err
}
