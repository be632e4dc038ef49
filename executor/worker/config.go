package worker

import (
	"log/slog"
	"time"

	"github.com/caravan-dag/caravan/internal/vfs"
)

// Config says which worker this process is to be.
type Config struct {
	// Dir is DATA/worker, the folder of all workers of a data folder.
	Dir string
	// Name is the folder in Dir that was made for this worker by whoever started
	// it, who holds its lock and listens on its socket already: they are the
	// descriptors LockFD and ListenFD of this process. "" = make one.
	Name string
	// Settings are used when Name is ""; else they are read from the folder.
	Settings Settings
	Logger   *slog.Logger // default slog.Default()
	// FS is where the journal and what tasks print are written; nil = the machine's.
	FS vfs.FS
}

// The descriptors that a worker inherits.
const (
	LockFD   = 3
	ListenFD = 4
)

// Settings is what a worker is told once, by its folder. A server that wants
// others (or is of another version) drains this worker and starts its own.
type Settings struct {
	Version    string        // of the binary
	Folder     string        // identity of the data folder: part of the marks of all its processes
	Outputs    string        // DATA/output
	Umask      string        // of tasks, octal; "" = that of the worker's own start
	Node       string        // goes into each record
	MaxOutput  int64         // as in executor.ProcessConfig, 0 = its default; so are the next ones
	MaxCapture int64         //
	InlineMax  int           //
	Grace      time.Duration // SIGTERM to SIGKILL after a timeout
	// EnforceMemory is executor.ProcessConfig's.
	EnforceMemory bool
	CloseGrace    time.Duration // the same when the worker is stopped
	Idle          time.Duration // how long it stays without a server, a task and an unacknowledged end; default 60 s
}
