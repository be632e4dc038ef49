package clustertest_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/clustertest"
	"github.com/caravan-dag/caravan/internal/clustertest/history"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// TestClusterHistory: clients use a cluster of three nodes of the real binary while random faults meet
// one node after the other. What they see breaks no rule.
func TestClusterHistory(t *testing.T) {
	bin := os.Getenv("CARAVAN_BINARY")
	if bin == "" {
		var err error
		if bin, err = testenv.Build(t.TempDir(), false); err != nil {
			t.Fatal(err)
		}
	}
	for _, plain := range []bool{false, true} {
		t.Run(fmt.Sprintf("plain=%v", plain), func(t *testing.T) {
			seed := roundSeed(t)
			c := clustertest.New(t, clustertest.Options{
				Binary: bin, PlainFolders: plain, Proxies: plain, Seed: seed,
				Arguments: func(n *clustertest.Node) []string {
					return append(n.MemberArguments(), "--cores", "4", "--memory-mb", "4000", "--insecure")
				},
			})
			if help, err := c.RunCommand(t.Context(), "serve", "--help"); err != nil || !strings.Contains(help, "--cluster ") {
				t.Skipf("the binary cannot be a node of a cluster (%v)", err)
			}
			c.LaunchAll()
			load := startLoad(c, seed, 3)
			err := c.RunPlan(context.Background(), clustertest.NewPlan(seed, []string{"n1", "n2", "n3"}, clustertest.PlanOptions{
				Steps: *stepsFlag / 2, Kinds: c.Capabilities().Kinds(), MaxPause: time.Second, MaxLasts: 4 * time.Second}))
			if err != nil {
				t.Fatal(err)
			}
			mustDo(t, c.Revive())
			load.end(t)
			mustDo(t, c.AwaitFinished("n1", clustertest.Patience))
			load.awaitFollowers()
			describeHistory(t, c.Check("n1", nil, history.Options{}))
		})
	}
}
