package remote_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor/worker"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// TestMain makes the test's binary its own worker, and its own server: "worker DIR
// --name NAME" is how a Remote starts the one, "server …" how crash tests start the other.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "worker":
			os.Exit(workerMain(os.Args[2], os.Args[4]))
		case "server":
			os.Exit(serverMain(os.Args[2:]))
		}
	}
	testenv.VerifyNoLeaks(m)
}

func workerMain(dir, name string) int {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := worker.Run(ctx, worker.Config{Dir: dir, Name: name, Logger: log}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
