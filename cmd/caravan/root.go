package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/caravan-dag/caravan/client"
)

// newRootCommand builds the command tree for one invocation.
func (m *Main) newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "caravan",
		Short:         "Run graphs of tasks, durably",
		Long:          "Caravan runs directed acyclic graphs of tasks: each task once, in dependency order, with retries, cancellation and live status.",
		Version:       formatVersion(versionInfo()),
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
		if cmd.Use == cmd.Name() { // commands without arguments complete no file names
			cmd.ValidArgsFunction = cobra.NoFileCompletions
		}
	}
	return root
}

// argCount requires between least and most arguments. names describes them in the error.
func argCount(least, most int, names string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < least || len(args) > most {
			return usageErrorf("%s takes %s, not %s: caravan %s", cmd.Name(), names, pluralize(len(args), "argument"), cmd.Use)
		}
		return nil
	}
}

// addOutputFlag gives cmd the flag -o/--output.
func (m *Main) addOutputFlag(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().VarP((*outputFormat)(&m.jsonOutput), "output", "o", "output `format`: table or json")
	completeFlag(cmd, "output", "table", "json")
	return cmd
}

// outputFormat is the value of --output; true means json.
type outputFormat bool

func (f *outputFormat) String() string {
	if f != nil && *f {
		return "json"
	}
	return "table"
}

func (f *outputFormat) Type() string { return "format" }

func (f *outputFormat) Set(s string) error {
	switch s {
	case "json":
		*f = true
	case "table":
		*f = false
	default:
		return fmt.Errorf("%q must be table or json", s)
	}
	return nil
}

// parseRunID parses a run ID of the command line.
func parseRunID(s string) (uint64, error) {
	id, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, usageErrorf("invalid run ID %q: must be a non-negative integer", s)
	}
	return id, nil
}

// readDocument reads a file, or Stdin for "-".
func (m *Main) readDocument(ctx context.Context, path string) ([]byte, error) {
	if path == "-" {
		return readStdin(ctx, m.Stdin)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, &usageError{err}
	}
	return b, nil
}

// readStdin reads until the end of the stream or of the context: input from a terminal may never
// end.
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

// versionInfo describes this binary by what the linker set, else by what the build recorded.
func versionInfo() client.Version {
	v := client.Version{Version: version, Commit: commit, Date: date, Go: runtime.Version()}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			switch {
			case s.Key == "vcs.revision" && v.Commit == "":
				v.Commit = s.Value
			case s.Key == "vcs.time" && v.Date == "":
				v.Date = s.Value
			}
		}
	}
	if v.Version == "" {
		v.Version = "dev"
	}
	return v
}

// versionCommand prints the version of this binary, and of the server if the user names one.
func (m *Main) versionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program, and of the server if one is named",
		Args:  argCount(0, 0, "no arguments"),
	}
	r := m.addServerFlags(m.addOutputFlag(cmd))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		own := versionInfo()
		var server *client.Version
		if _, named := r.address(); named {
			c, err := r.newClient()
			if err != nil {
				return err
			}
			if server, err = c.Version(cmd.Context()); err != nil {
				return err
			}
		}
		if m.jsonOutput {
			return m.printJSON(struct {
				client.Version
				Server *client.Version `json:"server,omitempty"`
			}{own, server})
		}
		fmt.Fprintf(m.Stdout, "caravan %s\n", formatVersion(own))
		if server != nil {
			fmt.Fprintf(m.Stdout, "server  %s\n", formatVersion(*server))
		}
		return nil
	}
	return cmd
}

func formatVersion(v client.Version) string {
	s := printable(v.Version)
	for _, part := range []string{v.Commit, v.Date, v.Go} {
		if part != "" {
			s += " " + printable(part)
		}
	}
	return s
}
