package slurm_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/caravan-dag/caravan/executor/slurm/slurmtest"
)

// TestMain makes the test's binary the cluster's commands too.
func TestMain(m *testing.M) {
	slurmtest.Main()
	goleak.VerifyTestMain(m)
}
