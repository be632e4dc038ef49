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

// step is a job. With Chain it is one of a chain, and Left is how many follow it one by one, each inserted
// in the transaction that completes the one before. The zero value is a job of a fan or a submission.
// The arguments are what River stores of a job, as JSON.
type step struct {
	Chain bool `json:"chain"`
	Left  int  `json:"left"`
}

// Kind names it to River, which stores the kind with each job and finds the worker by it.
func (step) Kind() string { return "step" }

// database is what differs between databases. TTx is a transaction of the driver.
type database[TTx any] struct {
	driver riverdriver.Driver[TTx]
	// poll is how often River looks for new jobs by itself. On a database that notifies it of new
	// jobs it is a fallback.
	poll     time.Duration
	begin    func(context.Context) (TTx, error)
	commit   func(context.Context, TTx) error
	complete func(context.Context, TTx, *river.Job[step]) error // as part of the transaction
}

// worker works steps. River calls it from up to options.slots goroutines at a time. client is set before
// the first call.
type worker[TTx any] struct {
	river.WorkerDefaults[step]
	db      database[TTx]
	client  *river.Client[TTx]
	program []string // empty for no-ops
	// ended gets one value per chain that is done. It has room for one, and chains run one after the
	// other, so that a worker does not wait here for the goroutine that measures.
	ended chan struct{}
}

// Work is called by River, once per job. A job of a fan ends by returning: River then completes it, in
// batches with others. A job of a chain completes itself in the transaction that inserts its successor,
// so that a crash neither loses the chain nor repeats a hop. River retries a job that returns an error.
// If that does not help, the caller finds that jobs no longer end, and fails the measurement.
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

// measure migrates the database and does the work. The configuration is the one that favours River:
//
//   - FetchCooldown is the least that River allows, because its default of 100 ms would be the time of
//     each hop of a chain.
//   - FetchPollInterval matters where the database does not notify the client.
//   - JobTimeout is off, so that a job does not need a timer.
//   - Only errors are logged.
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

// fan is 1 -> n -> 1: each stage is inserted when all of the one before is completed. That is known by
// River's events, and lost with this process. A stage is one insertion of all its jobs, the fastest that
// River has. The time ends with the event of the last job.
func (w *worker[TTx]) fan(ctx context.Context, n int, events <-chan *river.Event) (figures, error) {
	begin := time.Now()
	for _, size := range []int{1, n, 1} {
		// The jobs of a stage are equal: River does not compare them, so they are n jobs.
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

// chains runs n chains of a length, one after the other. The first tenth of n more warms up, which for a
// single chain is none: its length outweighs a cold start. The percentiles are of whole chains.
func (w *worker[TTx]) chains(ctx context.Context, n, length int) (figures, error) {
	var took []time.Duration
	begin := time.Now()
	for i := range n + n/10 {
		if i == n/10 {
			begin = time.Now()
		}
		at := time.Now()
		// The whole chain follows from this one job: this goroutine only waits for its end.
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

// submissions inserts jobs one by one from 64 goroutines, as w3 submits over 64 connections. Each insert
// is a transaction of its own. The client is not started, so it does not work them. A caller that fails
// stops; its error fails the measurement.
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
			// Each goroutine keeps its own times until the end, so that they do not share a lock.
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
