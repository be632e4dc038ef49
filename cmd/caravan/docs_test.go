package main

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// TestCommandsAreDocumented keeps docs/cli.md in step with the program: every command has a section
// with exactly its flags, the options of the server have their variables and defaults, and every
// exit code is listed.
func TestCommandsAreDocumented(t *testing.T) {
	raw, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]string{}
	for _, s := range strings.Split(string(raw), "\n## ")[1:] {
		title, body, _ := strings.Cut(s, "\n")
		sections[strings.TrimPrefix(title, "caravan ")] = body
	}
	common := sections["Common to all"]
	delete(sections, "Common to all")

	flag := regexp.MustCompile("`(--?[a-z][a-z-]*)")
	for _, cmd := range newProgram("").newRootCommand().Commands() {
		if cmd.Name() == "help" || cmd.Hidden {
			continue
		}
		body, ok := sections[cmd.Name()]
		delete(sections, cmd.Name())
		if !ok {
			t.Errorf("no section on %s", cmd.Name())
			continue
		}
		if row := "| [`" + cmd.Name() + "`](#caravan-" + cmd.Name() + ") |"; !strings.Contains(string(raw), row) {
			t.Errorf("%s is not in the table of commands", cmd.Name())
		}
		written := map[string]bool{}
		for line := range strings.Lines(body) {
			if strings.HasPrefix(line, "| `-") {
				for _, m := range flag.FindAllStringSubmatch(strings.SplitN(line, " | ", 2)[0], -1) {
					written[m[1]] = true
				}
			}
		}
		for _, name := range flagsOf(cmd) {
			if !written[name] {
				t.Errorf("the section on %s has no row on %s", cmd.Name(), name)
			}
			delete(written, name)
		}
		for name := range written {
			t.Errorf("the section on %s tells of %s, which it does not have", cmd.Name(), name)
		}
		if cmd.Name() == "serve" {
			for _, o := range serverOptions(eight) {
				value := "`" + o.initial + "`"
				switch {
				case o.ofMachine:
					value = "this machine's"
				case o.initial == "":
					value = "none"
				}
				if row := fmt.Sprintf("| `--%s` | `%s` | %s |", o.name, o.env(), value); !strings.Contains(body, row) {
					t.Errorf("serve has no row %s", row)
				}
			}
		}
	}
	for name := range sections {
		t.Errorf("section on the unknown command %q", name)
	}
	for _, code := range []int{exitCompleted, exitInternal, exitUsage, exitErrored, exitKilled, exitInvalid, exitNotFound,
		exitUnreachable, exitTimeout, exitDenied, exitInterrupted} {
		if !strings.Contains(common, fmt.Sprintf("\n| %d | ", code)) {
			t.Errorf("exit code %d is missing", code)
		}
	}
	for _, name := range []string{envServer, "NO_COLOR"} {
		if !strings.Contains(common, name) {
			t.Errorf("%s is missing", name)
		}
	}
}

// flagsOf lists the flags of a command and of the commands in it, each once, with their dashes,
// including short ones.
func flagsOf(cmd *cobra.Command) []string {
	var names []string
	for _, sub := range cmd.Commands() {
		names = append(names, flagsOf(sub)...)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Name == "help" || f.Hidden {
			return
		}
		names = append(names, "--"+f.Name)
		if f.Shorthand != "" {
			names = append(names, "-"+f.Shorthand)
		}
	})
	return names
}
