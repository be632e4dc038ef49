package main

import (
	"encoding/json"
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
		m.CPU = processor(string(text))
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

// processor names the first processor of /proc/cpuinfo. A virtual machine may show a general
// name, so family, model and stepping are added. On arm64 there are only numbers.
func processor(cpuinfo string) string {
	field := map[string]string{}
	for line := range strings.Lines(cpuinfo) {
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			if len(field) > 0 {
				break // the next processor
			}
			continue
		}
		field[strings.TrimSpace(name)] = strings.TrimSpace(value)
	}
	var numbers []string
	for _, name := range []string{"cpu family", "model", "stepping", "CPU implementer", "CPU part", "CPU revision"} {
		if v, ok := field[name]; ok {
			numbers = append(numbers, name[strings.LastIndexByte(name, ' ')+1:]+" "+v)
		}
	}
	name := field["model name"]
	if name == "" {
		name = "unnamed processor"
	}
	if numbers == nil {
		return name
	}
	return name + " (" + strings.Join(numbers, ", ") + ")"
}

// line names the machine in a sentence.
func (m machine) line() string {
	return fmt.Sprintf("%s, %d cores, Linux %s, %s; load %s; %s", m.CPU, m.Cores, m.Kernel, m.Go, m.Load, m.Binary)
}

// writeTable writes Markdown. What could not be measured is named in its row.
func writeTable(w io.Writer, m machine, results []*result) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n", m.line())
	b.WriteString("| work | measured | value | ratio | target | floor | rounds | date |\n|---|---|---|---|---|---|---|---|\n")
	for _, r := range results {
		for _, row := range r.rows {
			value, ok := row.value(r)
			if !ok {
				continue
			}
			fmt.Fprintf(&b, "| %s: %s | %s | %s | %s | %s | %s | %d | %s |\n", r.name, r.what, row.metric, value,
				row.proportion(r), row.verdict(r), row.floor.text(row.unit), r.rounds, r.at.UTC().Format(time.DateOnly))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// value is a row's figure, or why there is none; ok is false where it was not asked for.
func (r row) value(res *result) (text string, ok bool) {
	if v, ok := res.medians[r.metric]; ok {
		return figure(v, r.unit), true
	}
	why, ok := res.absent[r.metric]
	return "not measured: " + why, ok
}

// proportion is a row's ratio in words.
func (r row) proportion(res *result) string {
	q, ok := res.ratios[r.metric]
	per := r.per
	if per == res.rows[0].metric {
		per = caravan // the first row is the workload's own figure
	}
	switch {
	case !ok:
		return ""
	case r.inverse:
		return fmt.Sprintf("%.2f x the speed of %s", q, per)
	}
	return fmt.Sprintf("%.2f x %s", q, per)
}

// verdict is a row's target, and whether it is met.
func (r row) verdict(res *result) string {
	text := r.target.text(r.unit)
	if _, met, measured := r.target.check(res, r.metric); measured && met {
		return text + ": met"
	} else if measured {
		return text + ": missed"
	}
	return text
}

// figure shows a value with three digits or so.
func figure(v float64, unit string) string {
	return strings.TrimSpace(digits(v) + " " + unit)
}

func digits(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v >= 1000:
		return thousands(int64(v + 0.5))
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.3f", v)
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
		Absent   map[string]string  `json:"absent,omitempty"` // metrics that could not be measured, and why
	}
	doc := struct {
		Machine machine `json:"machine"`
		Results []entry `json:"results"`
	}{Machine: m}
	for _, r := range results {
		doc.Results = append(doc.Results, entry{r.name, r.what, r.rounds, r.at.UTC(), r.medians, r.ratios, r.absent})
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(doc)
}
