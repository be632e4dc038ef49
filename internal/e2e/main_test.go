package e2e

import (
	"flag"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
)

// What the flags of the package doc set.
var (
	seedFlag    = flag.Uint64("seed", 0, "seed of everything random; 0 = from the clock")
	killsFlag   = flag.Int("kills", 20, "kills of the random-moments test")
	ackedFlag   = flag.Int("acked", 1000, "acknowledged submissions of the kill-after-200 test")
	roundsFlag  = flag.Int("rounds", 2, "rounds of the tests that kill server and worker")
	hostileFlag = flag.Int("hostile", 10_000, "malformed requests")
	sizesFlag   = flag.String("sizes", "", "big: the tests in scale_test.go have runs of 1,000,000 tasks, 10,000 processes run at once")
	copiesFlag  = flag.Int("copies", 2, "copies of a data folder that are started beside its own server")
	damagesFlag = flag.Int("damages", 40, "damaged data folders")
	cutsFlag    = flag.Int("cuts", 3, "power cuts")
	pauseFlag   = flag.Duration("pause", 3*time.Second, "how long processes are stopped in pause_test.go")
	soakFlag    = flag.Duration("soak", 10*time.Second, "how long the soak keeps its load up")
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(e2etest.Main(m))
}

// random is a generator whose seed the test's log shows.
func random(t *testing.T) *rand.Rand {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("-seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// scaled is n, or a tenth of it, at least 1, under the race detector.
func scaled(n int) int {
	if e2etest.Race {
		return max(1, n/10)
	}
	return n
}
