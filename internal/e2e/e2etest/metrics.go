package e2etest

import (
	"os"
	"regexp"
	"slices"
	"testing"
)

// DocumentedMetrics returns the names in the tables of metrics of pages in docs.
func DocumentedMetrics(t testing.TB, pages ...string) (names []string) {
	t.Helper()
	for _, page := range pages {
		doc, err := os.ReadFile("../../docs/" + page)
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range regexp.MustCompile(`(?m)^\| `+"`"+`caravan_[^|]*`).FindAll(doc, -1) {
			for _, m := range regexp.MustCompile("`(caravan_[a-z_]+)").FindAllSubmatch(row, -1) {
				names = append(names, string(m[1]))
			}
		}
	}
	slices.Sort(names)
	return names
}

// ShownMetrics returns the names of Caravan's own metrics in answers of GET /metrics, each once, and that
// of the only one that a server without Slurm lacks.
func ShownMetrics(answers ...[]byte) (names []string) {
	names = append(names, "caravan_slots_external")
	for _, answer := range answers {
		for _, m := range regexp.MustCompile(`(?m)^# TYPE (caravan_\S+) `).FindAllSubmatch(answer, -1) {
			names = append(names, string(m[1]))
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}
