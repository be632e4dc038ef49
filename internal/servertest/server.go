package servertest

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
	"syscall"
	"time"
)

// Config says how a server is started. A zero member means the default.
type Config struct {
	Binary string
	Data   string        // its data folder; required
	Listen string        // address; default 127.0.0.1:0
	Dir    string        // its working folder; default the present one
	Args   []string      // further arguments of `caravan serve`
	Env    []string      // added to this process's own environment
	Ready  time.Duration // deadline for the first answer of /ready; default 30 s
}

// Server is a running (or ended) server process.
type Server struct {
	URL string // http://127.0.0.1:port
	cfg Config
	cmd *exec.Cmd
	log *logBuffer

	ended chan struct{} // closed when the process has been waited for
	err   error         // of Wait; read it after ended
}

// address is how a server says where it listens.
var address = regexp.MustCompile(`(?:127\.0\.0\.1|localhost|\[::1\]):[1-9][0-9]*`)

// Start starts a server and returns once it answers /ready with 200.
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

// Launch starts a server and returns at once.
func Launch(cfg Config) (*Server, error) {
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	if cfg.Ready == 0 {
		cfg.Ready = 30 * time.Second
	}
	s := &Server{cfg: cfg, log: newLogBuffer(), ended: make(chan struct{})}
	args := append([]string{"serve", "--listen", cfg.Listen, "--data", cfg.Data}, cfg.Args...)
	s.cmd = exec.Command(cfg.Binary, args...)
	s.cmd.Dir = cfg.Dir
	// The options of whoever runs this are no business of the server's.
	s.cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "CARAVAN_") })
	s.cmd.Env = append(s.cmd.Env, cfg.Env...)
	// A group of its own: a ^C at the terminal of a test run is not the server's.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	// One pipe, read to its end by one goroutine: exec's own copying would make
	// Wait hang for as long as a task that inherited the pipe lives.
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start the server: %w", err)
	}
	s.cmd.Stdout, s.cmd.Stderr = w, w
	started := make(chan error)
	go s.own(started)
	err = <-started
	w.Close()
	if err != nil {
		r.Close()
		return nil, fmt.Errorf("start the server: %w", err)
	}
	go s.log.readFrom(r)
	return s, nil
}

// own starts the process and waits for it on one thread: the parent-death signal
// is sent when the thread ends that started the child.
func (s *Server) own(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := s.cmd.Start()
	started <- err
	if err != nil {
		return
	}
	s.err = s.cmd.Wait()
	s.log.settle()
	close(s.ended)
}

// AwaitReady waits for the address in the server's output and for /ready.
func (s *Server) AwaitReady() error {
	deadline := time.NewTimer(s.cfg.Ready)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	client := &http.Client{Timeout: s.cfg.Ready, Transport: &http.Transport{DisableKeepAlives: true}}
	last := errors.New("it has not said where it listens")
	for {
		if s.URL == "" {
			if a := address.FindString(s.Log()); a != "" {
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
			return fmt.Errorf("the server ended before it was ready: %v\n%s", s.err, s.Log())
		case <-deadline.C:
			return fmt.Errorf("the server is not ready after %v: %w\n%s", s.cfg.Ready, last, s.Log())
		case <-tick.C:
		}
	}
}

// Again starts a new server with the same configuration, as a restart does. The
// old one must have ended.
func (s *Server) Again() (*Server, error) {
	select {
	case <-s.ended:
		return Start(s.cfg)
	default:
		return nil, fmt.Errorf("server %d still runs", s.PID())
	}
}

// Config returns what the server was started with.
func (s *Server) Config() Config { return s.cfg }

// PID is the process id of the server.
func (s *Server) PID() int { return s.cmd.Process.Pid }

// Log is what the server has written so far, both streams.
func (s *Server) Log() string { return s.log.String() }

// Ended is closed when the process is gone.
func (s *Server) Ended() <-chan struct{} { return s.ended }

// Signal sends a signal to the server process alone.
func (s *Server) Signal(sig syscall.Signal) error { return s.cmd.Process.Signal(sig) }

// Kill sends SIGKILL and waits until the process is gone.
func (s *Server) Kill() {
	// It may be gone already; what counts is that it has ended.
	_ = s.cmd.Process.Kill()
	<-s.ended
}

// Stop sends SIGTERM and waits until the process is gone, at most limit. It
// returns the exit code and how long that took; beyond limit the server is killed
// and an error is returned.
func (s *Server) Stop(limit time.Duration) (code int, took time.Duration, err error) {
	begin := time.Now()
	// As in Kill: a server that ended by itself is judged by its exit code.
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

// ExitCode is the exit code of an ended server; -1 when a signal ended it.
func (s *Server) ExitCode() int {
	<-s.ended
	return s.cmd.ProcessState.ExitCode()
}
