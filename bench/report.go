package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"
)

// machine says where the figures are from.
type machine struct {
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	Kernel string `json:"kernel"`
	Go     string `json:"go"`
	Binary string `json:"binary"`
	Load   string `json:"loadAverage"` // of the last minute
}

func (e *env) machine() machine {
	m := machine{Cores: runtime.NumCPU(), Go: runtime.Version()}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				m.CPU = strings.TrimSpace(value)
				break
			}
		}
	}
	if text, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel = strings.TrimSpace(string(text))
	}
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		m.Load, _, _ = strings.Cut(string(text), " ")
	}
	if out, err := exec.Command(e.binary, "version").Output(); err == nil {
		m.Binary = strings.Join(strings.Fields(string(out)), " ")
	}
	return m
}

// writeTable writes Markdown.
func writeTable(w io.Writer, m machine, results []*result) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %d cores, Linux %s, %s; load %s; %s\n\n", m.CPU, m.Cores, m.Kernel, m.Go, m.Load, m.Binary)
	b.WriteString("| work | measured | value | ratio | target | floor | rounds | date |\n|---|---|---|---|---|---|---|---|\n")
	for _, r := range results {
		for _, row := range r.rows {
			v, ok := r.medians[row.metric]
			if !ok {
				continue
			}
			ratio, floor := "", ""
			if q, ok := r.ratios[row.metric]; ok {
				ratio = fmt.Sprintf("%.2f x %s", q, row.per)
				if row.inverse {
					ratio = fmt.Sprintf("%.2f x the speed of %s", q, row.per)
				}
			}
			if row.floor != 0 {
				floor = row.floorText()
			}
			fmt.Fprintf(&b, "| %s: %s | %s | %s | %s | %s | %s | %d | %s |\n", r.name, r.what, row.metric,
				figure(v, row.unit), ratio, row.target, floor, r.rounds, r.at.UTC().Format(time.DateOnly))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (r row) floorText() string {
	sign := ">="
	if r.most {
		sign = "<="
	}
	if r.per != "" {
		return fmt.Sprintf("%s %.2f x", sign, r.floor)
	}
	return sign + " " + figure(r.floor, r.unit)
}

// figure shows a value with three digits or so.
func figure(v float64, unit string) string {
	switch {
	case v >= 1000:
		return fmt.Sprintf("%s %s", thousands(int64(v+0.5)), unit)
	case v >= 10:
		return fmt.Sprintf("%.1f %s", v, unit)
	}
	return fmt.Sprintf("%.3f %s", v, unit)
}

func thousands(n int64) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s,%03d", thousands(n/1000), n%1000)
}

// writeJSON writes everything that the table has, and the medians of all else that
// was measured.
func writeJSON(w io.Writer, m machine, results []*result) error {
	type entry struct {
		Workload string             `json:"workload"`
		What     string             `json:"what"`
		Rounds   int                `json:"rounds"`
		At       time.Time          `json:"at"`
		Medians  map[string]float64 `json:"medians"`
		Ratios   map[string]float64 `json:"ratios"`
	}
	doc := struct {
		Machine machine `json:"machine"`
		Results []entry `json:"results"`
	}{Machine: m}
	for _, r := range results {
		doc.Results = append(doc.Results, entry{r.name, r.what, r.rounds, r.at.UTC(), r.medians, r.ratios})
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(doc)
}

// belowFloors is an error that names every row below its floor.
func belowFloors(results []*result) error {
	var errs []error
	for _, r := range results {
		for _, row := range r.rows {
			v, ok := r.medians[row.metric]
			if row.per != "" {
				v, ok = r.ratios[row.metric]
			}
			if row.floor == 0 || !ok && row.per != "" {
				continue // no reference on this machine
			}
			if row.most && v > row.floor || !row.most && v < row.floor {
				errs = append(errs, fmt.Errorf("%s: %s is %.3g, the floor is %s", r.name, row.metric, v, row.floorText()))
			}
		}
	}
	return errors.Join(errs...)
}
