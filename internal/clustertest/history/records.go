package history

import (
	"maps"
	"slices"
)

// runMoves are the states that may follow each state of a run, as dag/states.go has them.
func runMoves(from string) []string {
	switch from {
	case "":
		return []string{stateQueued}
	case stateQueued:
		return []string{stateRunning, statePaused, stateKilled}
	case stateRunning:
		return []string{statePaused, stateCompleted, stateErrored, stateKilled}
	case statePaused:
		return []string{stateRunning, stateQueued, stateCompleted, stateErrored, stateKilled}
	case stateErrored, stateKilled:
		return []string{stateQueued}
	}
	return nil
}

// checkRecords: rule records. The changes of the state are legal moves and their times ascend; the
// numbers of attempts ascend; what users read is in the record; and the tasks agree with the run.
//
// A state that a user read was durable, so the record of the end still has it: a service that loses
// its newest changes at a crash, and makes other ones after it, breaks this rule.
func (c *check) checkRecords() {
	seen := c.observations()
	for _, r := range c.runsInOrder() {
		if r.record == nil {
			continue
		}
		c.checkStateChanges(r)
		for _, o := range seen[r.id] {
			if !slices.ContainsFunc(r.record.StateChanges, func(s StateChange) bool { return s.State == o.state }) {
				c.reportf("records", "run %d was seen %s, which its record does not have: %s", r.id, o.state, o.operation)
			}
		}
		for _, task := range slices.Sorted(maps.Keys(r.record.TaskStates)) {
			state := r.record.TaskStates[task]
			if r.record.State() == stateCompleted && state != stateCompleted {
				c.reportf("records", "run %d is COMPLETED, its task %s is %s", r.id, task, state)
			}
			if isFinal(r.record.State()) && (state == stateRunning || state == "RETRY") {
				c.reportf("records", "run %d is %s, its task %s is %s", r.id, r.record.State(), task, state)
			}
			number := 0
			for _, a := range r.record.Attempts[task] {
				if a.Number <= number {
					c.reportf("records", "run %d: task %s: attempt %d follows attempt %d", r.id, task, a.Number, number)
				}
				number = a.Number
			}
		}
	}
	for i := range c.Records {
		if r := &c.Records[i]; c.runs[r.Run].record != r {
			c.reportf("records", "run %d has several records", r.Run)
		}
	}
}

// checkStateChanges checks the moves of a record and their times. The times are those of one run, and
// never go back there, whichever node has written them.
func (c *check) checkStateChanges(r *runFacts) {
	var last StateChange
	for _, s := range r.record.StateChanges {
		if !slices.Contains(runMoves(last.State), s.State) {
			c.reportf("records", "run %d: its record moves from %q to %s", r.id, last.State, s.State)
		}
		if s.Nanos <= last.Nanos {
			c.reportf("records", "run %d: its record has %s at %d, not after %q at %d", r.id, s.State, s.Nanos, last.State, last.Nanos)
		}
		last = s
	}
	if last.State == "" {
		c.reportf("records", "run %d: its record has no states", r.id)
	}
}

// checkCompleted: rule completed. A task that is COMPLETED has one success, in its last attempt, and
// its processes tell no later attempt. A run that a user changed is left out: a success after a kill
// does not complete its task.
//
// Attempts that were lost are in the record with an exit code of -1, even if their process succeeded
// unseen. So the exit codes of the record count here, and not those of the marks.
func (c *check) checkCompleted() {
	lastStart := map[taskKey]int{}
	for i := range c.Marks {
		if m := &c.Marks[i]; m.Kind == MarkStarted {
			lastStart[m.taskKey()] = max(lastStart[m.taskKey()], m.Attempt)
		}
	}
	for _, r := range c.runsInOrder() {
		if r.record == nil || len(r.changed) > 0 {
			continue
		}
		for _, task := range slices.Sorted(maps.Keys(r.record.TaskStates)) {
			if r.record.TaskStates[task] != stateCompleted {
				continue
			}
			attempts := r.record.Attempts[task]
			var successes []int
			for _, a := range attempts {
				if a.RC == 0 {
					successes = append(successes, a.Number)
				}
			}
			switch {
			case len(successes) != 1:
				c.reportf("completed", "run %d: task %s is COMPLETED, its successful attempts are %d", r.id, task, successes)
			case attempts[len(attempts)-1].RC != 0:
				c.reportf("completed", "run %d: task %s was COMPLETED by attempt %d and ran again", r.id, task, successes[0])
			case lastStart[taskKey{r.id, task}] > successes[0]:
				c.reportf("completed", "run %d: task %s was COMPLETED by attempt %d, and attempt %d has started",
					r.id, task, successes[0], lastStart[taskKey{r.id, task}])
			}
		}
	}
}

// checkReplicas: rule replicas. Digests of a partition are of one position, and equal. Replicas of
// different positions may differ rightly, so a comparison of them is a mistake of the caller.
func (c *check) checkReplicas() {
	first := map[int]*Digest{}
	for i := range c.Digests {
		d := &c.Digests[i]
		f := first[d.Partition]
		switch {
		case f == nil:
			first[d.Partition] = d
		case f.Position != d.Position:
			c.reportf("replicas", "partition %d: the digest of %s is of position %d, that of %s of position %d",
				d.Partition, f.Node, f.Position, d.Node, d.Position)
		case f.Sum != d.Sum:
			c.reportf("replicas", "partition %d: at position %d the digest of %s is %s, that of %s is %s",
				d.Partition, d.Position, f.Node, f.Sum, d.Node, d.Sum)
		}
	}
}
