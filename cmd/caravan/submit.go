package main

import (
	"crypto/rand"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/caravan-dag/caravan/client"
)

func (m *Main) submitCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "submit FILE",
		Short: "Submit a graph to a server and print the run's id",
		Long: "Submit sends the graph in FILE (- for standard input) to a server and prints the id of its run.\n" +
			"The run is durable by then. Every submission carries an idempotency key, so that one whose answer\n" +
			"is lost is repeated safely; give your own to make the command itself safe to repeat.",
		Args: args(1, 1, "one FILE"),
	}
	r := m.talks(m.shows(cmd))
	var wait bool
	var key string
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until the run has ended, and exit by how it did")
	cmd.Flags().StringVar(&key, "idempotency-key", "", "the same `key` and document always give the same run")
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
		id, err := c.Submit(ctx, spec, client.SubmitOptions{IdempotencyKey: orRandom(key)})
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

// orRandom is the user's idempotency key, or one that nobody else has.
func orRandom(key string) string {
	if key != "" {
		return key
	}
	return "caravan-cli-" + rand.Text()
}

func (m *Main) printRunID(id uint64) error {
	if m.json {
		return m.printJSON(struct {
			RunID uint64 `json:"runID"`
		}{id})
	}
	_, err := fmt.Fprintln(m.Stdout, id)
	return err
}
