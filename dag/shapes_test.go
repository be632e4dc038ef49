package dag_test

import (
	"flag"
	"fmt"
	"testing"

	"github.com/caravan-dag/caravan/dag/dagtest"
)

var sizes = flag.String("sizes", "", "big: TestShapes goes up to 1,000,000 tasks")

// TestShapes runs graphs of known forms to their end with a simulated executor
// which checks the order of starts, at several sizes.
func TestShapes(t *testing.T) {
	counts := []int{40, 1_000, 100_000}
	switch {
	case testing.Short():
		counts = counts[:2]
	case *sizes == "big":
		counts = append(counts, 1_000_000)
	}
	for _, n := range counts {
		for i, shape := range dagtest.Shapes(n) {
			t.Run(fmt.Sprintf("%s, %d", shape.Name, n), func(t *testing.T) {
				how := dagtest.Execution{Seed: uint64(i), Slots: 1 + (i*7)%64, Failing: 12 * (i % 2)}
				if n > 1_000 { // four failures in a row are rare: most go to their end
					how.Failing *= 4
				}
				run, err := dagtest.ExecuteSpec(shape.Spec, how)
				if err != nil {
					t.Fatal(err)
				}
				t.Logf("%d tasks in %d templates end %s: %v", run.Plan().Tasks, len(run.Plan().Templates), run.State(), run.Counts())
				if n > 1_000 {
					return
				}
				for how.Failing = range 4 {
					how.Seed++
					if _, err := dagtest.ExecuteSpec(shape.Spec, how); err != nil {
						t.Fatalf("%+v: %v", how, err)
					}
				}
			})
		}
	}
}

// TestCrashesWhileSnapshotsAreTaken kills and recovers runs of several chunks while snapshots of
// them are being written.
func TestCrashesWhileSnapshotsAreTaken(t *testing.T) {
	events := 400 // of which one is a crash
	if testing.Short() {
		events = 2000
	}
	for i, shape := range dagtest.Shapes(6_000) {
		t.Run(shape.Name, func(t *testing.T) {
			if _, err := dagtest.ExecuteSpec(shape.Spec, dagtest.Execution{Seed: uint64(i), Slots: 50, Failing: 10, Crashes: events}); err != nil {
				t.Fatal(err)
			}
		})
	}
}
