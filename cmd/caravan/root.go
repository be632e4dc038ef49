package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/caravan-dag/caravan/client"
)

// root is the command tree. It is built anew for every invocation: nothing of it
// is kept.
func (m *Main) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "caravan",
		Short:         "Run graphs of tasks, durably",
		Long:          "Caravan runs directed acyclic graphs of tasks: each task once, in order, retried, killable, seen.",
		Version:       describe(versionInfo()),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			return cmd.Help()
		},
	}
	root.SetIn(m.Stdin)
	root.SetOut(m.Stdout)
	root.SetErr(m.Stderr)
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetVersionTemplate("caravan {{.Version}}\n")
	root.SetFlagErrorFunc(flagError)
	root.SetHelpCommand(helpCommand(root))
	root.AddCommand(
		m.serveCommand(), m.checkCommand(), m.salvageCommand(), m.runCommand(), m.submitCommand(), m.validateCommand(),
		m.lsCommand(), m.getCommand(), m.logsCommand(), m.eventsCommand(), m.waitCommand(),
		m.killCommand(), m.stateCommand("pause", client.Paused), m.stateCommand("resume", client.Running),
		m.stateCommand("restart", client.Queued), m.versionCommand(), m.tokenCommand(), m.completionCommand(), m.workerCommand(),
		m.backupCommand(), m.restoreCommand(),
	)
	for _, cmd := range root.Commands() {
		if cmd.Use == cmd.Name() { // it takes no arguments, and so no files
			cmd.ValidArgsFunction = cobra.NoFileCompletions
		}
	}
	return root
}

// args demands between least and most arguments; names says what they are.
func args(least, most int, names string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < least || len(args) > most {
			return usagef("%s takes %s, not %s: caravan %s", cmd.Name(), names, plural(len(args), "argument"), cmd.Use)
		}
		return nil
	}
}

// shows gives cmd the flag -o/--output.
func (m *Main) shows(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().VarP((*format)(&m.json), "output", "o", "`format` of what is printed: table or json")
	words(cmd, "output", "table", "json")
	return cmd
}

// format is the value of --output; true is json.
type format bool

func (f *format) String() string {
	if f != nil && *f {
		return "json"
	}
	return "table"
}

func (f *format) Type() string { return "format" }

func (f *format) Set(s string) error {
	switch s {
	case "json":
		*f = true
	case "table":
		*f = false
	default:
		return fmt.Errorf("%q is neither table nor json", s)
	}
	return nil
}

// runID reads a run's id from the command line.
func runID(s string) (uint64, error) {
	id, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, usagef("%q is no run id: those are numbers from 0 upwards", s)
	}
	return id, nil
}

// read reads a document from a file, or from Stdin for "-".
func (m *Main) read(ctx context.Context, path string) ([]byte, error) {
	if path == "-" {
		return readStdin(ctx, m.Stdin)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, &usageError{err}
	}
	return b, nil
}

// readStdin reads to the end, or to the end of the context: a terminal may never end.
func readStdin(ctx context.Context, r io.Reader) ([]byte, error) {
	type result struct {
		b   []byte
		err error
	}
	done := make(chan result, 1)
	go func() {
		var buf bytes.Buffer
		_, err := buf.ReadFrom(r)
		done <- result{buf.Bytes(), err}
	}()
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case r := <-done:
		if r.err != nil {
			return nil, fmt.Errorf("standard input: %w", r.err)
		}
		return r.b, nil
	}
}
