package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// pairs measures the workloads with two binaries in turn and writes how the second one compares
// with the first. The rounds of both alternate, and so does which of them begins: what else the
// machine does falls on both. A ratio is the median of the ratios of the pairs; its range, and
// the ratios of the references, which are the same program in both, tell how much it is worth.
func pairs(e *env, chosen []workload, rounds int, former string, out io.Writer) error {
	latter := e.binary
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n", e.machine().line())
	b.WriteString("| work | measured | former | this | this / former | range of the pairs | pairs |\n|---|---|---|---|---|---|---|\n")
	for _, w := range chosen {
		e.absent = nil
		values := map[string][][2]float64{} // by metric: former and latter of each pair
		for n := range rounds {
			e.round = n
			fmt.Fprintf(e.diag, "%s: pair %d of %d\n", w.name, n+1, rounds)
			var got [2]map[string]float64
			order := []int{0, 1}
			if n%2 == 1 {
				slices.Reverse(order)
			}
			for _, which := range order {
				e.binary = []string{former, latter}[which]
				var err error
				if got[which], err = w.one(e); err != nil {
					return fmt.Errorf("%s with %s: %w", w.name, e.binary, err)
				}
				if err := e.ctx.Err(); err != nil {
					return err
				}
			}
			for metric, v := range got[1] {
				if before, ok := got[0][metric]; ok {
					values[metric] = append(values[metric], [2]float64{before, v})
				}
			}
		}
		for _, r := range w.rows {
			if list := values[r.metric]; len(list) > 0 {
				writePair(&b, w, r, list)
			}
		}
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// writePair writes the row of one metric.
func writePair(b *strings.Builder, w workload, r row, list [][2]float64) {
	var former, latter, ratios []float64
	for _, pair := range list {
		former, latter = append(former, pair[0]), append(latter, pair[1])
		if pair[0] != 0 {
			ratios = append(ratios, pair[1]/pair[0])
		}
	}
	ratio, spread := "", ""
	if len(ratios) > 0 {
		ratio = fmt.Sprintf("%.3f", median(ratios))
		spread = fmt.Sprintf("%.2f to %.2f", slices.Min(ratios), slices.Max(ratios))
	}
	fmt.Fprintf(b, "| %s: %s | %s | %s | %s | %s | %s | %d |\n", w.name, w.what, r.metric,
		figure(median(former), r.unit), figure(median(latter), r.unit), ratio, spread, len(list))
}
