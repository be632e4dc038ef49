package clustertest_test

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/client"
	"github.com/caravan-dag/caravan/internal/clustertest"
	"github.com/caravan-dag/caravan/internal/clustertest/history"
)

var soakFlag = flag.Duration("soak", 0, "how long TestClusterSoak makes rounds of faults; see make soak-cluster")

// soakSummary is what the rounds of a soak test add up to.
type soakSummary struct {
	rounds, broken  int // broken: rounds whose history breaks a rule, or that did not come to an end
	faults          map[clustertest.Fault]int
	calls, answered int
	failovers       uint64          // changes of leader
	gaps            []time.Duration // the longest time without an answer of each round
}

func (s *soakSummary) String() string {
	slices.Sort(s.gaps)
	gap := func(q float64) time.Duration {
		if len(s.gaps) == 0 {
			return 0
		}
		return s.gaps[int(q*float64(len(s.gaps)-1))].Round(time.Millisecond)
	}
	checkers := "no history breaks a rule"
	if s.broken > 0 {
		checkers = fmt.Sprintf("%d rounds FAILED", s.broken)
	}
	return fmt.Sprintf("%d rounds, %d calls, %d acknowledged, %d failovers; longest gap of a round: p50 %v, p90 %v, max %v; %s; faults %v",
		s.rounds, s.calls, s.answered, s.failovers, gap(0.5), gap(0.9), gap(1), checkers, s.faults)
}

// addRound adds the history of a round.
func (s *soakSummary) addRound(h *history.History) {
	var returns []time.Duration
	for _, o := range h.Operations {
		s.calls++
		if o.Outcome == history.Acknowledged {
			s.answered++
			returns = append(returns, o.Return)
		}
	}
	slices.Sort(returns)
	longest := time.Duration(0)
	for i := range returns[:max(len(returns)-1, 0)] {
		longest = max(longest, returns[i+1]-returns[i])
	}
	s.gaps = append(s.gaps, longest)
}

// changesOfLeader returns how many terms the partitions have had after their first ones.
func changesOfLeader(t *testing.T, c *clustertest.Cluster) (changes uint64) {
	t.Helper()
	api, err := client.New(client.Config{Server: c.Node("n1").URL(), HTTPClient: c.HTTPClient("n1")})
	mustDo(t, err)
	found, err := api.Cluster(t.Context())
	mustDo(t, err)
	for _, p := range found.Partitions {
		changes += max(p.Term, 1) - 1
	}
	return changes
}

// TestClusterSoak makes rounds of random faults, each on a new cluster of the real binary and with a seed of its
// own, until the time is over. The summary that it logs after each round has all of them.
func TestClusterSoak(t *testing.T) {
	if *soakFlag == 0 {
		t.Skip("it runs with -soak DURATION only")
	}
	first := roundSeed(t)
	sum := &soakSummary{faults: map[clustertest.Fault]int{}}
	for end := time.Now().Add(*soakFlag); sum.rounds == 0 || time.Now().Before(end); {
		seed := first + uint64(sum.rounds)
		sum.rounds++
		isWhole := t.Run(fmt.Sprint("seed-", seed), func(t *testing.T) {
			c := newMembers(t, seed%2 == 1, seed)
			endLongTasks := longTasks(t, c)
			load := startLoad(c, seed, 3)
			plan := clustertest.NewPlan(seed, []string{"n1", "n2", "n3"}, clustertest.PlanOptions{
				Steps: *stepsFlag, Kinds: c.Capabilities().Kinds(), MaxPause: time.Second, MaxLasts: 3 * time.Second})
			for _, step := range plan.Steps {
				sum.faults[step.Fault]++
			}
			mustDo(t, c.RunPlan(context.Background(), plan))
			endLongTasks()
			sum.addRound(judge(t, c, load))
			sum.failovers += changesOfLeader(t, c)
		})
		if !isWhole {
			sum.broken++
		}
		t.Log(sum)
	}
}
