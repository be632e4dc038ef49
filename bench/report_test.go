package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// madeUpResults have a figure for every row and every point of a curve.
func madeUpResults() (results []*result) {
	for _, w := range allWorkloads() {
		r := &result{workload: w, rounds: 3, at: time.Unix(0, 0), medians: map[string]float64{}, ratios: map[string]float64{}}
		for i, row := range w.rows {
			r.medians[row.metric] = 1234.5 / float64(i+1)
		}
		if w.name == "metg" {
			for k, name := range []string{caravan, makeJ2, ninjaJ2, riverPostgres, riverSQLite, dask} {
				for _, d := range taskLengths() {
					r.medians[efficiencyAt(name, d)] = millis(d) / (millis(d) + 0.5*float64(k+1))
				}
			}
		}
		for _, row := range w.rows {
			if q, ok := row.ratioOf(r.medians); ok {
				r.ratios[row.metric] = q
			}
		}
		results = append(results, r)
	}
	return results
}

// TestReport: every chart is well-formed and shown by the page, and charts of an earlier report are
// removed.
func TestReport(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "old.svg"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := writeReport(dir, machine{CPU: "a processor", Cores: 2}, 3, madeUpResults()); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	pictures, err := filepath.Glob(filepath.Join(dir, "*.svg"))
	if err != nil || len(pictures) != 11 {
		t.Errorf("%d pictures, want 11: %v %v", len(pictures), pictures, err)
	}
	for _, file := range pictures {
		if !strings.Contains(string(text), "]("+filepath.Base(file)+")") {
			t.Errorf("the page does not show %s", filepath.Base(file))
		}
		svg, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(svg), "<desc>") || strings.Contains(string(svg), "NaN") {
			t.Errorf("%s has no description, or a point that is not a number", filepath.Base(file))
		}
		decoder := xml.NewDecoder(strings.NewReader(string(svg)))
		for err == nil {
			_, err = decoder.Token()
		}
		if !errors.Is(err, io.EOF) {
			t.Errorf("%s: %v", filepath.Base(file), err)
		}
	}
	// The figures make the same report again.
	again := t.TempDir()
	if err := reportFromFigures(filepath.Join(dir, "figures.json"), again); err != nil {
		t.Fatal(err)
	}
	if same, err := os.ReadFile(filepath.Join(again, "README.md")); err != nil || string(same) != string(text) {
		t.Errorf("the report made from the figures differs: %v\n%s", err, same)
	}
	for _, file := range pictures {
		first, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if second, err := os.ReadFile(filepath.Join(again, filepath.Base(file))); err != nil || string(first) != string(second) {
			t.Errorf("%s differs when it is drawn again: %v", filepath.Base(file), err)
		}
	}
	for _, want := range []string{"a processor, 2 cores", reportCommand, "targets are met", "| w6: "} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the page lacks %q", want)
		}
	}
}

// TestReportOfSomeWorkloads: their figures replace those of the report, with the machine that they are of. The
// others stay.
func TestReportOfSomeWorkloads(t *testing.T) {
	dir := t.TempDir()
	all := madeUpResults()
	former := slices.DeleteFunc(slices.Clone(all), func(r *result) bool { return r.name == "cluster-stop" })
	if err := writeReport(dir, machine{CPU: "a processor", Cores: 2}, 3, former); err != nil {
		t.Fatal(err)
	}
	var measured []*result
	for _, name := range []string{"cluster-stop", "w4"} {
		r := *all[slices.IndexFunc(all, func(r *result) bool { return r.name == name })]
		r.medians = map[string]float64{r.rows[0].metric: 4321}
		measured = append(measured, &r)
	}
	m, rounds, merged, err := mergeFigures(dir, machine{CPU: "another processor", Cores: 8}, 1, measured)
	if err != nil || rounds != 3 || m.Cores != 2 || len(merged) != len(all) {
		t.Fatalf("%d rounds, %+v, %d results, %v", rounds, m, len(merged), err)
	}
	if err := writeReport(dir, m, rounds, merged); err != nil {
		t.Fatal(err)
	}
	if err := reportFromFigures(filepath.Join(dir, "figures.json"), dir); err != nil { // it keeps all of that
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"a processor, 2 cores", "Measured apart: w4, cluster-stop. 1970-01-01, another processor, 8", "4,321 ms", "| w6: "} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the page lacks %q:\n%s", want, text)
		}
	}
}

func TestTicks(t *testing.T) {
	for _, c := range []struct{ low, high, ticks float64 }{{1000, 10_000_000, 5}, {0.25, 8, 6}} {
		if got := factorTicks(c.low, c.high); float64(len(got)) != c.ticks {
			t.Errorf("from %v to %v: %v, want %v ticks", c.low, c.high, got, c.ticks)
		}
	}
	for v, want := range map[float64]string{0: "0", 0.25: "0.25", 16: "16", 100_000: "100,000", 2.5e6: "2.5M"} {
		if got := shortNumber(v); got != want {
			t.Errorf("%v is shown as %s, want %s", v, got, want)
		}
	}
}

func TestHalfUseful(t *testing.T) {
	if half, ok := halfUseful([]float64{0.2, 0.4, 0.6}); !ok || half < 700*time.Microsecond || half > 710*time.Microsecond {
		t.Errorf("half is useful at %v, %v; want half-way between 0.5 and 1 ms by the logarithm", half, ok)
	}
	if half, ok := halfUseful([]float64{0.2, 0.4}); ok {
		t.Errorf("half is useful at %v, want it unreached", half)
	}
}
