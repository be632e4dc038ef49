package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/caravan-dag/caravan/client"
	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/dag/specjson"
)

// submitCommand prints the ID of the new run, alone on a line, so that a script can take it:
//
//	run=$(caravan submit graph.json) && caravan wait "$run"
//
// The ID is printed when the run is durable. Warnings about the graph go to standard error. With
// --wait the command goes on as wait does, and its exit code is that of the run.
func (m *Main) submitCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:        "submit FILE",
		SuggestFor: []string{"trigger", "create", "apply", "post", "enqueue"},
		Short:      "Submit a graph to a server and print the run ID",
		Long: "Submit sends the graph in FILE (- for standard input) to a server and prints the ID of its run.\n" +
			"The run is durable by then. Every submission carries an idempotency key, so that it can be repeated\n" +
			"safely when the answer is lost. With your own key the command itself is safe to repeat.\n\n" +
			"With --lines FILE has a graph per line. They are sent in one request.",
		Args: argCount(1, 1, "one FILE"),
	}
	r := m.addServerFlags(m.addOutputFlag(cmd))
	var wait, lines, strict bool
	m.addStrictFlag(cmd, &strict)
	var key string
	cmd.Flags().BoolVar(&wait, "wait", false, "wait for the end of the run, and exit by its outcome")
	cmd.Flags().StringVar(&key, "idempotency-key", "", "the same `key` and document always give the same run")
	cmd.Flags().BoolVar(&lines, "lines", false, "FILE has a graph per line: print an ID per line, or - for a refused one")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		if lines {
			if wait {
				return usageErrorf("--wait is for one graph and cannot be combined with --lines")
			}
			return m.submitLines(ctx, r, args[0], client.SubmitOptions{IdempotencyKey: key, Strict: strict})
		}
		spec, err := m.readDocument(ctx, args[0])
		if err != nil {
			return err
		}
		c, err := r.newClient()
		if err != nil {
			return err
		}
		id, err := c.Submit(ctx, spec, client.SubmitOptions{IdempotencyKey: keyOrRandom(key), Strict: strict, Warned: m.printWarnings})
		if err != nil {
			return err
		}
		if !wait {
			return m.printRunID(id)
		}
		if !m.jsonOutput { // the summary at the end has the ID
			fmt.Fprintln(m.Stdout, id)
		}
		return m.waitAndReport(ctx, c, id)
	}
	return cmd
}

// submitLines submits a graph per line, and prints the result of each as soon as it is known: line
// n of the output is about line n of the input. A refused graph does not stop the others; the exit
// code is then 5. An error of the request as a whole, such as a server that stops, ends the
// command: the lines without a result may or may not have been accepted, and repeating the command
// is safe with a key of the user's own.
//
// The input is sent while it is read, so it may be longer than the memory, or a pipe that grows.
// With -o json each line is {"runID":7}, or what /validate answers for a refused graph.
func (m *Main) submitLines(ctx context.Context, r *serverFlags, path string, o client.SubmitOptions) error {
	in := m.Stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return &usageError{err}
		}
		defer f.Close()
		in = f
	}
	c, err := r.newClient()
	if err != nil {
		return err
	}
	o.IdempotencyKey = keyOrRandom(o.IdempotencyKey)
	line, refused := 0, 0 // line counts from 1, as editors do
	for s, err := range c.SubmitLines(ctx, in, o) {
		line++
		if err != nil {
			return fmt.Errorf("line %d and the following lines: %w", line, err)
		}
		if s.Err != nil {
			refused++
			fmt.Fprintf(m.Stderr, "line %d: %s\n", line, printable(s.Err.Error()))
		}
		for _, w := range s.Warnings {
			m.printWarnings([]client.Problem{{Pointer: w.Pointer, Message: fmt.Sprintf("line %d: %s", line, w.Message)}})
		}
		switch {
		case m.jsonOutput && s.Err != nil:
			err = json.NewEncoder(m.Stdout).Encode(client.Validation{Error: s.Err.Error(), Errors: s.Err.Problems})
		case m.jsonOutput:
			err = json.NewEncoder(m.Stdout).Encode(runIDResult{s.RunID})
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
		return &invalidError{text: fmt.Sprintf("%d of %s refused", refused, pluralize(line, "graph"))}
	}
	return nil
}

// runIDResult is the run ID in the form of the API: {"runID": 7}.
type runIDResult struct {
	RunID uint64 `json:"runID"`
}

// keyOrRandom returns the user's idempotency key, or a unique one: 128 bits from crypto/rand. With
// it the client may repeat a submission whose answer was lost. A key of the user's own also covers
// a repetition of the whole command.
func keyOrRandom(key string) string {
	if key != "" {
		return key
	}
	return "caravan-cli-" + rand.Text()
}

// printRunID prints a run ID alone, or as the API answers it.
func (m *Main) printRunID(id uint64) error {
	if m.jsonOutput {
		return m.printJSON(runIDResult{id})
	}
	_, err := fmt.Fprintln(m.Stdout, id)
	return err
}

// validateCommand prints "valid", or the problems on standard error with the exit code 5. With -o
// json the judgement is on standard output in both cases, and the problems are on standard error,
// too. A named server that does not answer is an error (7), because its limits are what the user
// asks about; the default address without a server is not.
func (m *Main) validateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:        "validate FILE",
		SuggestFor: []string{"lint", "verify"},
		Short:      "Check a graph without running it, and list all its problems",
		Long: "Validate asks the server whether it would accept the graph in FILE (- for standard input).\n" +
			"If no server answers at the default address, or with --offline, this program checks the graph:\n" +
			"by the same rules, but without the limits of a server's machine.",
		Args: argCount(1, 1, "one FILE"),
	}
	r := m.addServerFlags(m.addOutputFlag(cmd))
	var offline, strict bool
	m.addStrictFlag(cmd, &strict)
	cmd.Flags().BoolVar(&offline, "offline", false, "do not ask a server")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		spec, err := m.readDocument(ctx, args[0])
		if err != nil {
			return err
		}
		c, err := r.newClient()
		if err != nil {
			return err
		}
		var v *client.Validation
		if _, named := r.address(); !offline && (named || r.isReachable(ctx)) {
			v, err = c.Validate(ctx, spec, client.SubmitOptions{Strict: strict})
		} else {
			v = checkSpecOffline(spec, strict)
		}
		if err != nil {
			return err
		}
		if m.jsonOutput {
			if err := m.printJSON(v); err != nil {
				return err
			}
		}
		if !v.Valid {
			return &invalidError{text: v.Error, problems: v.Errors}
		}
		if !m.jsonOutput {
			fmt.Fprintln(m.Stdout, "valid")
			m.printWarnings(v.Warnings)
		}
		return nil
	}
	return cmd
}

// checkSpecOffline checks a document as a server would, without the limits of the server's machine:
// cores, memory, the executors it has, the longest command that its kernel takes. strict makes
// errors of the warnings.
func checkSpecOffline(doc []byte, strict bool) *client.Validation {
	c := specjson.Check(doc, dag.Limits{})
	if strict {
		c.Strict()
	}
	if len(c.Problems) == 0 {
		return &client.Validation{Valid: true, Warnings: toClientProblems(c.Warnings)}
	}
	return &client.Validation{Error: c.Problems.Error(), Errors: toClientProblems(c.Problems)}
}

// toClientProblems converts problems to the type of the API, as a server's answer would bring them.
func toClientProblems(list dag.Problems) (out []client.Problem) {
	for _, p := range list {
		out = append(out, client.Problem{Pointer: p.Pointer, Message: p.Message})
	}
	return out
}

// addStrictFlag gives a command the flag that turns warnings into errors. Warnings are about
// members of a job that this version does not know: they may be a typing mistake, or meant for
// another executor.
func (m *Main) addStrictFlag(cmd *cobra.Command, strict *bool) {
	cmd.Flags().BoolVar(strict, "strict", false, "unknown members of jobs are errors instead of warnings")
}

// printWarnings prints the warnings about a graph that is accepted, a line each, on standard error.
// They do not change the exit code.
func (m *Main) printWarnings(warnings []client.Problem) {
	for _, w := range warnings {
		text := printable(w.Message)
		if w.Pointer != "" {
			text = printable(w.Pointer) + ": " + text
		}
		fmt.Fprintf(m.Stderr, "caravan: warning: %s\n", text)
	}
}
