package persistence

import (
	"errors"
	"log/slog"

	"github.com/caravan-dag/caravan/messages"
	"github.com/prometheus/client_golang/prometheus"
)

// Config says where and how a Badger store is kept.
type Config struct {
	Dir        string // created when it is not there; one process at a time
	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil = no metrics
	// SoftRoom and HardRoom are bytes of free disk. Below SoftRoom, Room refuses
	// new submissions; below HardRoom the store fails before Badger meets a full
	// disk. Zero means a default that suits the file system's size.
	SoftRoom, HardRoom int64
}

// Badger is a Store on Badger.
type Badger struct{}

var errSoon = errors.New("not built")

// OpenBadger opens the store in c.Dir, or makes a new one.
func OpenBadger(c Config) (*Badger, error)                          { return nil, errSoon }
func (s *Badger) Append(*Batch)                                     {}
func (s *Badger) Failed() <-chan struct{}                           { return nil }
func (s *Badger) Err() error                                        { return nil }
func (s *Badger) Unfinished() ([]messages.RunID, error)             { return nil, errSoon }
func (s *Badger) NextRun() (messages.RunID, error)                  { return 0, errSoon }
func (s *Badger) Load(messages.RunID) (*Stored, error)              { return nil, errSoon }
func (s *Badger) Summary(messages.RunID) (*messages.Summary, error) { return nil, errSoon }
func (s *Badger) Summaries(messages.ListQuery, func(*messages.Summary) bool) error {
	return errSoon
}
func (s *Badger) Attempts(messages.RunID, uint32, uint32, func(*messages.AttemptRecord) bool) error {
	return errSoon
}
func (s *Badger) Key(string) (messages.RunID, [32]byte, bool, error) {
	return 0, [32]byte{}, false, errSoon
}
func (s *Badger) Delete(...messages.RunID) error { return errSoon }
func (s *Badger) Room() error                    { return nil }
func (s *Badger) Close() error                   { return nil }

var _ Store = (*Badger)(nil)
