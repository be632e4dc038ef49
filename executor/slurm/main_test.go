package slurm_test

import (
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/caravan-dag/caravan/executor/slurm/slurmtest"
)

// TestMain makes the test's binary the cluster's commands too, and the server that
// TestCrash kills.
func TestMain(m *testing.M) {
	slurmtest.Main()
	if len(os.Args) == 4 && os.Args[1] == "server" {
		os.Exit(crashServer(os.Args[2], os.Args[3] == "true"))
	}
	goleak.VerifyTestMain(m)
}
