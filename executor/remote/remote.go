// Package remote runs attempts through a worker process that outlives the server.
package remote

import (
	"errors"
	"log/slog"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/worker"
	"github.com/caravan-dag/caravan/messages"
)

// Config configures a Remote.
type Config struct {
	Dir         string          // DATA/worker
	Binary      string          // program of the worker; "" = this process's own
	Args        []string        // its arguments, as {"worker", "--data", DATA}; "--name", NAME is added
	Sink        executor.Sink   // required
	CoresMilli  int64           // slots, in thousandths of a core
	MemoryMilli int64           // slots, in thousandths of a MB
	Settings    worker.Settings // of the worker; Outputs is required
	CloseGrace  time.Duration   // SIGTERM to SIGKILL at Close; default 1 s
	Logger      *slog.Logger    // default slog.Default()
}

// Remote implements executor.Durable.
type Remote struct{}

// New finds the workers of the data folder, or starts one. It does not wait for them.
func New(cfg Config) (*Remote, error) { return nil, errors.New("remote: not built") }

var _ executor.Durable = (*Remote)(nil)

// Start implements executor.Executor.
func (r *Remote) Start(o executor.Order) {}

// Kill implements executor.Executor.
func (r *Remote) Kill(key messages.AttemptKey, grace time.Duration) {}

// Revoke implements executor.Executor.
func (r *Remote) Revoke(key messages.AttemptKey) {}

// OpenLog implements executor.Executor.
func (r *Remote) OpenLog(key messages.AttemptKey, stream messages.Stream) (messages.Log, error) {
	return nil, executor.ErrNotLive
}

// Acknowledge implements executor.Durable.
func (r *Remote) Acknowledge(keys ...messages.AttemptKey) {}

// Settled says that every live attempt has been given again with Resume: ends that
// nobody asked for are forgotten, and what runs unasked is ended.
func (r *Remote) Settled() {}

// Detach implements executor.Durable.
func (r *Remote) Detach() error { return nil }

// Close implements executor.Executor.
func (r *Remote) Close() error { return nil }
