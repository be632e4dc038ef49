package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/caravan-dag/caravan/client"
)

// The commands of this file show runs: they read, once, and change nothing on the server. Tables
// and arrays are printed as the pages of the server arrive, so the first runs of a long list appear
// at once, and a list that breaks off has shown its begin. The exit code of a run's state is only
// for commands that wait: `caravan get` of an ERRORED run exits with 0.

// lsCommand lists runs: as a table, or as a JSON array of summaries with an element per line. An
// empty list is a table with its head alone, and a word on standard error, or "[]". Runs that
// cannot be read are rows with the state "damaged", and make the exit code 1 after all rows are
// printed.
func (m *Main) lsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:        "ls",
		SuggestFor: []string{"list", "ps", "runs", "jobs"},
		Short:      "List unfinished runs, or with --all every run",
		Args:       argCount(0, 0, "no arguments"),
	}
	r := m.addServerFlags(m.addOutputFlag(cmd))
	var (
		o      client.ListOptions
		tag    string
		states []string
		limit  int
	)
	cmd.Flags().BoolVarP(&o.All, "all", "a", false, "list finished runs too")
	cmd.Flags().StringVar(&tag, "tag", "", "only runs with this `tag`")
	cmd.Flags().StringSliceVar(&states, "state", nil, "only runs in this `state`; may be given more than once")
	completeFlag(cmd, "state", runStateNames()...)
	cmd.Flags().BoolVarP(&o.Newest, "reverse", "r", false, "newest first")
	cmd.Flags().IntVar(&limit, "limit", 0, "at most this `number` of runs; 0 for all")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := r.newClient()
		if err != nil {
			return err
		}
		if cmd.Flags().Changed("tag") {
			o.Tag = &tag // --tag "" lists runs with an empty tag
		}
		if limit < 0 {
			return usageErrorf("--limit must not be negative")
		}
		if o.States, err = parseRunStates(states); err != nil {
			return err
		}
		// The size of a page. c.Runs asks for page after page of 1,000 runs; a shorter list is one
		// request.
		if limit > 0 && limit < 1000 {
			o.Limit = limit
		}
		runs := limitSeq(c.Runs(cmd.Context(), o), limit)
		if m.jsonOutput {
			return writeJSONArray(m, runs)
		}
		t := newTable(m.Stdout, m.statePainter(m.Stdout), "RUN", "TAG", "STATE", "TASKS", "STARTED", "TOOK")
		none := true // no run was listed
		var damaged []error
		for s, err := range runs {
			if err != nil {
				return err
			}
			none = false
			if s.Error != "" {
				damaged = append(damaged, errors.New(s.Error))
				if err := t.add(strconv.FormatUint(s.RunID, 10), "-", "damaged", "-", "-", "-"); err != nil {
					return err
				}
				continue
			}
			err = t.add(strconv.FormatUint(s.RunID, 10), orDash(s.Tag), s.State,
				fmt.Sprintf("%d/%d", s.Ended(), s.Total()), m.formatTime(s.StartTime), formatDuration(runDuration(s)))
			if err != nil {
				return err
			}
		}
		if none && !o.All && len(states) == 0 {
			fmt.Fprintln(m.Stderr, "no unfinished runs; --all lists finished runs too")
		} else if none {
			fmt.Fprintln(m.Stderr, "no matching runs")
		}
		return errors.Join(append(damaged, t.flush())...)
	}
	return cmd
}

// runDuration returns how long a run has taken so far, or took, since it was accepted. The time so
// far is by the clock of this machine, while the server's clock has set the start.
func runDuration(s *client.Summary) time.Duration {
	if client.Final(s.State) {
		return time.Duration(s.LastUpdate - s.StartTime)
	}
	return time.Since(s.StartTime.Time())
}

// orDash shows an empty cell of a table, so that the columns can be split at blanks.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// runStateNames and taskStateNames list the valid states, in the order of a life: for completion,
// and for the error about an unknown one. A run can be PAUSED and a task can wait in RETRY.
func runStateNames() []string {
	return []string{client.Queued, client.Running, client.Paused, client.Completed, client.Errored, client.Killed}
}

func taskStateNames() []string {
	return []string{client.Queued, client.Running, client.Retry, client.Completed, client.Errored, client.Killed}
}

// parseRunStates and parseTaskStates check states that the user typed, in any case, and return them
// in capitals as the API has them. The error is a usageError that lists the valid ones: the server
// would answer 400, which is the code of an invalid graph.
func parseRunStates(words []string) ([]string, error) { return parseStates(words, runStateNames()...) }

func parseTaskStates(words []string) ([]string, error) {
	return parseStates(words, taskStateNames()...)
}

func parseStates(words []string, known ...string) ([]string, error) {
	var out []string
next:
	for _, w := range words {
		for _, k := range known {
			if strings.EqualFold(w, k) {
				out = append(out, k)
				continue next
			}
		}
		return nil, usageErrorf("unknown state %q: must be one of %s", w, strings.Join(known, ", "))
	}
	return out, nil
}

// limitSeq yields at most n values; n = 0 means all. It ends after an error, which does not count.
func limitSeq[T any](seq iter.Seq2[T, error], n int) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		left := n
		for v, err := range seq {
			if !yield(v, err) || err != nil {
				return
			}
			if left--; n > 0 && left == 0 {
				return
			}
		}
	}
}

// writeJSONArray prints seq as one JSON array, an element per line, as the elements arrive. After
// an error the array stays open, so that a reader can tell that it is incomplete.
//
//	[
//	  {"runID":7,…},
//	  {"runID":8,…}
//	]
func writeJSONArray[T any](m *Main, seq iter.Seq2[T, error]) error {
	sep := "["
	for v, err := range seq {
		if err != nil {
			return err
		}
		line, err := json.Marshal(v)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(m.Stdout, "%s\n  %s", sep, line); err != nil {
			return err
		}
		sep = ","
	}
	end := "\n]\n"
	if sep == "[" {
		end = "[]\n"
	}
	_, err := fmt.Fprint(m.Stdout, end)
	return err
}

// getCommand shows one run, or with --task one task of it. With -o json the record of the run is
// passed on byte by byte: a run of a million tasks is never in the memory of this program. The
// record has all tasks, so the flags that select some apply to the table only.
func (m *Main) getCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:        "get ID",
		SuggestFor: []string{"status", "state", "show", "describe", "inspect", "tasks"},
		Short:      "Show a run and its tasks, or with --task one task",
		Long: "Get shows a run at a glance and its tasks. With -o json it prints the run's whole record as the\n" +
			"server streams it; --state and --limit then do not apply.",
		Args: argCount(1, 1, "the ID of a run"),
	}
	r := m.addServerFlags(m.addOutputFlag(cmd))
	var (
		task   string
		states []string
		limit  int
	)
	cmd.Flags().StringVar(&task, "task", "", "show only the task with this `name`")
	cmd.Flags().StringSliceVar(&states, "state", nil, "only tasks in this `state`; may be given more than once")
	completeFlag(cmd, "state", taskStateNames()...)
	cmd.Flags().IntVar(&limit, "limit", 100, "at most this `number` of tasks; 0 for all")
	r.completeRunArgs(false)
	r.completeTaskFlag("task")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		id, err := parseRunID(args[0])
		if err != nil {
			return err
		}
		if limit < 0 {
			return usageErrorf("--limit must not be negative")
		}
		if states, err = parseTaskStates(states); err != nil {
			return err
		}
		c, err := r.newClient()
		switch {
		case err != nil:
			return err
		case cmd.Flags().Changed("task"):
			return m.printTask(ctx, c, id, task)
		case m.jsonOutput:
			return m.printRawRun(ctx, c, id)
		}
		return m.printRun(ctx, c, id, client.TaskOptions{States: states}, limit)
	}
	return cmd
}

// printRawRun prints the record of a run as the server streams it, and a line break. An answer that
// breaks off is an error, and the JSON before it is incomplete.
func (m *Main) printRawRun(ctx context.Context, c *client.Client, id uint64) error {
	body, err := c.GetRaw(ctx, id)
	if err != nil {
		return err
	}
	defer body.Close()
	if _, err = io.Copy(m.Stdout, body); err == nil {
		_, err = fmt.Fprintln(m.Stdout)
	}
	return err
}

// printRun prints a summary and a table with at most limit tasks (0 = all). The two come from
// separate requests, so the table may be newer.
//
//	run      7
//	tag      nightly
//	state    RUNNING
//	started  2026-11-30 08:00:00
//	updated  2026-11-30 08:00:02
//	took     2.5s
//	tasks    3: 1 COMPLETED, 2 RUNNING
//
//	TASK    STATE      ATTEMPTS  RC  TOOK
//	build   COMPLETED  1         0   1.2s
func (m *Main) printRun(ctx context.Context, c *client.Client, id uint64, o client.TaskOptions, limit int) error {
	s, err := c.Summary(ctx, id)
	if err != nil {
		return err
	}
	paint := m.statePainter(m.Stdout)
	fmt.Fprintf(m.Stdout, "run      %d\n", s.RunID)
	if s.Tag != "" {
		fmt.Fprintf(m.Stdout, "tag      %s\n", printable(s.Tag))
	}
	fmt.Fprintf(m.Stdout, "state    %s\n", paint(s.State))
	fmt.Fprintf(m.Stdout, "started  %s\n", m.formatTime(s.StartTime))
	fmt.Fprintf(m.Stdout, "updated  %s\n", m.formatTime(s.LastUpdate))
	fmt.Fprintf(m.Stdout, "took     %s\n", formatDuration(runDuration(s)))
	fmt.Fprintf(m.Stdout, "tasks    %d: %s\n\n", s.Total(), formatStateCounts(s.TaskCounts))

	if limit > 0 && limit < 1000 {
		o.Limit = limit + 1 // one more, to learn whether there are more
	}
	t := newTable(m.Stdout, paint, "TASK", "STATE", "ATTEMPTS", "RC", "TOOK")
	n := 0
	for task, err := range c.AllTasks(ctx, id, o) {
		if err != nil {
			return err
		}
		if n++; limit > 0 && n > limit {
			break
		}
		// Both are of the last attempt: its exit code once it has ended, and its time.
		rc, spent := "-", "-"
		if len(task.Attempts) > 0 {
			a := task.Attempts[len(task.Attempts)-1]
			if a.StopTime != 0 {
				rc = strconv.Itoa(a.RC)
			}
			spent = formatDuration(attemptDuration(a))
		}
		if err := t.add(task.Name, task.State, strconv.Itoa(len(task.Attempts)), rc, spent); err != nil {
			return err
		}
	}
	if err := t.flush(); err != nil {
		return err
	}
	if limit > 0 && n > limit {
		fmt.Fprintf(m.Stdout, "there are more than %s: --limit 0 shows all, --state some\n", pluralize(limit, "task"))
	}
	return nil
}

// attemptDuration returns how long an attempt has taken so far, or took; -1 before its start, which
// formatDuration shows as "-".
func attemptDuration(a client.Attempt) time.Duration {
	switch {
	case a.StartTime == 0:
		return -1
	case a.StopTime == 0:
		return time.Since(a.StartTime.Time())
	}
	return time.Duration(a.StopTime - a.StartTime)
}

// printTask prints the state and the definition of one task, as facts, a line each, or as the
// object of the API with the members "name" and "state" in front. Both requests name the task, so
// the state may be newer than the definition; a definition does not change.
func (m *Main) printTask(ctx context.Context, c *client.Client, id uint64, name string) error {
	t, err := c.Task(ctx, id, name)
	if err != nil {
		return suggestTask(ctx, c, id, name, err)
	}
	state, err := c.TaskState(ctx, id, name)
	if err != nil {
		return err
	}
	if m.jsonOutput {
		return m.printJSON(struct {
			Name  string `json:"name"`
			State string `json:"state"`
			*client.Task
		}{name, state, t})
	}
	rows := [][2]string{
		{"task", name},
		{"state", state},
		{"retries", formatRetries(t)},
		{"parents", compactJSON(t.Parents)},
		{"children", compactJSON(t.Children)},
		{"generator", fmt.Sprint(t.IsGenerator)},
		{"job", compactJSON(t.Job)},
	}
	paint := m.statePainter(m.Stdout)
	for _, r := range rows {
		if _, err := fmt.Fprintf(m.Stdout, "%-10s %s\n", r[0], paint(printable(r[1]))); err != nil {
			return err
		}
	}
	return nil
}

// formatRetries describes the retries of a task: "up to 3, after 1s, each time 2 times as long, at
// most 60s".
func formatRetries(t *client.Task) string {
	if t.MaxRetries == 0 {
		return "none"
	}
	s := fmt.Sprintf("up to %d, after %gs", t.MaxRetries, t.RetryIntervalSeconds)
	if t.RetryBackoff > 1 {
		s += fmt.Sprintf(", each time %g times as long", t.RetryBackoff)
	}
	if t.RetryMaxIntervalSeconds > 0 {
		s += fmt.Sprintf(", at most %gs", t.RetryMaxIntervalSeconds)
	}
	return s
}

// compactJSON formats a JSON value on one line, "-" for a missing one.
func compactJSON(raw json.RawMessage) string {
	var b bytes.Buffer
	if json.Compact(&b, raw) != nil {
		return "-"
	}
	return b.String()
}
