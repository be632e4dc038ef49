package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	"github.com/caravan-dag/caravan/client"
)

// getTask shows one task: its state and what it is.
func (m *Main) getTask(ctx context.Context, c *client.Client, id uint64, name string) error {
	t, err := c.Task(ctx, id, name)
	if err != nil {
		return suggestTask(ctx, c, id, name, err)
	}
	state, err := c.TaskState(ctx, id, name)
	if err != nil {
		return err
	}
	if m.json {
		return m.printJSON(struct {
			Name  string `json:"name"`
			State string `json:"state"`
			*client.Task
		}{name, state, t})
	}
	rows := [][2]string{
		{"task", name},
		{"state", state},
		{"retries", retries(t)},
		{"parents", compact(t.Parents)},
		{"children", compact(t.Children)},
		{"generator", fmt.Sprint(t.IsGenerator)},
		{"job", compact(t.Job)},
	}
	paint := m.painter(m.Stdout)
	for _, r := range rows {
		if _, err := fmt.Fprintf(m.Stdout, "%-10s %s\n", r[0], paint(printable(r[1]))); err != nil {
			return err
		}
	}
	return nil
}

func retries(t *client.Task) string {
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

// compact shows a JSON value on one line.
func compact(raw json.RawMessage) string {
	var b bytes.Buffer
	if json.Compact(&b, raw) != nil {
		return "-"
	}
	return b.String()
}
