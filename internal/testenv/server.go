package testenv

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Config says how a server is started. Zero members have defaults.
type Config struct {
	Binary string
	Data   string        // its data folder; required
	Listen string        // address; default 127.0.0.1:0, a free port
	Dir    string        // its working directory; default: this process's
	Args   []string      // further arguments of `caravan serve`
	Env    []string      // added to the environment of this process, less its CARAVAN_ variables
	Ready  time.Duration // deadline for the first answer of /ready; default 2 minutes

	// Enter is called on the thread that starts the process, which it may move to another network
	// namespace. The thread ends with the process. Default: the process starts where this one is.
	Enter func() error
}

// Server is a server process, running or exited. Its methods are safe for concurrent use, except
// AwaitReady, which sets URL. A process that has exited stays a Server, with its log and exit code;
// Again makes a new one.
type Server struct {
	URL string // http://127.0.0.1:port; "" until AwaitReady has found it
	cfg Config
	cmd *exec.Cmd
	log *logBuffer

	ended chan struct{} // closed when the process has exited
	err   error         // result of Wait; read it after ended
}

// addressPattern matches the address in the first lines of a server's log, in both formats of the
// log. Port 0 does not match: the port is the one that the kernel has assigned.
var addressPattern = regexp.MustCompile(`(?:127\.0\.0\.1|localhost|\[::1\]):[1-9][0-9]*`)

// Start starts a server and returns when /ready answers 200.
func Start(cfg Config) (*Server, error) {
	s, err := Launch(cfg)
	if err != nil {
		return nil, err
	}
	if err := s.AwaitReady(); err != nil {
		s.Kill()
		return nil, err
	}
	return s, nil
}

// Launch starts a server and returns at once, before it serves. Use it with AwaitReady to test the
// start itself, or a start that must fail. The caller ends the server, by Stop or Kill; it ends
// with this process, too. Its worker does not: call EndWorkers.
func Launch(cfg Config) (*Server, error) {
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	if cfg.Ready == 0 {
		cfg.Ready = 4 * Patience // a start replays the log, under the race detector, too
	}
	s := &Server{cfg: cfg, log: newLogBuffer(), ended: make(chan struct{})}
	args := append([]string{"serve", "--listen", cfg.Listen, "--data", cfg.Data}, cfg.Args...)
	s.cmd = exec.Command(cfg.Binary, args...)
	s.cmd.Dir = cfg.Dir
	// Variables of this process that are options of a server do not apply.
	s.cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "CARAVAN_") })
	s.cmd.Env = append(s.cmd.Env, cfg.Env...)
	// It gets a process group of its own, so that ^C at the terminal of a test run does not reach
	// it.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	// It gets one pipe, which one goroutine reads to its end. With the copying of package exec,
	// Wait would hang as long as a task that inherited the pipe lives.
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start the server: %w", err)
	}
	s.cmd.Stdout, s.cmd.Stderr = w, w
	started := make(chan error)
	if cfg.Enter == nil {
		go s.runProcess(started)
	} else {
		go func() {
			_ = OnOwnThread(func() error { s.runProcess(started); return nil })
		}()
	}
	err = <-started
	w.Close()
	if err != nil {
		r.Close()
		return nil, fmt.Errorf("start the server: %w", err)
	}
	go s.log.readFrom(r)
	return s, nil
}

// runProcess starts the process and waits for it on one thread, because the kernel sends the
// parent-death signal when the thread that started the child exits.
func (s *Server) runProcess(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread() // OnOwnThread locks it once more
	var err error
	if s.cfg.Enter != nil {
		err = s.cfg.Enter()
	}
	if err == nil {
		err = s.cmd.Start()
	}
	started <- err
	if err != nil {
		return
	}
	s.err = s.cmd.Wait()
	s.log.waitForEnd()
	close(s.ended)
}

// AwaitReady waits for the address in the log and for /ready. A server that exits before that is an
// error with its log, and so is one that is not ready within Config.Ready. It is called once,
// before the methods that need URL. A server that is late is ended with a dump of its goroutines.
func (s *Server) AwaitReady() error {
	deadline := time.NewTimer(s.cfg.Ready)
	defer deadline.Stop()
	// Short, because tests start servers hundreds of times, and benchmarks measure the start.
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	client := &http.Client{Timeout: s.cfg.Ready, Transport: &http.Transport{DisableKeepAlives: true}}
	last := errors.New("its log does not have the address yet")
	for {
		if s.URL == "" {
			if a := addressPattern.FindString(s.Log()); a != "" {
				s.URL = "http://" + a
			}
		}
		if s.URL != "" {
			resp, err := client.Get(s.URL + "/ready")
			if err == nil {
				resp.Body.Close()
				if resp.StatusCode == http.StatusOK {
					return nil
				}
				err = errors.New(resp.Status)
			}
			last = err
		}
		select {
		case <-s.ended:
			return fmt.Errorf("the server exited before it was ready: %v\n%s", s.err, s.Log())
		case <-deadline.C:
			_ = s.Signal(syscall.SIGABRT) // its goroutines say what it waits for
			timer := time.NewTimer(5 * time.Second)
			defer timer.Stop()
			select {
			case <-s.ended:
			case <-timer.C:
			}
			return fmt.Errorf("the server is not ready after %v: %w\n%s", s.cfg.Ready, last, s.Log())
		case <-tick.C:
		}
	}
}

// Again starts a new server with the same configuration. The old one must have exited.
func (s *Server) Again() (*Server, error) {
	select {
	case <-s.ended:
		return Start(s.cfg)
	default:
		return nil, fmt.Errorf("server %d still runs", s.PID())
	}
}

// Config returns the configuration of the server.
func (s *Server) Config() Config { return s.cfg }

// PID returns the process ID of the server.
func (s *Server) PID() int { return s.cmd.Process.Pid }

// Log returns the output of the server so far, both streams.
func (s *Server) Log() string { return s.log.String() }

// Ended is closed when the process has exited.
func (s *Server) Ended() <-chan struct{} { return s.ended }

// Signal sends a signal to the server process alone.
func (s *Server) Signal(sig syscall.Signal) error { return s.cmd.Process.Signal(sig) }

// Kill sends SIGKILL and waits for the exit of the process. Its worker and tasks live on, as after a
// crash: EndWorkers ends them.
func (s *Server) Kill() {
	// An error means that it has exited already.
	_ = s.cmd.Process.Kill()
	<-s.ended
}

// Stop sends SIGTERM and waits for the exit of the process. It returns the exit code and the time
// that it took. After limit it kills the server and returns an error.
func (s *Server) Stop(limit time.Duration) (code int, took time.Duration, err error) {
	begin := time.Now()
	// As in Kill.
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-s.ended:
		return s.cmd.ProcessState.ExitCode(), time.Since(begin), nil
	case <-timer.C:
		s.Kill()
		return -1, time.Since(begin), fmt.Errorf("the server did not stop within %v\n%s", limit, s.Log())
	}
}

// ExitCode returns the exit code of a server that has exited; -1 if a signal ended it.
func (s *Server) ExitCode() int {
	<-s.ended
	return s.cmd.ProcessState.ExitCode()
}

// logBuffer collects the output of a process, all of it: a test that fails prints the whole log.
type logBuffer struct {
	mu   sync.Mutex
	text []byte
	end  chan struct{} // closed at the end of the output
}

func newLogBuffer() *logBuffer { return &logBuffer{end: make(chan struct{})} }

// readFrom reads r to its end and closes it.
func (l *logBuffer) readFrom(r *os.File) {
	defer close(l.end)
	defer r.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		l.mu.Lock()
		l.text = append(l.text, buf[:n]...)
		l.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// waitForEnd waits a second at most for the rest of the output of a process that has exited. A
// process that it started may keep the pipe open.
func (l *logBuffer) waitForEnd() {
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	select {
	case <-l.end:
	case <-timer.C:
	}
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text)
}
