package raftlog

import (
	"bytes"
	"context"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// newLibraryLogger returns the logger of the libraries, whose lines go to the given one.
func newLibraryLogger(logger *slog.Logger) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{Name: "raft", Level: hclog.Info, Output: libraryLog{logger}, DisableTime: true})
}

// libraryLog writes the lines of hclog, such as `[WARN]  raft: heartbeat timeout reached`, to a logger,
// one level lower: the libraries report as an error that another node does not answer, and what an
// operator must know comes from this package.
type libraryLog struct{ logger *slog.Logger }

// Write takes one line: hclog writes whole lines.
func (l libraryLog) Write(line []byte) (int, error) {
	level := slog.LevelDebug
	for _, known := range []struct {
		mark  string
		level slog.Level
	}{{"[ERROR]", slog.LevelWarn}, {"[WARN]", slog.LevelInfo}} {
		if bytes.Contains(line, []byte(known.mark)) {
			level = known.level
			break
		}
	}
	if ctx := context.Background(); l.logger.Enabled(ctx, level) {
		text := bytes.TrimSpace(line)
		if end := bytes.IndexByte(text, ']'); end >= 0 {
			text = bytes.TrimSpace(text[end+1:])
		}
		l.logger.Log(ctx, level, string(text))
	}
	return len(line), nil
}
