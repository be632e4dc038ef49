package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// madeUp are results that have a figure for every row and every point of a curve.
func madeUp() (results []*result) {
	for _, w := range workloads() {
		r := &result{workload: w, rounds: 3, at: time.Unix(0, 0), medians: map[string]float64{}, ratios: map[string]float64{}}
		for i, row := range w.rows {
			r.medians[row.metric] = 1234.5 / float64(i+1)
		}
		if w.name == "metg" {
			for k, name := range []string{caravan, makeJ2, ninjaJ2, riverPostgres, riverSQLite, dask} {
				for _, d := range lengths() {
					r.medians[efficiencyAt(name, d)] = millis(d) / (millis(d) + 0.5*float64(k+1))
				}
			}
		}
		for _, row := range w.rows {
			if q, ok := row.ratio(r.medians); ok {
				r.ratios[row.metric] = q
			}
		}
		results = append(results, r)
	}
	return results
}

// TestReport: every picture is well-formed, says what its axes are, and is shown by
// the page; pictures of an earlier report go.
func TestReport(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "gone.svg"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := writeReport(dir, machine{CPU: "a processor", Cores: 2}, 3, madeUp()); err != nil {
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
		if !strings.Contains(string(svg), "prefers-color-scheme:dark") || strings.Contains(string(svg), "NaN") {
			t.Errorf("%s has no dark form, or a point that is nowhere", filepath.Base(file))
		}
		decoder := xml.NewDecoder(strings.NewReader(string(svg)))
		for err == nil {
			_, err = decoder.Token()
		}
		if !errors.Is(err, io.EOF) {
			t.Errorf("%s: %v", filepath.Base(file), err)
		}
	}
	for _, want := range []string{"a processor, 2 cores", reportCommand, "targets are met", "| w6: "} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the page does not say %q", want)
		}
	}
}

func TestTicks(t *testing.T) {
	for _, v := range []float64{0.019, 0.3, 1, 7, 20, 99, 100_000, 231_080} {
		ticks := linearTicks(v)
		if last := ticks[len(ticks)-1]; last < v || len(ticks) < 3 || len(ticks) > 7 {
			t.Errorf("to %v: %v", v, ticks)
		}
	}
	if got := decades(0.02, 7); len(got) != 4 || got[0] != 0.01 || got[3] != 10 {
		t.Errorf("decades from 0.02 to 7: %v", got)
	}
	if half, ok := halfUseful([]float64{0.2, 0.4, 0.6}); !ok || half < 700*time.Microsecond || half > 710*time.Microsecond {
		t.Errorf("half is useful at %v, %v; want half-way between 0.5 and 1 ms by the logarithm", half, ok)
	}
	if half, ok := halfUseful([]float64{0.2, 0.4}); ok {
		t.Errorf("half is useful at %v, though it never is", half)
	}
}
