package e2e

import (
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
)

// TestMetricsAreDocumented: the table of metrics in docs/operations.md has all that a
// server tells, and no others.
func TestMetricsAreDocumented(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	var written []string
	for _, row := range regexp.MustCompile(`(?m)^\| `+"`"+`caravan_.*$`).FindAll(doc, -1) {
		for _, m := range regexp.MustCompile("`(caravan_[a-z_]+)").FindAllSubmatch(row, -1) {
			written = append(written, string(m[1]))
		}
	}
	told := []string{"caravan_slots_external"} // only with an executor that has some
	s := e2etest.Start(t)
	s.Want(200, "GET", "/ready", "")
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (caravan_\S+) `).FindAllSubmatch(s.Do("GET", "/metrics", "").Body, -1) {
		told = append(told, string(m[1]))
	}
	slices.Sort(written)
	slices.Sort(told)
	if !slices.Equal(written, told) {
		t.Errorf("the document has\n%q, the server\n%q", written, told)
	}
}
