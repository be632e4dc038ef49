package worker

import (
	"testing"
	"time"
)

// TestFarewellOfAServerThatIsBack: a server that heard Stopped, went, and came back before the
// worker looked is not waited for.
func TestFarewellOfAServerThatIsBack(t *testing.T) {
	heard := newSession()
	w := &Worker{session: newSession()}
	begin := time.Now()
	w.awaitFarewell(heard)
	if took := time.Since(begin); took > farewellTimeout/2 {
		t.Errorf("the worker ended after %v", took)
	}
}
