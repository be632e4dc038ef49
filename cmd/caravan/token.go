package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/caravan-dag/caravan/http/access"
	"github.com/caravan-dag/caravan/internal/vfs"
)

// tokenCommand groups the commands about tokens. Alone it prints its help.
func (m *Main) tokenCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Create tokens for clients of a server",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			return cmd.Help()
		},
		Args: cobra.ArbitraryArgs,
	}
	cmd.AddCommand(m.tokenNewCommand())
	return cmd
}

// tokenNewCommand makes a secret for a client, and the line for the server's token file, which has
// only a hash of it. Standard output has the secret alone, for
//
//	caravan token new ci submit --token-file tokens > ci.token
//
// and the line, or where it went, is on standard error. The secret is printed after the file is
// written, so that a secret which the user sees is one that the file has.
func (m *Main) tokenNewCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "new NAME SCOPES",
		Short: "Create a token, and its line for the server's token file",
		Long: "New creates a token with SCOPES: read, submit, control, separated by commas. It prints the secret, which is\n" +
			"not stored, and the line for the server's token file. With --token-file it appends the line to that\n" +
			"file, which it creates with mode 0600. A running server reloads the file at SIGHUP.",
		Args: argCount(2, 2, "a NAME and SCOPES"),
	}
	var path string
	cmd.Flags().StringVar(&path, "token-file", "", "append the line to this `file`")
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		if err := access.CheckTokenName(args[0]); err != nil {
			return usageErrorf("%w", err)
		}
		scopes, err := access.ParseScopes(args[1])
		if err != nil {
			return usageErrorf("%w", err)
		}
		secret := access.NewSecret()
		line := access.TokenLine(args[0], scopes, secret)
		if path != "" {
			if err := checkOutsideDataFolders(path); err != nil {
				return err
			}
			if err := addToken(path, line); err != nil {
				return err
			}
		}
		fmt.Fprintln(m.Stdout, secret)
		if path == "" {
			fmt.Fprintf(m.Stderr, "The secret is shown this once. The line for the server's --token-file:\n%s\n", line)
		} else {
			fmt.Fprintf(m.Stderr, "The secret is shown this once. Its line is in %s: send SIGHUP to a running server.\n", path)
		}
		return nil
	}
	return cmd
}

// addToken appends a line to a token file, if the file is valid with it: a name that is there
// already, or a former mistake in the file, is an error, because the server would refuse the whole
// file at the next reload. It creates a missing file with the mode 0600. Appending keeps the user's
// comments and order; of two commands at a time both lines survive.
func addToken(path, line string) error {
	text, err := access.ReadPrivateFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if len(text) > 0 && !strings.HasSuffix(string(text), "\n") {
		line = "\n" + line
	}
	line += "\n"
	if _, err := access.ParseTokens(append(text, line...)); err != nil {
		return fmt.Errorf("token file %s: %w", path, err)
	}
	f, err := vfs.OpenNoFollow(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("token file: %w", err)
	}
	_, err = f.WriteString(line)
	return errors.Join(err, f.Close())
}
