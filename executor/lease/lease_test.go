package lease_test

import (
	"testing"
	"time"

	"github.com/caravan-dag/caravan/executor/lease"
)

func none() bool { return false }
func some() bool { return true }

// TestLeaseBeginsWithARenewal: attempts begin between the first renewal and the deadline only, and an
// older renewal does not shorten it.
func TestLeaseBeginsWithARenewal(t *testing.T) {
	var l lease.Lease
	if l.Permits(0) || l.IsOver(100, some) {
		t.Error("a lease that has not begun")
	}
	if l.Extend(10, 10, none) {
		t.Error("a renewal that is late is taken")
	}
	if !l.Extend(20, 10, none) || !l.Permits(19) || l.Permits(20) {
		t.Error("a lease until 20")
	}
	if l.Extend(15, 11, some) || !l.Permits(19) {
		t.Error("an older renewal shortens it")
	}
	if !l.Extend(30, 19, some) || !l.Permits(29) {
		t.Error("it is not renewed in time")
	}
}

// TestLeaseThatIsOverStaysOver until its attempts have ended.
func TestLeaseThatIsOverStaysOver(t *testing.T) {
	var l lease.Lease
	l.Extend(20, 10, none)
	if l.IsOver(19, some) {
		t.Error("over too early")
	}
	if !l.IsOver(20, some) || l.Extend(40, 21, some) || l.Permits(21) {
		t.Error("a lease that is over is renewed with attempts left")
	}
	if l.IsOver(22, none) || !l.Extend(40, 22, none) || !l.Permits(39) {
		t.Error("it is not renewed when the attempts have ended")
	}
	if l.IsOver(40, none) || l.IsPast(41) || l.Permits(41) {
		t.Error("without attempts it is over, and does not end")
	}
}

// TestPartsOfALeaseFit: an attempt has been killed, by a check that came late, before its leader counts it
// as lost.
func TestPartsOfALeaseFit(t *testing.T) {
	for _, length := range []time.Duration{lease.Least, time.Minute, 5 * time.Minute, time.Hour} {
		last := length + lease.CheckInterval(length) + lease.Grace(length)
		if spare := lease.Silence(length) - last; spare < length/16 {
			t.Errorf("lease %v: %v are left for drift and scheduling", length, spare)
		}
		if lease.HeartbeatInterval(length)*10 > length {
			t.Errorf("lease %v: a heartbeat every %v", length, lease.HeartbeatInterval(length))
		}
	}
	if lease.Now() <= 0 {
		t.Error("no clock")
	}
}
