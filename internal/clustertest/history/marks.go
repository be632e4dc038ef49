package history

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// MarkKind is what a process of a task tells of itself.
type MarkKind string

const (
	MarkStarted MarkKind = "start"
	MarkAlive   MarkKind = "alive"
	MarkEnded   MarkKind = "end"
)

// Mark is one line that the process of an attempt has appended to a file outside of the service. The
// order of lines in the file is their real order, because a short append is atomic.
type Mark struct {
	Run     uint64        `json:"run"`
	Task    string        `json:"task"`
	Attempt int           `json:"attempt"`
	Kind    MarkKind      `json:"kind"`
	RC      int           `json:"rc"`   // of MarkEnded
	Time    time.Duration `json:"time"` // of Clock, rounded down to 10 ms
}

// clockResolution is that of the times of marks.
const clockResolution = 10 * time.Millisecond

// taskKey names a task of all runs.
type taskKey struct {
	run  uint64
	task string
}

// taskKey is the task that the mark is about: attempts of one task are compared.
func (m *Mark) taskKey() taskKey { return taskKey{m.Run, m.Task} }

// Script returns a script for /bin/sh that runs body in a subshell and appends marks to file: at the
// start, at the end, and every heartbeat (a number of seconds, as sleep takes it; "" = never) in
// between. The script ends with the exit code of body. It uses no program except sleep.
func Script(file, heartbeat, body string) string {
	quoted := "'" + strings.ReplaceAll(file, "'", `'\''`) + "'"
	script := `mark() { read -r now idle </proc/uptime; echo "$CARAVAN_RUN_ID $CARAVAN_TASK $CARAVAN_ATTEMPT $1 $now" >>` + quoted + "; }\n" +
		"mark start\n"
	if heartbeat != "" {
		script += "( while sleep " + heartbeat + "; do mark alive; done ) >/dev/null 2>&1 & beat=$!\n"
	}
	script += "( " + body + "\n); rc=$?\n"
	if heartbeat != "" {
		script += "kill $beat 2>/dev/null; wait $beat 2>/dev/null\n"
	}
	return script + `mark "end:$rc"` + "\nexit $rc\n"
}

// ParseMarks reads the lines that processes have appended by Script. The last line may be incomplete
// when its process was killed or lost its file system; that is not an error.
func ParseMarks(text string) (marks []Mark, err error) {
	for line := range strings.Lines(text) {
		if !strings.HasSuffix(line, "\n") {
			break
		}
		m, err := parseMark(strings.Fields(line))
		if err != nil {
			return nil, fmt.Errorf("line %d of the marks: %q: %w", len(marks)+1, line, err)
		}
		marks = append(marks, m)
	}
	return marks, nil
}

func parseMark(fields []string) (m Mark, err error) {
	if len(fields) != 5 {
		return m, fmt.Errorf("it has %d fields, not 5", len(fields))
	}
	if m.Run, err = strconv.ParseUint(fields[0], 10, 64); err != nil {
		return m, err
	}
	m.Task = fields[1]
	if m.Attempt, err = strconv.Atoi(fields[2]); err != nil {
		return m, err
	}
	kind, rc, hasRC := strings.Cut(fields[3], ":")
	if m.Kind = MarkKind(kind); hasRC {
		if m.RC, err = strconv.Atoi(rc); err != nil {
			return m, err
		}
	}
	if !slices.Contains([]MarkKind{MarkStarted, MarkAlive, MarkEnded}, m.Kind) || hasRC != (m.Kind == MarkEnded) {
		return m, fmt.Errorf("unknown kind %q", fields[3])
	}
	seconds, err := strconv.ParseFloat(fields[4], 64)
	m.Time = time.Duration(seconds * float64(time.Second)).Round(clockResolution)
	return m, err
}

// attemptMarks is what the marks say about one attempt. Positions are indexes of the marks.
type attemptMarks struct {
	number        int
	start         time.Duration
	firstPosition int
	lastPosition  int
	hasEnded      bool
}

// Attempts are judged by the order of their marks. Times only decide whether a lease was over,
// because they are as coarse as the clock that a shell can read without starting a program.

// checkAttempts: rule attempts. An attempt starts once, and tells no more after its end. All marks
// of an attempt come before the start of the next one, except after a lease: see leaseIsOver.
func (c *check) checkAttempts() {
	tasks := map[taskKey][]*attemptMarks{}
	for i := range c.Marks {
		m := &c.Marks[i]
		attempts := tasks[m.taskKey()]
		at := slices.IndexFunc(attempts, func(a *attemptMarks) bool { return a.number == m.Attempt })
		if at < 0 {
			if m.Kind != MarkStarted {
				c.reportf("attempts", "run %d: task %s: attempt %d did not start: %s at %v", m.Run, m.Task, m.Attempt, m.Kind, m.Time)
			}
			tasks[m.taskKey()] = append(attempts, &attemptMarks{m.Attempt, m.Time, i, i, m.Kind == MarkEnded})
			continue
		}
		a := attempts[at]
		switch {
		case m.Kind == MarkStarted:
			c.reportf("attempts", "run %d: task %s: attempt %d started at %v and again at %v", m.Run, m.Task, m.Attempt, a.start, m.Time)
		case a.hasEnded:
			c.reportf("attempts", "run %d: task %s: attempt %d ended and goes on: %s at %v", m.Run, m.Task, m.Attempt, m.Kind, m.Time)
		}
		a.lastPosition, a.hasEnded = i, a.hasEnded || m.Kind == MarkEnded
	}
	keys := slices.SortedFunc(maps.Keys(tasks), func(a, b taskKey) int {
		return cmp.Or(cmp.Compare(a.run, b.run), cmp.Compare(a.task, b.task))
	})
	for _, key := range keys {
		c.checkOverlap(key, tasks[key])
	}
}

// checkOverlap checks the attempts of a task, which are in the order of their starts.
func (c *check) checkOverlap(key taskKey, attempts []*attemptMarks) {
	for i, next := range attempts {
		for _, a := range attempts[:i] {
			if a.number > next.number {
				c.reportf("attempts", "run %d: task %s: attempt %d started after attempt %d", key.run, key.task, next.number, a.number)
			}
			if a.lastPosition > next.firstPosition && !c.leaseIsOver(a.start, next.start) {
				c.reportf("attempts", "run %d: task %s: attempt %d started at %v while attempt %d (from %v) ran, to %v at least",
					key.run, key.task, next.number, next.start, a.number, a.start, c.Marks[a.lastPosition].Time)
			}
		}
	}
}

// leaseIsOver reports whether an attempt that started at first may have been given up at next: it was
// interrupted, and a lease has passed since then.
func (c *check) leaseIsOver(first, next time.Duration) bool {
	return c.Lease > 0 && slices.ContainsFunc(c.Interruptions, func(i Interruption) bool {
		return (i.Until == 0 || i.Until >= first) && max(i.From, first)+c.Lease <= next+clockResolution
	})
}

// checkParents: rule parents. Each start comes after a successful end of every parent.
func (c *check) checkParents() {
	succeeded := map[taskKey]bool{}
	for i := range c.Marks {
		m := &c.Marks[i]
		switch {
		case m.Kind == MarkEnded && m.RC == 0:
			succeeded[m.taskKey()] = true
		case m.Kind == MarkStarted:
			for _, parent := range c.Parents[c.runFacts(m.Run).tag][m.Task] {
				if !succeeded[taskKey{m.Run, parent}] {
					c.reportf("parents", "run %d: task %s started at %v before its parent %s had succeeded", m.Run, m.Task, m.Time, parent)
				}
			}
		}
	}
	c.checkParentNames()
}

// checkParentNames reports edges to tasks that the record does not have, such as misspelled ones.
func (c *check) checkParentNames() {
	for _, r := range c.runsInOrder() {
		if r.record == nil {
			continue
		}
		edges := c.Parents[r.tag]
		for _, task := range slices.Sorted(maps.Keys(edges)) {
			for _, name := range append([]string{task}, edges[task]...) {
				if r.record.TaskStates[name] == "" {
					c.reportf("parents", "run %d: the edges name task %q, which its record does not have", r.id, name)
				}
			}
		}
	}
}
