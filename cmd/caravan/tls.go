package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/caravan-dag/caravan/internal/clustertls"
)

// tlsCommand groups the commands about the certificates of a cluster. Alone it prints its help.
func (m *Main) tlsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "tls",
		Short: "Create the certificates of a cluster",
		Long: "The members of a cluster know each other by certificates that the cluster's own authority has signed.\n" +
			"Init creates the authority, node and worker create the certificate of one member.",
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			return cmd.Help()
		},
	}
	cmd.AddCommand(m.tlsInitCommand(), m.tlsMemberCommand(clustertls.Node), m.tlsMemberCommand(clustertls.Worker))
	return cmd
}

// addAuthorityFlag gives cmd the flag of the folder that tls init writes and the others read.
func addAuthorityFlag(cmd *cobra.Command) *string {
	dir := cmd.Flags().String("ca-dir", "./caravan-ca", "`folder` of the authority")
	completeFolder(cmd, "ca-dir")
	return dir
}

// addLifetimeFlag gives cmd the flag of how long its certificate is valid.
func addLifetimeFlag(cmd *cobra.Command, initial time.Duration) *time.Duration {
	lifetime := initial
	cmd.Flags().Var((*duration)(&lifetime), "lifetime", "how long the certificate is valid")
	// Days, as a user would write them, and not 8760h0m0s.
	cmd.Flags().Lookup("lifetime").DefValue = fmt.Sprintf("%dd", initial/(24*time.Hour))
	return &lifetime
}

// minLifetime is the shortest life of a certificate. It leaves time to copy the files to their machine.
const minLifetime = time.Minute

func checkLifetime(lifetime time.Duration) error {
	if lifetime < minLifetime {
		return usageErrorf("--lifetime: %v is too short; it is at least %v", lifetime, minLifetime)
	}
	return nil
}

// tlsInitCommand creates the authority of a cluster. Its key makes members, so the command says where
// it is.
func (m *Main) tlsInitCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Create the authority of a cluster",
		Long: "Init creates the authority of a cluster: ca.pem, and its key ca-key.pem with mode 0600, in the folder\n" +
			"--ca-dir. A holder of the key can make members: keep it apart from the nodes.",
		Args: argCount(0, 0, "no arguments"),
	}
	dir, lifetime := addAuthorityFlag(cmd), addLifetimeFlag(cmd, clustertls.AuthorityLifetime)
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	cmd.RunE = func(*cobra.Command, []string) error {
		if err := checkLifetime(*lifetime); err != nil {
			return err
		}
		if err := checkOutsideDataFolders(*dir); err != nil {
			return err
		}
		end, err := clustertls.CreateAuthority(*dir, *lifetime, time.Now())
		if err != nil {
			return &usageError{err}
		}
		fmt.Fprintf(m.Stderr, "authority created in %s, valid until %s; keep ca-key.pem apart from the nodes\n", *dir, m.formatDay(end))
		return nil
	}
	return cmd
}

// tlsMemberCommand creates or renews the certificate of a node or a worker.
func (m *Main) tlsMemberCommand(role clustertls.Role) *cobra.Command {
	cmd := &cobra.Command{
		Use:   string(role) + " NAME",
		Short: fmt.Sprintf("Create or renew the certificate of a %s", role),
		Long: fmt.Sprintf("It writes ca.pem, %[1]s.pem and %[1]s-key.pem (mode 0600) for the %[1]s NAME into the folder --tls-dir, which\n"+
			"belongs on that machine. In a folder that has the certificate of this %[1]s already, it renews it with\n"+
			"a new key; a running %[1]s takes the new files within a second, without a restart.", role),
		Args: argCount(1, 1, "one NAME"),
	}
	authority, lifetime := addAuthorityFlag(cmd), addLifetimeFlag(cmd, clustertls.CertificateLifetime)
	dir := cmd.Flags().String("tls-dir", "", "`folder` of the member's certificate")
	completeFolder(cmd, "tls-dir")
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		id := clustertls.Identity{Role: role, Name: args[0]}
		if err := clustertls.CheckName(id.Name); err != nil {
			return usageErrorf("%w", err)
		}
		if *dir == "" {
			return usageErrorf("--tls-dir is missing: the folder for the certificate of %s", id)
		}
		if err := checkLifetime(*lifetime); err != nil {
			return err
		}
		if err := checkOutsideDataFolders(*dir); err != nil {
			return err
		}
		a, err := clustertls.OpenAuthority(*authority)
		if err != nil {
			return &usageError{err}
		}
		end, err := a.Issue(*dir, id, *lifetime, time.Now())
		if err != nil {
			return &usageError{err}
		}
		fmt.Fprintf(m.Stderr, "certificate of %s written to %s, valid until %s\n", id, *dir, m.formatDay(end))
		return nil
	}
	return cmd
}

// formatDay formats a moment that is far away: "2027-11-30".
func (m *Main) formatDay(t time.Time) string { return t.In(m.Zone).Format("2006-01-02") }
