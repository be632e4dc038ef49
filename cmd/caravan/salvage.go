package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/internal/datafolder"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// salvageMargin is how many run ids are passed over when it is not known which were in
// use: more than a server takes in the minute for which its last note of them is good.
const salvageMargin = 10_000_000

// salvaged is what `caravan salvage` did.
type salvaged struct {
	checked
	Into    string   `json:"into"`
	Kept    int      `json:"kept"`
	LeftOut []uint64 `json:"leftOut"` // runs that are damaged, or not provably whole
	NextRun uint64   `json:"nextRun"`
	// KeptKeys is how many idempotency keys of deleted runs were kept.
	KeptKeys int `json:"keptKeys"`
}

func (m *Main) salvageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "salvage DATA INTO",
		Short: "Write a new data folder with all runs of a damaged one that are provably whole",
		Long: "Salvage reads the data folder DATA as check does, and writes the folder INTO with the runs that are\n" +
			"whole, their output, and the idempotency keys of deleted runs. DATA is not changed. INTO must be empty or not exist; it has an identity of\n" +
			"its own and starts paused (serve --resume). What is left out is printed, with the reason.",
		Args: args(2, 2, "a data folder and a new one"),
	}
	m.shows(cmd)
	scratch := cmd.Flags().String("scratch", "", "`folder` for temporary files; default: the system's")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := salvage(cmd.Context(), args[0], args[1], *scratch)
		if err != nil {
			return err
		}
		if m.json {
			return m.printJSON(s)
		}
		if err := m.showChecked(&s.checked); err != nil {
			return err
		}
		for _, run := range s.LeftOut {
			fmt.Fprintf(m.Stdout, "left out: run %d\n", run)
		}
		fmt.Fprintf(m.Stdout, "%d runs are in %s, the next one will have the id %d\n", s.Kept, s.Into, s.NextRun)
		return nil
	}
	return cmd
}

func salvage(ctx context.Context, from, into, scratch string) (s *salvaged, err error) {
	err = inspectFolder(ctx, from, scratch, func(data *datafolder.Folder, old *persistence.Offline) error {
		s, err = salvageInto(ctx, data, old, into)
		return err
	})
	return s, err
}

// outside refuses a path in a data folder, also one that leads there by links.
func outside(data, path string) error {
	real, err := resolved(path)
	if err != nil {
		return err
	}
	if rel, err := filepath.Rel(data, real); err == nil && filepath.IsLocal(rel) {
		return usagef("%s lies in the data folder %s: name a path outside of it", path, data)
	}
	return nil
}

// resolved is a path without links, as far as it exists.
func resolved(path string) (real string, err error) {
	if path, err = filepath.Abs(path); err != nil {
		return "", err
	}
	real, err = filepath.EvalSymlinks(path)
	for at := path; errors.Is(err, fs.ErrNotExist) && at != filepath.Dir(at); {
		at = filepath.Dir(at)
		if real, err = filepath.EvalSymlinks(at); err == nil {
			rest, _ := filepath.Rel(at, path)
			real = filepath.Join(real, rest)
		}
	}
	return real, err
}

// salvageInto makes the new folder.
func salvageInto(ctx context.Context, data *datafolder.Folder, old *persistence.Offline, into string) (s *salvaged, err error) {
	if err := outside(data.Path(), into); err != nil {
		return nil, err
	}
	draft, err := datafolder.Make(into, data.ID())
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, draft.Discard())
		}
	}()
	store, err := persistence.OpenBadger(persistence.Config{Dir: draft.DB()})
	if err != nil {
		return nil, err
	}
	s, err = rescue(ctx, data, old, draft, store)
	if err = errors.Join(err, store.Close()); err != nil {
		return nil, err
	}
	if err := draft.Finish("salvaged from " + data.Path() + ": look first, then resume"); err != nil {
		return nil, err
	}
	return s, draft.Close()
}

// rescue copies what is whole.
func rescue(ctx context.Context, data *datafolder.Folder, old *persistence.Offline, draft *datafolder.Draft, store *persistence.Badger) (*salvaged, error) {
	s := &salvaged{Into: draft.Path(), LeftOut: []uint64{}}
	c, err := checkFolder(ctx, data, old, func(id messages.RunID, state dag.RunState) error {
		if old.UnboundedLoss && !state.Final() {
			// Its newest rows may be among those that are missing.
			s.LeftOut = append(s.LeftOut, uint64(id))
			return nil
		}
		s.Kept++
		if err := outputs.CopyRun(data.Output(), draft.Output(), id); err != nil {
			return err
		}
		return old.CopyRun(id, store)
	})
	if err != nil {
		return nil, err
	}
	s.checked = *c
	s.LeftOut = append(s.LeftOut, c.Damaged...)
	if s.KeptKeys, err = old.CopyKeys(store); err != nil {
		return nil, err
	}
	next, err := old.NextRun()
	if err != nil {
		return nil, err
	}
	if !c.Whole {
		next += salvageMargin
	}
	s.NextRun = uint64(next)
	return s, store.SetNextRun(next)
}
