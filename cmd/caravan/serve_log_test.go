package main

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"unicode"
)

// TestLogIsPrintable: what clients send reaches the log, and must not act on a terminal.
func TestLogIsPrintable(t *testing.T) {
	const evil = "\x1b[2K\x7f\u009b31m\u202e\u2028\U000e0041\xff"
	for _, format := range []string{"text", "json"} {
		var out bytes.Buffer
		newLogger(&out, format, slog.LevelInfo).With(evil, evil).Error(evil, "path", evil, "err", errors.New(evil))
		line := strings.TrimSuffix(out.String(), "\n")
		for _, r := range line {
			if unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) || r == unicode.ReplacementChar {
				t.Errorf("%s: %U is raw in %+q", format, r, line)
			}
		}
		if !strings.Contains(line, "31m") {
			t.Errorf("%s: %q", format, line)
		}
	}
}
