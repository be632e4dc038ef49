package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/cluster"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/messages"
)

// TestOutputCleaner removes the files of deleted runs and no others. A partition that does not answer keeps its
// files, and does not hold up the others.
func TestOutputCleaner(t *testing.T) {
	dir := t.TempDir()
	store, err := outputs.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	const files = 2*cluster.MaxDeletedRuns + 500 // two partitions, one and a half questions for each
	for run := range files {
		folder := filepath.Join(dir, strconv.Itoa(run/1000))
		if err := os.MkdirAll(folder, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, strconv.Itoa(run)+".out"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(filesOf(t, store)); n != files {
		t.Fatalf("%d files, not %d", n, files)
	}
	isDeleted := func(run messages.RunID) bool { return run%7 == 0 }
	silent := map[int]bool{1: true}
	questions := map[int]int{}
	cleaner := &outputCleaner{outputs: store, partitions: 2, deletedRuns: func(_ context.Context, partition int, runs []messages.RunID) (deleted []messages.RunID, err error) {
		questions[partition]++
		if silent[partition] {
			return nil, errors.New("no leader")
		}
		if len(runs) > cluster.MaxDeletedRuns || slices.ContainsFunc(runs, func(run messages.RunID) bool { return int(run%2) != partition }) {
			t.Errorf("partition %d is asked for %d runs", partition, len(runs))
		}
		return slices.DeleteFunc(slices.Clone(runs), func(run messages.RunID) bool { return !isDeleted(run) }), nil
	}}
	clean := func() error {
		t.Helper()
		clear(questions)
		before, had := filesOf(t, store), 0
		removed, err := cleaner.clean(t.Context())
		after := filesOf(t, store)
		for run := range before {
			had++
			if want := !isDeleted(run) || silent[int(run%2)]; after[run] != want {
				t.Errorf("run %d has its file: %v", run, after[run])
			}
		}
		if removed != had-len(after) {
			t.Errorf("%d files, not %d, were removed", removed, had-len(after))
		}
		return err
	}
	if err := clean(); err == nil || !strings.Contains(err.Error(), "partition 1: no leader") || questions[0] != 2 || questions[1] != 1 {
		t.Errorf("%v, questions %v", err, questions)
	}
	silent[1] = false
	if err := clean(); err != nil || questions[1] != 2 {
		t.Errorf("%v, questions %v", err, questions)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := cleaner.clean(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("after the stop: %v", err)
	}
}

// filesOf returns the runs that have an output file.
func filesOf(t *testing.T, store *outputs.Store) map[messages.RunID]bool {
	t.Helper()
	all := map[messages.RunID]bool{}
	if err := store.ForEachRun(func(run messages.RunID) error { all[run] = true; return nil }); err != nil {
		t.Fatal(err)
	}
	return all
}
