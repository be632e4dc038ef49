package slurm

import "github.com/caravan-dag/caravan/messages"

// HoldCollections takes all places of runAsync, so that reports are not made until release is called.
// The caller sees to it that none is under way.
func HoldCollections(s *Slurm) (release func()) {
	for range maxCollecting {
		s.collectSlots <- struct{}{}
	}
	return func() {
		for range maxCollecting {
			<-s.collectSlots
		}
	}
}

// IsCollecting tells whether an attempt is over and its final report is being made. All requests that
// came before it have been served when it returns.
func IsCollecting(s *Slurm, key messages.AttemptKey) bool {
	is := make(chan bool, 1)
	s.request(func() {
		a := s.reconciler.attempts[key]
		is <- a != nil && a.stage == stageCollecting
	})
	return <-is
}
