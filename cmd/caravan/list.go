package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/caravan-dag/caravan/client"
)

func (m *Main) lsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:        "ls",
		SuggestFor: []string{"list", "ps", "runs", "jobs"},
		Short:      "List the runs that have not ended, or with --all every run",
		Args:       args(0, 0, "no arguments"),
	}
	r := m.talks(m.shows(cmd))
	var (
		o      client.ListOptions
		tag    string
		states []string
		limit  int
	)
	cmd.Flags().BoolVarP(&o.All, "all", "a", false, "list finished runs too")
	cmd.Flags().StringVar(&tag, "tag", "", "only runs with this `tag`")
	cmd.Flags().StringSliceVar(&states, "state", nil, "only runs in this `state`; may be given more than once")
	words(cmd, "state", runWords()...)
	cmd.Flags().BoolVarP(&o.Newest, "reverse", "r", false, "newest first")
	cmd.Flags().IntVar(&limit, "limit", 0, "at most this `number` of runs; 0 for all")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := r.client()
		if err != nil {
			return err
		}
		if cmd.Flags().Changed("tag") {
			o.Tag = &tag
		}
		if limit < 0 {
			return usagef("--limit must not be negative")
		}
		if o.States, err = runStates(states); err != nil {
			return err
		}
		if limit > 0 && limit < 1000 {
			o.Limit = limit
		}
		runs := take(c.Runs(cmd.Context(), o), limit)
		if m.json {
			return writeArray(m, runs)
		}
		t := newTable(m.Stdout, m.painter(m.Stdout), "RUN", "TAG", "STATE", "TASKS", "STARTED", "TOOK")
		none := true
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
				fmt.Sprintf("%d/%d", s.Ended(), s.Total()), m.moment(s.StartTime), span(took(s)))
			if err != nil {
				return err
			}
		}
		if none && !o.All && len(states) == 0 {
			fmt.Fprintln(m.Stderr, "no unfinished run; --all lists finished ones, too")
		} else if none {
			fmt.Fprintln(m.Stderr, "no such run")
		}
		return errors.Join(append(damaged, t.flush())...)
	}
	return cmd
}

// took is how long a run has been going on, or went on.
func took(s *client.Summary) time.Duration {
	if client.Final(s.State) {
		return time.Duration(s.LastUpdate - s.StartTime)
	}
	return time.Since(s.StartTime.Time())
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// runWords and taskWords are the states that there are.
func runWords() []string {
	return []string{client.Queued, client.Running, client.Paused, client.Completed, client.Errored, client.Killed}
}

func taskWords() []string {
	return []string{client.Queued, client.Running, client.Retry, client.Completed, client.Errored, client.Killed}
}

// runStates and taskStateNames check words that the user typed, in any case.
func runStates(words []string) ([]string, error) { return knownStates(words, runWords()...) }

func taskStateNames(words []string) ([]string, error) { return knownStates(words, taskWords()...) }

func knownStates(words []string, known ...string) ([]string, error) {
	var out []string
next:
	for _, w := range words {
		for _, k := range known {
			if strings.EqualFold(w, k) {
				out = append(out, k)
				continue next
			}
		}
		return nil, usagef("%q is no state: those are %s", w, strings.Join(known, ", "))
	}
	return out, nil
}

// take yields at most n values; all for 0.
func take[T any](seq iter.Seq2[T, error], n int) iter.Seq2[T, error] {
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

// writeArray prints what it is given as one JSON array, an element a line, as it
// arrives. An error leaves the array open: the reader sees that it is not whole.
func writeArray[T any](m *Main, seq iter.Seq2[T, error]) error {
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
