// Command covercheck reads a coverage profile, prints the coverage of every package of the binary
// and exits with 1 if a package is below its floor.
//
//	go run ./internal/covercheck -floor 80 -of dag=95 cover.out
//
// `make cover` runs it on the profile of all tests but the end-to-end ones, whose server is a
// process of its own. It prints a line per package:
//
//	97.2 %  github.com/caravan-dag/caravan/dag
//	78.9 %  github.com/caravan-dag/caravan/http  below 80 %
//
// Packages outside of the binary (tests' helpers, benchmarks) and generated code do not count. `go
// test -cover` prints the same figures, and `go tool cover -func` those of functions, but neither
// has a floor.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"slices"
	"strconv"
	"strings"
)

// main asks the go command for the packages of the binary, and so must be started in the module's
// root.
func main() {
	linked, err := exec.Command("go", "list", "-deps", "./cmd/caravan").Output()
	if err == nil {
		err = run(os.Args[1:], strings.Fields(string(linked)), os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "covercheck:", err)
		os.Exit(1)
	}
}

// statementCount counts the statements of a package, and those that a test has executed.
type statementCount struct{ all, covered int }

// percent returns the covered share; a package without statements is covered.
func (t statementCount) percent() float64 {
	if t.all == 0 {
		return 100
	}
	return 100 * float64(t.covered) / float64(t.all)
}

// run is the program; linked lists the import paths of the binary's packages, of other modules too.
// It prints all packages before it returns an error about some. A floor of -of that fits no package
// is an error as well: after a renaming it would silently be gone.
func run(args, linked []string, out io.Writer) error {
	flags := flag.NewFlagSet("covercheck", flag.ContinueOnError)
	floor := flags.Float64("floor", 80, "least `percentage` of any package")
	special := map[string]float64{} // floors by the end of an import path
	flags.Func("of", "`package=percentage`: another floor for one package", func(s string) error {
		name, value, ok := strings.Cut(s, "=")
		p, err := strconv.ParseFloat(value, 64)
		if !ok || err != nil {
			return fmt.Errorf("%q must be package=percentage", s)
		}
		special[name] = p
		return nil
	})
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return errors.New("usage: covercheck [flags] PROFILE")
	}
	text, err := os.ReadFile(flags.Arg(0))
	if err != nil {
		return err
	}
	tallies, err := parseProfile(string(text))
	if err != nil {
		return fmt.Errorf("%s: %w", flags.Arg(0), err)
	}

	unmatched := maps.Clone(special)
	var packages, below []string
	for _, p := range linked {
		if _, ok := tallies[p]; ok {
			packages = append(packages, p)
		}
	}
	slices.Sort(packages)
	for _, p := range packages {
		least := *floor
		for name, value := range special {
			if strings.HasSuffix(p, "/"+name) {
				least = value
				delete(unmatched, name)
			}
		}
		mark, got := "", tallies[p].percent()
		if got < least {
			mark = fmt.Sprintf("  below %.0f %%", least)
			below = append(below, p)
		}
		fmt.Fprintf(out, "%6.1f %%  %s%s\n", got, p, mark)
	}
	if len(packages) == 0 {
		return errors.New("the profile has no package of the binary")
	}
	if len(unmatched) > 0 {
		return fmt.Errorf("-of names packages that the profile does not have: %s", strings.Join(slices.Sorted(maps.Keys(unmatched)), ", "))
	}
	if len(below) > 0 {
		return fmt.Errorf("below the floor: %s", strings.Join(below, ", "))
	}
	return nil
}

// parseProfile counts the statements of a profile by package. A block that occurs several times
// counts once, as covered if any occurrence is: with -coverpkg each package of tests has its own
// line for it. After the line with the mode, a line is a block, its number of statements, and how
// often it was executed (golang.org/x/tools/cover):
//
//	github.com/caravan-dag/caravan/dag/run.go:41.33,43.2 1 17
func parseProfile(profile string) (map[string]statementCount, error) {
	type block struct {
		statements int
		covered    bool
	}
	blocks := map[string]block{}
	for n, line := range strings.Split(strings.TrimSpace(profile), "\n") {
		if n == 0 && strings.HasPrefix(line, "mode:") {
			continue
		}
		f := strings.Fields(line)
		if len(f) != 3 {
			return nil, fmt.Errorf("line %d: %q has %d fields, want 3", n+1, line, len(f))
		}
		statements, err1 := strconv.Atoi(f[1])
		count, err2 := strconv.Atoi(f[2])
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("line %d: %w", n+1, err)
		}
		blocks[f[0]] = block{statements, blocks[f[0]].covered || count > 0}
	}
	tallies := map[string]statementCount{}
	for place, b := range blocks {
		file, _, ok := strings.Cut(place, ":")
		if !ok {
			return nil, fmt.Errorf("%q has no position", place)
		}
		if strings.HasSuffix(file, ".pb.go") {
			continue // generated
		}
		// The part before the colon is the import path and the file, with slashes on every system.
		t := tallies[path.Dir(file)]
		t.all += b.statements
		if b.covered {
			t.covered += b.statements
		}
		tallies[path.Dir(file)] = t
	}
	return tallies, nil
}
