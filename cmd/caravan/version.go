package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/caravan-dag/caravan/client"
)

// versionInfo is what this binary is: what the linker was told, else what the
// build recorded.
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

// versionCommand prints what this binary is, and the server too where one is named.
func (m *Main) versionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program, and of the server if one is named",
		Args:  args(0, 0, "no arguments"),
	}
	r := m.talks(m.shows(cmd))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		own := versionInfo()
		var server *client.Version
		if _, named := r.address(); named {
			c, err := r.client()
			if err != nil {
				return err
			}
			if server, err = c.Version(cmd.Context()); err != nil {
				return err
			}
		}
		if m.json {
			return m.printJSON(struct {
				client.Version
				Server *client.Version `json:"server,omitempty"`
			}{own, server})
		}
		fmt.Fprintf(m.Stdout, "caravan %s\n", describe(own))
		if server != nil {
			fmt.Fprintf(m.Stdout, "server  %s\n", describe(*server))
		}
		return nil
	}
	return cmd
}

func describe(v client.Version) string {
	s := printable(v.Version)
	for _, part := range []string{v.Commit, v.Date, v.Go} {
		if part != "" {
			s += " " + printable(part)
		}
	}
	return s
}
