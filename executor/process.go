package executor

import (
	"log/slog"
	"time"

	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/messages"
)

// ProcessConfig configures a Process.
type ProcessConfig struct {
	Outputs     *outputs.Store // where long output goes; required
	Sink        Sink           // required
	CoresMilli  int64          // slots, in thousandths of a core
	MemoryMilli int64          // slots, in thousandths of a MB
	Node        string         // goes into each record
	Dir         string         // working folder of orders that name none; "" = this process's
	MaxOutput   int64          // bytes kept per stream; default 64 MiB
	MaxCapture  int64          // bytes of Report.Stdout; default 16 MiB
	InlineMax   int            // output up to this many bytes is kept in the record; default 4 KiB
	Grace       time.Duration  // SIGTERM to SIGKILL after a timeout; default 5 s
	CloseGrace  time.Duration  // the same at Close; default 1 s
	Logger      *slog.Logger   // default slog.Default()
}

// Process runs orders as processes of this machine.
type Process struct{ cfg ProcessConfig }

// NewProcess makes a Process.
func NewProcess(cfg ProcessConfig) (*Process, error) { return &Process{cfg}, nil }

// Start implements Executor.
func (p *Process) Start(o Order) {}

// Kill implements Executor.
func (p *Process) Kill(key messages.AttemptKey, grace time.Duration) {}

// Revoke implements Executor.
func (p *Process) Revoke(key messages.AttemptKey) {}

// OpenLog implements Executor.
func (p *Process) OpenLog(key messages.AttemptKey, stream messages.Stream) (messages.Log, error) {
	return nil, ErrNotLive
}

// Close implements Executor.
func (p *Process) Close() error { return nil }

// Running is the number of attempts that have begun and not ended.
func (p *Process) Running() int { return 0 }

// Stats is what a Process has done and holds now.
type Stats struct {
	Running         int    // attempts that have begun and not ended
	Queued          int    // orders that wait for slots
	CoresMilliUsed  int64  // slots in use
	MemoryMilliUsed int64  // slots in use
	Starts          uint64 // processes started since the beginning
	NotStarted      uint64 // orders that could not be started
}

// Stats returns a consistent set of figures.
func (p *Process) Stats() Stats { return Stats{} }

// Check returns an error when the accounting of slots does not add up.
func (p *Process) Check() error { return nil }
