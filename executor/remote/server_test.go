package remote_test

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/remote"
	"github.com/caravan-dag/caravan/executor/worker"
)

// model is a server as far as an executor sees one: a journal of grants and ends, and
// a new attempt for each that was lost. It ends when every task has succeeded.
type model struct {
	data   string
	script string
	r      *remote.Remote

	mu      sync.Mutex
	journal *os.File
	attempt map[uint32]uint32 // the newest granted
	at      map[uint32]int64
	done    map[uint32]bool
	tasks   int
	all     chan struct{}
}

// serverMain is: server DATA TASKS SCRIPT. SIGTERM detaches.
func serverMain(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	m := &model{data: args[0], script: args[2], attempt: map[uint32]uint32{}, at: map[uint32]int64{},
		done: map[uint32]bool{}, all: make(chan struct{})}
	m.tasks, _ = strconv.Atoi(args[1])
	if err := m.serve(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func (m *model) serve(ctx context.Context) (err error) {
	path := filepath.Join(m.data, "journal")
	m.replay(path)
	if m.journal, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600); err != nil {
		return err
	}
	dir := filepath.Join(m.data, "worker")
	if m.r, err = remote.New(remote.Config{
		Dir: dir, Args: []string{"worker", dir}, Sink: executor.SinkFunc(m.sink), CPUMillis: 2000, MemoryBytes: 1 << 20,
		Settings: worker.Settings{Outputs: filepath.Join(m.data, "output"), Idle: 2 * time.Second},
		Logger:   slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}); err != nil {
		return err
	}
	m.mu.Lock()
	var orders []executor.Order
	for task := range uint32(m.tasks) {
		switch {
		case m.done[task]:
		case m.attempt[task] > 0:
			orders = append(orders, m.order(task, true))
		default:
			m.grant(task)
			orders = append(orders, m.order(task, false))
		}
	}
	m.mu.Unlock()
	m.r.ExpectResume(1)
	for _, o := range orders {
		m.r.Start(o)
	}
	m.r.ResumeDone(1)
	m.finishIfDone()
	select {
	case <-m.all:
		return m.r.Close()
	case <-ctx.Done():
		return m.r.Detach()
	}
}

func (m *model) replay(path string) {
	f, err := os.Open(path)
	if err != nil {
		return
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		var what string
		var task, attempt uint32
		var at int64
		if n, _ := fmt.Sscan(s.Text(), &what, &task, &attempt, &at); n != 4 {
			continue // torn
		}
		switch what {
		case "grant":
			m.attempt[task], m.at[task] = attempt, at
		case "done":
			m.done[task] = true
		}
	}
}

// grant writes the next attempt's grant. mu is held.
func (m *model) grant(task uint32) {
	m.attempt[task]++
	m.at[task] = time.Now().UnixNano()
	fmt.Fprintf(m.journal, "grant %d %d %d\n", task, m.attempt[task], m.at[task])
}

func (m *model) order(task uint32, resume bool) executor.Order {
	o := executor.Order{Key: key(task), Name: fmt.Sprint("t", task), Shell: m.script, UseShell: true, CPUMillis: 1000,
		Environment: []string{"DATA=" + m.data}, Dir: m.data, GrantedAt: m.at[task], Resume: resume}
	o.Key.Attempt = m.attempt[task]
	return o
}

func (m *model) sink(rep executor.Report) {
	if rep.Kind == executor.Started {
		return
	}
	m.mu.Lock()
	task := rep.Key.Task
	fmt.Fprintf(m.journal, "end %d %d %d %q\n", task, rep.Key.Attempt, rep.Record.Result, rep.Record.ExecutorLog)
	if rep.Kind == executor.Finished && rep.Record.RC == 0 {
		fmt.Fprintf(m.journal, "done %d %d 0\n", task, rep.Key.Attempt)
		m.done[task] = true
		m.mu.Unlock()
		m.r.Acknowledge(rep.Key)
		m.finishIfDone()
		return
	}
	m.grant(task)
	o := m.order(task, false)
	m.mu.Unlock()
	m.r.Acknowledge(rep.Key)
	m.r.Start(o)
}

func (m *model) finishIfDone() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.done) == m.tasks {
		select {
		case <-m.all:
		default:
			close(m.all)
		}
	}
}
