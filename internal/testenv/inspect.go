package testenv

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The functions of this file look at a process from outside, in /proc (proc(5)) and at /metrics.
// They need no help of the process, and so work for a binary of any version, and for a worker.

// FDs counts the open descriptors of the server.
func (s *Server) FDs() (int, error) {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.PID()))
	if err != nil {
		return 0, fmt.Errorf("count descriptors: %w", err)
	}
	return len(entries), nil
}

// Memory returns the resident set, at present and at its peak, in bytes.
func (s *Server) Memory() (now, peak int64, err error) { return Memory(s.PID()) }

// Memory is Server.Memory for any running process.
func Memory(pid int) (now, peak int64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, fmt.Errorf("read memory: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		kb, _ := strconv.ParseInt(f[1], 10, 64)
		switch f[0] {
		case "VmRSS:":
			now = kb << 10
		case "VmHWM:":
			peak = kb << 10
		}
	}
	return now, peak, nil
}

// ResetPeak resets the peak of Memory to the present resident set.
func (s *Server) ResetPeak() error {
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", s.PID()), []byte("5"), 0); err != nil {
		return fmt.Errorf("reset the peak of memory: %w", err)
	}
	return nil
}

// Written returns the bytes that the server itself has sent to block devices, minus those that were
// cancelled before. Whole pages count, so this is what a disk wears by, not what was written by the
// program.
func (s *Server) Written() (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", s.PID()))
	if err != nil {
		return 0, fmt.Errorf("read bytes written: %w", err)
	}
	var sum int64
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		n, _ := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
		switch name {
		case "write_bytes":
			sum += n
		case "cancelled_write_bytes":
			sum -= n
		}
	}
	return sum, nil
}

// clockTick is the unit of CPU times in /proc, fixed by the kernel's interface: USER_HZ is 100 on
// every architecture that Go supports. So CPU is right to 10 ms, and a test measures seconds.
const clockTick = 10 * time.Millisecond

// CPU returns the CPU time of the server itself, and of its children that have exited, user and
// system together.
func (s *Server) CPU() (own, children time.Duration, err error) { return CPU(s.PID()) }

// CPU is Server.CPU for any process that runs, or whose parent has not waited for it yet.
func CPU(pid int) (own, children time.Duration, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, fmt.Errorf("read CPU time: %w", err)
	}
	// The name of the command is in parentheses and may contain anything, so the fields are counted
	// from the last parenthesis: utime is number 14 of the line, and the third field of the line is
	// f[0].
	f := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(f) < 15 {
		return 0, 0, fmt.Errorf("read CPU time: %q is too short", text)
	}
	var ticks [4]int64 // utime, stime, cutime, cstime
	for i := range ticks {
		if ticks[i], err = strconv.ParseInt(f[11+i], 10, 64); err != nil {
			return 0, 0, fmt.Errorf("read CPU time: %w", err)
		}
	}
	return time.Duration(ticks[0]+ticks[1]) * clockTick, time.Duration(ticks[2]+ticks[3]) * clockTick, nil
}

// ProcessState returns the state of a process as a letter of proc(5): 'R', 'S', 'D', 'T' (stopped),
// 'Z' (ended, its parent has not waited for it yet). A process that does not exist is an error.
func ProcessState(pid int) (byte, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("read the state of a process: %w", err)
	}
	rest := strings.TrimSpace(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if rest == "" {
		return 0, fmt.Errorf("read the state of process %d: %q is too short", pid, text)
	}
	return rest[0], nil
}

// ContextSwitches counts the voluntary and involuntary context switches of the living threads of a
// process. The Go runtime keeps its threads, so few are missed. A single-threaded process counts
// after its exit too, until its parent waits for it.
func ContextSwitches(pid int) (n int64, err error) {
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return 0, fmt.Errorf("read context switches: %w", err)
	}
	for _, t := range threads {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/status", pid, t.Name()))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // it has just exited
		}
		if err != nil {
			return 0, fmt.Errorf("read context switches: %w", err)
		}
		for line := range strings.Lines(string(text)) {
			name, value, _ := strings.Cut(line, ":")
			if name != "voluntary_ctxt_switches" && name != "nonvoluntary_ctxt_switches" {
				continue
			}
			v, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read context switches: %w", err)
			}
			n += v
		}
	}
	return n, nil
}

// Quantile estimates a quantile (0 to 1) of a histogram without labels, by its full name, linearly
// within a bucket, as histogram_quantile of Prometheus does. For a value beyond the last bound it
// returns that bound. An empty histogram is an error.
func (s *Server) Quantile(name string, q float64) (float64, error) {
	type bucket struct{ le, n float64 }
	var buckets []bucket
	err := s.eachMetricLine(func(line string) error {
		rest, ok := strings.CutPrefix(line, name+`_bucket{le="`)
		bound, count, cut := strings.Cut(rest, `"} `)
		if !ok || !cut {
			return nil
		}
		le, err1 := strconv.ParseFloat(bound, 64)
		n, err2 := strconv.ParseFloat(count, 64)
		buckets = append(buckets, bucket{le, n})
		return errors.Join(err1, err2)
	})
	if err != nil {
		return 0, err
	}
	if len(buckets) == 0 || buckets[len(buckets)-1].n == 0 {
		return 0, fmt.Errorf("histogram %s is missing or empty", name)
	}
	want := q * buckets[len(buckets)-1].n
	var below bucket
	for _, b := range buckets {
		if b.n >= want && !math.IsInf(b.le, 1) {
			return below.le + (b.le-below.le)*(want-below.n)/max(b.n-below.n, 1), nil
		}
		if !math.IsInf(b.le, 1) {
			below = b
		}
	}
	return below.le, nil // or more
}

// eachMetricLine yields the lines of /metrics, in the text format of Prometheus, until yield
// returns an error. The connection is closed after that, so that it does not count among those of
// the server.
func (s *Server) eachMetricLine(yield func(string) error) error {
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(s.URL + "/metrics")
	if err != nil {
		return fmt.Errorf("read /metrics: %w", err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if err := yield(lines.Text()); err != nil {
			return fmt.Errorf("read /metrics: %w", err)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read /metrics: %w", err)
	}
	return nil
}

// Metric returns the sum of all series of a metric, by its full name: name{state="RUNNING"} and
// name{state= "QUEUED"} together, or the one without labels. A metric that is missing is an error,
// not 0.
func (s *Server) Metric(name string) (float64, error) {
	sum, found := 0.0, false
	err := s.eachMetricLine(func(line string) error {
		rest, ok := strings.CutPrefix(line, name)
		// Another metric may have a longer name with the same begin.
		if !ok || rest == "" || rest[0] != ' ' && rest[0] != '{' {
			return nil
		}
		v, err := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64)
		sum, found = sum+v, true
		return err
	})
	if err == nil && !found {
		err = fmt.Errorf("metric %s is missing", name)
	}
	return sum, err
}
