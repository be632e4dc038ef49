package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver"
	"github.com/riverqueue/river/rivermigrate"
)

// step is a job. Left is how many follow it one by one, each inserted in the
// transaction that completes the one before.
type step struct {
	Chain bool `json:"chain"`
	Left  int  `json:"left"`
}

// Kind names it to River.
func (step) Kind() string { return "step" }

// database is what differs between databases.
type database[TTx any] struct {
	driver   riverdriver.Driver[TTx]
	poll     time.Duration // how often new jobs are looked for when nothing tells of them
	begin    func(context.Context) (TTx, error)
	commit   func(context.Context, TTx) error
	complete func(context.Context, TTx, *river.Job[step]) error
}

// worker works steps.
type worker[TTx any] struct {
	river.WorkerDefaults[step]
	db      database[TTx]
	client  *river.Client[TTx]
	program []string
	ended   chan struct{} // gets one value per chain that is done
}

// Work is called by River.
func (w *worker[TTx]) Work(ctx context.Context, job *river.Job[step]) error {
	if len(w.program) > 0 {
		if err := exec.CommandContext(ctx, w.program[0], w.program[1:]...).Run(); err != nil {
			return err
		}
	}
	if !job.Args.Chain {
		return nil
	}
	tx, err := w.db.begin(ctx)
	if err != nil {
		return err
	}
	if job.Args.Left > 0 {
		if _, err := w.client.InsertTx(ctx, tx, step{Chain: true, Left: job.Args.Left - 1}, nil); err != nil {
			return err
		}
	}
	if err := w.db.complete(ctx, tx, job); err != nil {
		return err
	}
	if err := w.db.commit(ctx, tx); err != nil {
		return err
	}
	if job.Args.Left == 0 {
		w.ended <- struct{}{}
	}
	return nil
}

// measure migrates the database and does the work.
func measure[TTx any](ctx context.Context, o options, db database[TTx]) (figures, error) {
	migrator, err := rivermigrate.New(db.driver, nil)
	if err != nil {
		return figures{}, err
	}
	if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return figures{}, fmt.Errorf("migrate: %w", err)
	}
	w := &worker[TTx]{db: db, program: o.program, ended: make(chan struct{}, 1)}
	workers := river.NewWorkers()
	river.AddWorker(workers, w)
	w.client, err = river.NewClient(db.driver, &river.Config{
		FetchCooldown:     time.Millisecond,
		FetchPollInterval: db.poll,
		JobTimeout:        -1,
		Logger:            slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})),
		Queues:            map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: o.slots}},
		Workers:           workers,
	})
	if err != nil {
		return figures{}, err
	}
	if o.work == "submit" {
		return w.submissions(ctx, o.during)
	}
	// One event per job. The channel holds all of them, because River drops the events that do not fit.
	events, cancel := w.client.SubscribeConfig(&river.SubscribeConfig{ChanSize: o.n + 16, Kinds: []river.EventKind{river.EventKindJobCompleted}})
	defer cancel()
	if err := w.client.Start(ctx); err != nil {
		return figures{}, err
	}
	defer func() { _ = w.client.StopAndCancel(ctx) }()
	switch o.work {
	case "fan":
		return w.fan(ctx, o.n, events)
	case "chain":
		return w.chains(ctx, 1, o.n)
	case "empty":
		return w.chains(ctx, o.n, 1)
	}
	return figures{}, fmt.Errorf("-work %q: neither fan, chain, empty nor submit", o.work)
}

// fan is 1 -> n -> 1: each stage is inserted when all of the one before is
// completed. That is known by River's events, and lost with this process.
func (w *worker[TTx]) fan(ctx context.Context, n int, events <-chan *river.Event) (figures, error) {
	begin := time.Now()
	for _, size := range []int{1, n, 1} {
		jobs := make([]river.InsertManyParams, size)
		for i := range jobs {
			jobs[i].Args = step{}
		}
		if _, err := w.client.InsertManyFast(ctx, jobs); err != nil {
			return figures{}, err
		}
		for range size {
			select {
			case <-events:
			case <-time.After(time.Minute):
				return figures{}, errors.New("no job was completed for a minute")
			}
		}
	}
	elapsed := time.Since(begin)
	return figures{Seconds: elapsed.Seconds(), Rate: float64(n+2) / elapsed.Seconds()}, nil
}

// chains runs chains of a length one after the other; a tenth more warms up.
func (w *worker[TTx]) chains(ctx context.Context, n, length int) (figures, error) {
	var took []time.Duration
	begin := time.Now()
	for i := range n + n/10 {
		if i == n/10 {
			begin = time.Now()
		}
		at := time.Now()
		if _, err := w.client.Insert(ctx, step{Chain: true, Left: length - 1}, nil); err != nil {
			return figures{}, err
		}
		select {
		case <-w.ended:
		case <-time.After(time.Minute):
			return figures{}, errors.New("a chain did not end within a minute")
		}
		if i >= n/10 {
			took = append(took, time.Since(at))
		}
	}
	return latencies(took, time.Since(begin)), nil
}

// submissions inserts jobs one by one from 64 goroutines. The client does not work them.
func (w *worker[TTx]) submissions(ctx context.Context, during time.Duration) (figures, error) {
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		took  []time.Duration
		errs  []error
		begin = time.Now()
	)
	for range 64 {
		wg.Go(func() {
			var mine []time.Duration
			var err error
			for err == nil && time.Since(begin) < during {
				at := time.Now()
				_, err = w.client.Insert(ctx, step{}, nil)
				mine = append(mine, time.Since(at))
			}
			mu.Lock()
			defer mu.Unlock()
			took, errs = append(took, mine...), append(errs, err)
		})
	}
	wg.Wait()
	return latencies(took, time.Since(begin)), errors.Join(errs...)
}
