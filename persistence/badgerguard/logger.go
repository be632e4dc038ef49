package badgerguard

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
)

// Logger receives Badger's log. Two of its lines are the only sign of a failure that the store must
// not miss: a failed flush is retried for ever, and a table with a wrong checksum is left out
// silently.
type Logger struct {
	log   *slog.Logger
	alarm func(error)

	mu      sync.Mutex
	corrupt error
}

// NewLogger passes Badger's lines on to log, and calls alarm when a memtable cannot be flushed.
func NewLogger(log *slog.Logger, alarm func(error)) *Logger { return &Logger{log: log, alarm: alarm} }

// Errorf logs at Error.
func (l *Logger) Errorf(format string, args ...any) {
	text := formatLine(format, args)
	l.log.Error("badger: " + text)
	switch {
	case strings.Contains(format, "error flushing memtable"):
		l.alarm(fmt.Errorf("badger: %s", text))
	case strings.Contains(text, "CHECKSUM_MISMATCH"):
		l.mu.Lock()
		l.corrupt = fmt.Errorf("a table is corrupt: %s", text)
		l.mu.Unlock()
	}
}

// Warningf logs at Warn. The warnings that Badger repeats every minute about its caches go to
// Debug: the caches are small on purpose.
func (l *Logger) Warningf(format string, args ...any) {
	level := slog.LevelWarn
	if strings.Contains(format, "might be too small") || strings.Contains(format, "Cache life expectancy") {
		level = slog.LevelDebug
	}
	l.log.Log(context.Background(), level, "badger: "+formatLine(format, args))
}

// Infof logs at Debug: Badger is talkative.
func (l *Logger) Infof(format string, args ...any) {
	l.log.Debug("badger: " + formatLine(format, args))
}

// Debugf drops the line: there are several per commit.
func (l *Logger) Debugf(string, ...any) {}

// CorruptTable returns the error of a table that Badger has left out, nil when it has opened all.
func (l *Logger) CorruptTable() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.corrupt
}

func formatLine(format string, args []any) string {
	return strings.TrimSpace(fmt.Sprintf(format, args...))
}
