package main

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/riverdriver/riversqlite"
	_ "modernc.org/sqlite"
)

// onSQLite measures on a new file, which it leaves for the caller to remove. In WAL mode a commit
// appends to the log, and synchronous(FULL) syncs the log at each commit: as durable as Caravan. NORMAL
// would sync at checkpoints alone, and lose commits in a power failure. It has one connection, as
// River's documentation asks for, so all callers take turns.
func onSQLite(ctx context.Context, file string, o options) (figures, error) {
	db, err := sql.Open("sqlite", file+"?_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=busy_timeout(10000)")
	if err != nil {
		return figures{}, err
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	// A poll each 2 ms takes part of a core. A longer interval would be part of each hop of a chain.
	return measure(ctx, o, database[*sql.Tx]{
		driver: riversqlite.New(db),
		poll:   2 * time.Millisecond, // SQLite cannot notify a client of new jobs
		begin:  func(ctx context.Context) (*sql.Tx, error) { return db.BeginTx(ctx, nil) },
		commit: func(_ context.Context, tx *sql.Tx) error { return tx.Commit() },
		complete: func(ctx context.Context, tx *sql.Tx, job *river.Job[step]) error {
			_, err := river.JobCompleteTx[*riversqlite.Driver](ctx, tx, job)
			return err
		},
	})
}

// onPostgres measures on a database of the test alone: it drops the public schema and makes it again.
// The pool has as many connections as submissions has callers, so that an insertion does not wait for
// one. Commits are synced by the defaults of the server (fsync, synchronous_commit).
func onPostgres(ctx context.Context, connection string, o options) (figures, error) {
	cfg, err := pgxpool.ParseConfig(connection)
	if err != nil {
		return figures{}, err
	}
	cfg.MaxConns = 64
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return figures{}, err
	}
	defer pool.Close()
	if _, err := pool.Exec(ctx, "DROP SCHEMA IF EXISTS public CASCADE; CREATE SCHEMA public"); err != nil {
		return figures{}, fmt.Errorf("replace the public schema: %w", err)
	}
	return measure(ctx, o, database[pgx.Tx]{
		driver: riverpgxv5.New(pool),
		poll:   time.Second, // it is notified
		begin:  pool.Begin,
		commit: func(ctx context.Context, tx pgx.Tx) error { return tx.Commit(ctx) },
		complete: func(ctx context.Context, tx pgx.Tx, job *river.Job[step]) error {
			_, err := river.JobCompleteTx[*riverpgxv5.Driver](ctx, tx, job)
			return err
		},
	})
}
