package persistence

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
)

// badgerLog takes Badger's log. Two of its lines are the only sign of something
// that the store must not pass over: a flush that fails is tried again for ever,
// and a table with a wrong checksum is left out in silence.
type badgerLog struct {
	log   *slog.Logger
	alarm func(error)

	mu  sync.Mutex
	bad error
}

// Errorf logs at Error.
func (l *badgerLog) Errorf(format string, args ...any) {
	text := line(format, args)
	l.log.Error("badger: " + text)
	switch {
	case strings.Contains(format, "error flushing memtable"):
		l.alarm(fmt.Errorf("badger: %s", text))
	case strings.Contains(text, "CHECKSUM_MISMATCH"):
		l.mu.Lock()
		l.bad = fmt.Errorf("a table is corrupt: %s", text)
		l.mu.Unlock()
	}
}

// Warningf logs at Warn, but for what Badger says of its caches every minute: they
// are small on purpose.
func (l *badgerLog) Warningf(format string, args ...any) {
	level := slog.LevelWarn
	if strings.Contains(format, "might be too small") || strings.Contains(format, "Cache life expectancy") {
		level = slog.LevelDebug
	}
	l.log.Log(context.Background(), level, "badger: "+line(format, args))
}

// Infof logs at Debug: Badger is talkative.
func (l *badgerLog) Infof(format string, args ...any) { l.log.Debug("badger: " + line(format, args)) }

// Debugf drops the line: there are several per commit.
func (l *badgerLog) Debugf(string, ...any) {}

func (l *badgerLog) corrupt() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bad
}

func line(format string, args []any) string {
	return strings.TrimSpace(fmt.Sprintf(format, args...))
}
