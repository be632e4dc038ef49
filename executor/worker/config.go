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
	// Name is the folder in Dir that the parent process made for this worker. The parent passes the
	// folder's lock and its socket as the descriptors LockFD and ListenFD. "" = make a folder.
	Name string
	// Settings are used when Name is ""; else they are read from the folder.
	Settings Settings
	Logger   *slog.Logger // default slog.Default()
	// FS is where the journal and the output of tasks are written; nil = the machine's.
	FS vfs.FS
}

// The descriptors that a worker inherits.
const (
	LockFD   = 3
	ListenFD = 4
)

// Settings are written to a worker's folder once, when it is made. A server that wants other
// settings, or has another version, drains this worker and starts its own.
type Settings struct {
	Version      string        // of the binary
	DataFolderID string        // identity of the data folder: part of the marks of all its processes
	Outputs      string        // DATA/output
	Umask        string        // of tasks, octal; "" = that of the worker's own start
	Node         string        // goes into each record
	MaxOutput    int64         // as in executor.CommonConfig, 0 = its default; so are the next three
	MaxCapture   int64         // bytes
	InlineMax    int           // bytes
	Grace        time.Duration // SIGTERM to SIGKILL after a timeout
	// EnforceMemory is executor.ProcessConfig's.
	EnforceMemory bool
	CloseGrace    time.Duration // SIGTERM to SIGKILL when the worker is stopped
	Idle          time.Duration // how long it stays without a server and without an attempt that runs; default 60 s
	// Lease is how long attempts may run without a renewal of their leader, in a cluster with this number of
	// partitions. 0: for as long as they like.
	Lease      time.Duration
	Partitions int
}
