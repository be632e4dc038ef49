package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// machine describes where the figures were measured. A field that the machine does not show is "".
type machine struct {
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"` // processors that this process may use
	Kernel string `json:"kernel"`
	Go     string `json:"go"`          // of this program; the binary may have another
	Binary string `json:"binary"`      // what its command version prints
	Load   string `json:"loadAverage"` // of the last minute
}

// describeMachine reads what the kernel says of the machine. A figure without it is worthless; a part
// that the kernel does not show is left empty.
func (e *benchEnv) describeMachine() machine {
	m := machine{Cores: runtime.NumCPU(), Go: runtime.Version()}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		m.CPU = processorName(string(text))
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

// processorName names the first processor of /proc/cpuinfo. A virtual machine may show a general
// name, so family, model and stepping are added. On arm64 there are only numbers. For example
// "AMD EPYC (family 25, model 1, stepping 1)".
func processorName(cpuinfo string) string {
	field := map[string]string{}
	for line := range strings.Lines(cpuinfo) {
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			if len(field) > 0 {
				break // of the next processor
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

// description names the machine in a sentence.
func (m machine) description() string {
	return fmt.Sprintf("%s, %d cores, Linux %s, %s; load %s; %s", m.CPU, m.Cores, m.Kernel, m.Go, m.Load, m.Binary)
}

// writeTable writes a Markdown table. The row of a metric that could not be measured gives the
// reason. Each row repeats workload and date, so that a single one can be quoted.
func writeTable(w io.Writer, m machine, results []*result) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n", wrapText(m.description()))
	b.WriteString("| workload | metric | value | ratio | target | floor | rounds | date |\n|---|---|---|---|---|---|---|---|\n")
	for _, r := range results {
		for _, row := range r.rows {
			value, ok := row.valueText(r)
			if !ok {
				continue
			}
			fmt.Fprintf(&b, "| %s: %s | %s | %s | %s | %s | %s | %d | %s |\n", r.name, r.what, row.metric, value,
				row.ratioText(r), row.targetText(r), row.floor.text(row.unit), r.rounds, r.at.UTC().Format(time.DateOnly))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// valueText is the figure of a row, or the reason for its absence. ok is false when the metric was
// not requested.
func (r row) valueText(res *result) (text string, ok bool) {
	if v, ok := res.medians[r.metric]; ok {
		return formatFigure(v, r.unit), true
	}
	why, ok := res.absent[r.metric]
	return "not measured: " + why, ok
}

// ratioText describes the ratio of a row: "0.97 x make -j2", "0.09 x Caravan", or for a quotient of
// times "3.16 x the speed of make -j2 of /bin/true". It is empty without a ratio.
func (r row) ratioText(res *result) string {
	q, ok := res.ratios[r.metric]
	per := r.relativeTo
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

// targetText describes the target of a row, and whether it is met: "<= 10.0 ms: met". A target whose
// figure is missing is shown without a verdict.
func (r row) targetText(res *result) string {
	text := r.target.text(r.unit)
	if _, met, measured := r.target.check(res, r.metric); measured && met {
		return text + ": met"
	} else if measured {
		return text + ": missed"
	}
	return text
}

// formatFigure shows a value with its unit and about three digits: the spread between rounds is
// larger than what further digits would say. Examples are "234,500 tasks/s", "50.0 MiB" and "0.043 s".
func formatFigure(v float64, unit string) string {
	return strings.TrimSpace(formatNumber(v) + " " + unit)
}

// formatNumber is formatFigure without a unit. Values are not negative.
func formatNumber(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v >= 1000:
		return groupThousands(int64(v + 0.5))
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

// groupThousands writes a number, at least 0, with commas: 1,234,567.
func groupThousands(n int64) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s,%03d", groupThousands(n/1000), n%1000)
}

// writeJSON writes the content of the table and the medians of all other metrics, such as the points of
// the curves of metg. Values are not rounded.
func writeJSON(w io.Writer, m machine, results []*result) error {
	doc := figuresFile{Machine: m}
	for _, r := range results {
		doc.Results = append(doc.Results, figuresEntry{r.name, r.what, r.rounds, r.at.UTC(), r.machine, r.medians, r.ratios, r.absent})
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(doc)
}

// figuresFile is the format of figures.json. It has the units of the table; names of metrics are those
// of the rows, so a renamed row loses its figure until the next report.
type figuresFile struct {
	Machine machine        `json:"machine"`
	Results []figuresEntry `json:"results"`
}

// figuresEntry is a result in figures.json. Rows and bounds are not in it: they are those of the program
// that reads it, so a new target applies to old figures, too.
type figuresEntry struct {
	Workload string             `json:"workload"`
	What     string             `json:"what"`
	Rounds   int                `json:"rounds"`
	At       time.Time          `json:"at"`
	Machine  *machine           `json:"machine,omitempty"` // of a workload that was measured apart
	Medians  map[string]float64 `json:"medians"`
	Ratios   map[string]float64 `json:"ratios"`
	Absent   map[string]string  `json:"absent,omitempty"` // metrics that could not be measured, and why
}

// readJSON reads what writeJSON wrote. It skips workloads that no longer exist. The machine is the one of
// the measurement, not the present one.
func readJSON(r io.Reader) (machine, []*result, error) {
	var doc figuresFile
	if err := json.NewDecoder(r).Decode(&doc); err != nil {
		return machine{}, nil, fmt.Errorf("read figures: %w", err)
	}
	var results []*result
	for _, f := range doc.Results {
		for _, w := range allWorkloads() {
			if w.name == f.Workload {
				results = append(results, &result{workload: w, rounds: f.Rounds, at: f.At, medians: f.Medians, ratios: f.Ratios, absent: f.Absent, machine: f.Machine})
			}
		}
	}
	return doc.Machine, results, nil
}

// reportCommand makes the report.
const reportCommand = "make bench-report"

// writeReport writes README.md, figures.json and the charts into a folder. It replaces those of an
// earlier report, and first removes all its charts: a chart without new figures would stay as if it
// belonged to the new ones. It is called when all workloads have been measured, so an interrupted
// report leaves the earlier one as it is.
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
	charts := buildCharts(byName)
	for _, c := range charts {
		if err := os.WriteFile(filepath.Join(dir, c.file), []byte(c.svg), 0o644); err != nil {
			return err
		}
	}
	if err := writeFile(filepath.Join(dir, "figures.json"), func(w io.Writer) error { return writeJSON(w, m, results) }); err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, "README.md"), func(w io.Writer) error { return writePage(w, m, rounds, charts, results) })
}

// reportFromFigures makes a report from the figures of an earlier one, after a change of charts, texts
// or targets.
func reportFromFigures(path, dir string) error {
	m, rounds, results, err := readFigures(path)
	if err != nil {
		return err
	}
	return writeReport(dir, m, rounds, results)
}

// readFigures reads a figures.json. rounds is the greatest number of all workloads.
func readFigures(path string) (m machine, rounds int, results []*result, err error) {
	f, err := os.Open(path)
	if err != nil {
		return m, 0, nil, err
	}
	defer f.Close()
	if m, results, err = readJSON(f); err != nil {
		return m, 0, nil, fmt.Errorf("%s: %w", path, err)
	}
	for _, r := range results {
		rounds = max(rounds, r.rounds)
	}
	return m, rounds, results, nil
}

// mergeFigures returns the figures of the report in a folder, with those of some workloads replaced or
// added, in the order of allWorkloads. The measured results note the machine that they are of, since the
// report is of another time. A folder without a report gets one of the measured workloads alone.
func mergeFigures(dir string, now machine, rounds int, measured []*result) (machine, int, []*result, error) {
	m, formerRounds, former, err := readFigures(filepath.Join(dir, "figures.json"))
	if errors.Is(err, os.ErrNotExist) {
		return now, rounds, measured, nil
	} else if err != nil {
		return m, 0, nil, err
	}
	var merged []*result
	for _, w := range allWorkloads() {
		named := func(r *result) bool { return r.name == w.name }
		if i := slices.IndexFunc(measured, named); i >= 0 {
			measured[i].machine = &now
			merged = append(merged, measured[i])
		} else if i := slices.IndexFunc(former, named); i >= 0 {
			merged = append(merged, former[i])
		}
	}
	return m, formerRounds, merged, nil
}

// writeFile creates a file and fills it by a function. An error of Close is one of the file, which may
// be where a full disk shows.
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

// writePage writes the text of the report: what was measured and where, the targets that are missed,
// the charts, and the table of all figures. Its lines are wrapped as the pages that archtest checks.
func writePage(w io.Writer, m machine, rounds int, charts []reportChart, results []*result) error {
	var b strings.Builder
	paragraph := func(format string, args ...any) { b.WriteString(wrapText(fmt.Sprintf(format, args...)) + "\n\n") }
	b.WriteString("# Benchmarks\n\n")
	var at time.Time
	met, missed := 0, []string{}
	var apart []string // descriptions of later measurements
	workloadsOf := map[string][]string{}
	noteApart := func(r *result) {
		description := fmt.Sprintf("%s, %s", r.at.UTC().Format(time.DateOnly), r.machine.description())
		if workloadsOf[description] == nil {
			apart = append(apart, description)
		}
		workloadsOf[description] = append(workloadsOf[description], r.name)
	}
	for _, r := range results {
		if r.machine != nil {
			noteApart(r)
		} else if r.at.After(at) {
			at = r.at
		}
		for _, row := range r.rows {
			if _, ok, measured := row.target.check(r, row.metric); measured && ok {
				met++
			} else if measured {
				missed = append(missed, fmt.Sprintf("%s, %s", r.name, row.metric))
			}
		}
	}
	paragraph("Made by `%s`, %s; do not edit. %s.", reportCommand, at.UTC().Format(time.DateOnly), m.description())
	paragraph("The figures are medians of %s of each workload, or of the number in the column. Each round measured a fresh server with fresh data, and its references. "+
		"Trust the ratios, because absolute figures depend on the machine. [doc.go](../doc.go) describes the workloads.", roundsText(rounds))
	for _, description := range apart {
		paragraph("Measured apart: %s. %s.", strings.Join(workloadsOf[description], ", "), description)
	}
	verdict := fmt.Sprintf("%d targets are met, %d are missed", met, len(missed))
	if len(missed) > 0 {
		verdict += ": " + strings.Join(missed, "; ")
	}
	paragraph("%s.", verdict)
	for _, c := range charts {
		paragraph("%s", c.caption)
		fmt.Fprintf(&b, "![%s](%s)\n\n", strings.ReplaceAll(c.caption, "`", ""), c.file)
	}
	b.WriteString("## All figures\n\n")
	if _, err := io.WriteString(w, b.String()); err != nil {
		return err
	}
	return writeTable(w, m, results)
}

// wrapText breaks a paragraph into lines of at most 100 columns.
func wrapText(text string) string {
	var b strings.Builder
	column := 0
	for _, word := range strings.Fields(text) {
		width := utf8.RuneCountInString(word)
		switch {
		case column == 0:
		case column+1+width > 100:
			b.WriteByte('\n')
			column = 0
		default:
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		column += width
	}
	return b.String()
}

func roundsText(rounds int) string {
	if rounds == 1 {
		return "1 round"
	}
	return fmt.Sprintf("%d rounds", rounds)
}
