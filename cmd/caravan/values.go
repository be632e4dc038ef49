package main

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/caravan-dag/caravan/http/access"
)

// The values of options, as users write them. Each function names what is wrong.

func parseText(s string) (string, error) {
	if strings.TrimSpace(s) == "" {
		return "", errors.New("it must not be empty")
	}
	return s, nil
}

func parseListen(s string) ([]string, error) {
	addresses := parseList(s)
	if len(addresses) == 0 {
		return nil, errors.New("it must not be empty")
	}
	for i, address := range addresses {
		if err := checkAddress(address); err != nil {
			return nil, err
		}
		if slices.Contains(addresses[:i], address) && !strings.HasSuffix(address, ":0") {
			return nil, fmt.Errorf("%q is given twice", address)
		}
	}
	return addresses, nil
}

// checkAddress wants host:port or unix:path.
func checkAddress(s string) error {
	if path, ok := strings.CutPrefix(s, unixPrefix); ok {
		if path == "" {
			return fmt.Errorf("%q has no path", s)
		}
		return nil
	}
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("%q is no host:port", s)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("%q: port %q is no number from 0 to 65535", s, port)
	} else if strconv.FormatUint(n, 10) != port {
		return fmt.Errorf("%q: port %q is not written plainly", s, port)
	}
	return nil
}

// parseMilli reads a positive decimal number in thousandths.
func parseMilli(s string) (int64, error) {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsNaN(f) || f < 0.001 || f > 1e12 {
		return 0, fmt.Errorf("%q is no positive number", s)
	}
	return int64(math.Round(f * 1000)), nil
}

// parseMiB reads a positive decimal number of MiB; the result is in bytes.
func parseMiB(s string) (int64, error) {
	milli, err := parseMilli(s)
	if err != nil {
		return 0, err
	}
	if milli >= math.MaxInt64>>20 {
		return math.MaxInt64, nil
	}
	return milli << 20 / 1000, nil
}

func parseCount(s string, least, most int64) (int, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < least || n > most {
		return 0, fmt.Errorf("%q is no number from %d to %d", s, least, most)
	}
	return int(n), nil
}

// parseDuration reads what time.ParseDuration reads, days ("30d"), and 0.
func parseDuration(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		f, err := strconv.ParseFloat(days, 64)
		if err != nil || !(f >= 0 && f <= 36500) {
			return 0, fmt.Errorf("%q is no duration: write 500ms, 5s, 10m, 2h or 30d", s)
		}
		return time.Duration(f * float64(24*time.Hour)), nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is no duration: write 500ms, 5s, 10m, 2h or 30d", s)
	}
	return d, nil
}

// duration is the value of a flag that parseDuration reads.
type duration time.Duration

func (d *duration) Type() string { return "duration" }

func (d *duration) String() string {
	if d == nil || *d == 0 {
		return "0"
	}
	return time.Duration(*d).String()
}

func (d *duration) Set(s string) (err error) {
	*(*time.Duration)(d), err = parseDuration(s)
	return err
}

// maxSize bounds what sizes may be.
const maxSize = 1 << 40

// parseSize reads a number of bytes with an optional unit, decimal (kB, MB) or binary (KiB, MiB).
func parseSize(s string) (int64, error) {
	n, err := humanize.ParseBytes(s)
	if err != nil || n < 1 || n > maxSize {
		return 0, fmt.Errorf("%q is no size: write 1048576, 512KiB or 64MiB", s)
	}
	return int64(n), nil
}

func parseLevel(s string) (slog.Level, error) {
	levels := map[string]slog.Level{
		"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
	}
	l, ok := levels[strings.ToLower(s)]
	if !ok {
		return 0, fmt.Errorf("%q is none of debug, info, warn, error", s)
	}
	return l, nil
}

// parseSwitch reads on and off, and what YAML and others write for them.
func parseSwitch(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "on", "true", "yes", "1":
		return true, nil
	case "off", "false", "no", "0":
		return false, nil
	}
	return false, fmt.Errorf("%q is none of on, off", s)
}

func parseChoice(s string, choices ...string) (string, error) {
	if !slices.Contains(choices, s) {
		return "", fmt.Errorf("%q is none of %s", s, strings.Join(choices, ", "))
	}
	return s, nil
}

// parseList reads values that are separated by commas.
func parseList(s string) []string {
	var out []string
	for item := range strings.SplitSeq(s, ",") {
		if item = strings.TrimSpace(item); item != "" {
			out = append(out, item)
		}
	}
	return out
}

func parseHosts(s string) ([]string, error) {
	names := parseList(s)
	_, err := access.NewHosts(names...)
	return names, err
}

func parseOrigins(s string) ([]string, error) {
	origins := parseList(s)
	_, err := access.NewOrigins(origins...)
	return origins, err
}
