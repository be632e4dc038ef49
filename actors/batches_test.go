package actors

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/executor"
)

// gathering makes an executor tell what it says within a while, or the twentieth report, at a
// time, as a worker does whose frames hold several.
func gathering(bind func(executor.Sink) (executor.Executor, error)) func(executor.Sink) (executor.Executor, error) {
	return func(sink executor.Sink) (executor.Executor, error) {
		var mu, door sync.Mutex
		var list []executor.Report
		tell := func() {
			door.Lock()
			defer door.Unlock()
			mu.Lock()
			batch := list
			list = nil
			mu.Unlock()
			if len(batch) > 0 {
				sink(batch...)
			}
		}
		return bind(func(reports ...executor.Report) {
			mu.Lock()
			first := len(list) == 0
			list = append(list, reports...)
			full := len(list) >= 20
			mu.Unlock()
			switch {
			case full:
				tell()
			case first:
				time.AfterFunc(300*time.Microsecond, tell)
			}
		})
	}
}

// TestStormOfBatches is TestStorm with reports that come together, and with attempts that outlive
// their run's actor. (Those that outlive a crash would be known to the node before it, which is
// not dead in a test.)
func TestStormOfBatches(t *testing.T) {
	gathers := func(c *Config) { c.Executors["process"] = gathering(c.Executors["process"]) }
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { storm(t, seed, 3, newRig(t, gathers, snapshotsOf(seed))) })
		t.Run(fmt.Sprint(seed, " durable"), func(t *testing.T) {
			r, _ := durable(t, gathers, snapshotsOf(seed))
			storm(t, seed, 1, r)
		})
	}
}
