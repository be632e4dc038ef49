package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// reportCommand is what makes the report anew.
const reportCommand = "make bench-report"

// writeReport writes README.md, figures.json and the charts into a folder, in place
// of those that are there.
func writeReport(dir string, m machine, rounds int, results []*result) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	old, err := filepath.Glob(filepath.Join(dir, "*.svg"))
	if err != nil {
		return err
	}
	for _, file := range old {
		if err := os.Remove(file); err != nil {
			return err
		}
	}
	byName := map[string]*result{}
	for _, r := range results {
		byName[r.name] = r
	}
	pictures := charts(byName)
	for _, c := range pictures {
		if err := os.WriteFile(filepath.Join(dir, c.file), []byte(c.svg), 0o644); err != nil {
			return err
		}
	}
	if err := writeFile(filepath.Join(dir, "figures.json"), func(w io.Writer) error { return writeJSON(w, m, results) }); err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, "README.md"), func(w io.Writer) error { return writePage(w, m, rounds, pictures, results) })
}

// writeFile writes a file by a function.
func writeFile(path string, write func(io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	err = write(f)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}

// writePage writes the report's text.
func writePage(w io.Writer, m machine, rounds int, pictures []chart, results []*result) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# Benchmarks\n\nMade by `%s`, %s; do not edit. %s.\n\n", reportCommand, time.Now().UTC().Format(time.DateOnly), m.line())
	fmt.Fprintf(&b, "%s of each workload, of which the medians are shown; the column says where it was fewer. In each round a fresh server with fresh data was measured, and what it is compared with beside it: "+
		"trust the ratios, the absolute figures are the machine's. What each workload does is in [doc.go](../doc.go).\n\n", times(rounds))
	met, missed := 0, []string{}
	for _, r := range results {
		for _, row := range r.rows {
			if _, ok, measured := row.target.check(r, row.metric); measured && ok {
				met++
			} else if measured {
				missed = append(missed, fmt.Sprintf("%s, %s", r.name, row.metric))
			}
		}
	}
	fmt.Fprintf(&b, "%d targets are met, %d are missed", met, len(missed))
	if len(missed) > 0 {
		fmt.Fprintf(&b, ": %s", strings.Join(missed, "; "))
	}
	b.WriteString(".\n\n")
	for _, c := range pictures {
		fmt.Fprintf(&b, "%s\n\n![%s](%s)\n\n", c.caption, strings.ReplaceAll(c.caption, "`", ""), c.file)
	}
	b.WriteString("## All figures\n\n")
	if _, err := io.WriteString(w, b.String()); err != nil {
		return err
	}
	return writeTable(w, m, results)
}

func times(rounds int) string {
	if rounds == 1 {
		return "1 round"
	}
	return fmt.Sprintf("%d rounds", rounds)
}
