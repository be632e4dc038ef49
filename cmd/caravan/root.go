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

// newRootCommand builds the command tree for one invocation. Values of flags live in the closures of
// the commands, so a tree is executed once.
//
// cobra neither prints errors (SilenceErrors) nor follows them with the usage (SilenceUsage): Run
// prints one line, and maps the error to the exit code. Therefore the root takes any arguments:
// cobra's own error for an unknown command would lack the type usageError, and so the code 2.
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
	root.CompletionOptions.DisableDefaultCmd = true // completionCommand is in its place
	root.SetVersionTemplate("caravan {{.Version}}\n")
	root.SetFlagErrorFunc(flagError)
	root.SetHelpCommand(helpCommand(root))
	root.AddCommand(
		m.serveCommand(), m.checkCommand(), m.salvageCommand(), m.runCommand(), m.submitCommand(), m.validateCommand(),
		m.lsCommand(), m.getCommand(), m.logsCommand(), m.eventsCommand(), m.waitCommand(),
		m.killCommand(), m.stateCommand("pause", client.Paused), m.stateCommand("resume", client.Running),
		m.stateCommand("restart", client.Queued), m.versionCommand(), m.tokenCommand(), m.tlsCommand(), m.clusterCommand(), m.completionCommand(), m.workerCommand(),
		m.backupCommand(), m.restoreCommand(),
	)
	for _, cmd := range root.Commands() {
		if cmd.Use == cmd.Name() { // commands without arguments complete no file names
			cmd.ValidArgsFunction = cobra.NoFileCompletions
		}
	}
	return root
}

// argCount requires between least and most arguments. names describes them in the error, such as "the
// ID of a run and the name of a TASK". The validators of cobra return plain errors, whose exit code
// would be 1.
func argCount(least, most int, names string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < least || len(args) > most {
			return usageErrorf("%s takes %s, not %s: caravan %s", cmd.Name(), names, pluralize(len(args), "argument"), cmd.Use)
		}
		return nil
	}
}

// addOutputFlag gives cmd the flag -o/--output, which sets m.jsonOutput, and returns cmd. All
// commands share the one field: only one of them runs.
func (m *Main) addOutputFlag(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().VarP((*outputFormat)(&m.jsonOutput), "output", "o", "output `format`: table or json")
	completeFlag(cmd, "output", "table", "json")
	return cmd
}

// outputFormat is the value of --output; true means json. It is the bool itself, so that code which
// prints asks m.jsonOutput and the words "table" and "json" occur here only.
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

// parseRunID parses a run ID of the command line: decimal digits, without a sign. The error is a
// usageError, so a typing mistake has the code 2 and an unknown run 6.
func parseRunID(s string) (uint64, error) {
	id, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, usageErrorf("invalid run ID %q: must be a non-negative integer", s)
	}
	return id, nil
}

// readDocument reads the whole file at path, or Stdin for "-". The server bounds its size, not this
// program. A file that cannot be read is a usageError.
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
// end, and a read of it cannot be interrupted. After the end of the context the goroutine stays in
// its read until the process exits. The error is then the cause of the context.
func readStdin(ctx context.Context, r io.Reader) ([]byte, error) {
	type result struct {
		b   []byte
		err error
	}
	done := make(chan result, 1) // takes the result that may come after the end of the context
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

// versionInfo describes this binary by what the linker set, else by what the build recorded (package
// runtime/debug): "vcs.revision" and "vcs.time" are there after a build in a clone. Without a version
// the binary calls itself "dev". GET /version, backups and the User-Agent of clients show it, too.
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

// versionCommand prints the version of this binary, and of the server if the user names one. A server
// at the default address is not asked: `caravan version` works without a server, in scripts and in
// reports of errors.
//
//	caravan v1.2.0 4f2c… 2026-11-30T08:00:00Z go1.26.8
//	server  v1.2.0 4f2c… 2026-11-30T08:00:00Z go1.26.8
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

// formatVersion joins the known parts of a version with blanks. They may come from a server.
func formatVersion(v client.Version) string {
	s := printable(v.Version)
	for _, part := range []string{v.Commit, v.Date, v.Go} {
		if part != "" {
			s += " " + printable(part)
		}
	}
	return s
}
