package actors

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/caravan-dag/caravan/actors/scheduler"
	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/messages"
	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the counters of the tree. On the path of a task, each update costs at most
// an atomic add.
type metrics struct {
	submissions prometheus.Counter
	panics      prometheus.Counter
	restarts    prometheus.Counter
	actors      prometheus.Gauge
	attempts    [messages.AttemptRejected + 1]prometheus.Counter
	tasks       [dag.NumTaskStates]prometheus.Counter
	runs        [dag.RunKilled + 1]prometheus.Counter
	// The vectors that these three are of.
	byResult, byTaskState, byRunState *prometheus.CounterVec

	toStart     prometheus.Histogram
	idle        prometheus.Histogram
	held        slotGauges
	external    *prometheus.GaugeVec // by executor
	mailboxes   *mailboxCollector
	keysDropped prometheus.Counter
}

// slotGauges are written by the dispatcher and read by the collector: thousandths of a core, bytes,
// tasks, requests of package scheduler, and runs that have yet to report the slots they hold.
type slotGauges struct {
	cores, memory, noops, requests, recovering, queuedTasks, runningTasks atomic.Int64
	allCores, allMemory                                                   atomic.Int64 // that may be granted
}

// registrations are the collectors that a node has registered. They leave with the node: a later one of
// this process registers its own under the same names.
type registrations struct {
	registerer prometheus.Registerer // nil = nothing is registered
	collectors []prometheus.Collector
}

// add registers collectors. After an error those before it are registered.
func (r *registrations) add(collectors ...prometheus.Collector) error {
	if r.registerer == nil {
		return nil
	}
	for _, c := range collectors {
		if err := r.registerer.Register(c); err != nil {
			return fmt.Errorf("metrics of the engine: %w", err)
		}
		r.collectors = append(r.collectors, c)
	}
	return nil
}

func (r *registrations) removeAll() {
	for _, c := range r.collectors {
		r.registerer.Unregister(c)
	}
	r.collectors = nil
}

func newMetrics() *metrics {
	m := &metrics{
		submissions: prometheus.NewCounter(prometheus.CounterOpts{Name: "caravan_submissions_total", Help: "Runs accepted, durably."}),
		panics:      prometheus.NewCounter(prometheus.CounterOpts{Name: "caravan_actor_panics_total", Help: "Panics of actors: each is a bug."}),
		restarts:    prometheus.NewCounter(prometheus.CounterOpts{Name: "caravan_run_actor_restarts_total", Help: "Run actors that were loaded again from the journal after a panic."}),
		actors:      prometheus.NewGauge(prometheus.GaugeOpts{Name: "caravan_task_actors", Help: "Task actors."}),
		toStart: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "caravan_dispatch_seconds", Help: "From the durable grant of a slot to the start of the attempt's process.",
			Buckets: prometheus.ExponentialBuckets(50e-6, 2, 18),
		}),
		idle: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "caravan_slot_idle_seconds",
			Help: "From a free slot, or from an order's arrival when that is later, to the start of the process that takes it.",
			Buckets: []float64{50e-6, 100e-6, 150e-6, 200e-6, 250e-6, 300e-6, 400e-6, 500e-6, 700e-6, 1e-3, 1.5e-3, 2e-3, 3e-3, 5e-3,
				10e-3, 20e-3, 50e-3, 100e-3, 1},
		}),
		external: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "caravan_slots_external", Help: "Granted tasks of external executors, which run them on other machines.",
		}, []string{"executor"}),
		mailboxes: new(mailboxCollector),
		keysDropped: prometheus.NewCounter(prometheus.CounterOpts{Name: "caravan_idempotency_keys_dropped_total",
			Help: "Idempotency keys of deleted runs that were removed before their time, because there were too many."}),
	}
	m.byResult = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "caravan_attempts_total", Help: "Ended attempts by result."}, []string{"result"})
	for i := range m.attempts {
		m.attempts[i] = m.byResult.WithLabelValues(resultWord(messages.AttemptResult(i)))
	}
	m.byTaskState = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "caravan_task_ends_total", Help: "Tasks that came to rest, by state."}, []string{"state"})
	for i := range m.tasks {
		m.tasks[i] = m.byTaskState.WithLabelValues(dag.TaskState(i).String())
	}
	m.byRunState = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "caravan_run_transitions_total", Help: "Changes of runs by the state they came to."}, []string{"state"})
	for i := range m.runs {
		m.runs[i] = m.byRunState.WithLabelValues(dag.RunState(i).String())
	}
	return m
}

// collectors returns all metrics of the tree, and gauges of what e has.
func (m *metrics) collectors(e *nodeContext) []prometheus.Collector {
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f)
	}
	return []prometheus.Collector{
		m.submissions, m.panics, m.restarts, m.actors, m.toStart, m.idle, m.byResult, m.byTaskState, m.byRunState, m.external, m.mailboxes, m.keysDropped,
		gauge("caravan_idempotency_keys_kept", "Idempotency keys of deleted runs.", func() float64 { return float64(e.store.KeptKeyCount()) }),
		gauge("caravan_slots_cores", "Cores that granted tasks take.", func() float64 { return float64(m.held.cores.Load()) / 1000 }),
		gauge("caravan_slots_memory_bytes", "Memory that granted tasks take, in bytes.", func() float64 { return float64(m.held.memory.Load()) }),
		gauge("caravan_slots_capacity_cores", "Cores that may be granted: those of this machine, or of all nodes that accept tasks.",
			func() float64 { return float64(m.held.allCores.Load()) / 1000 }),
		gauge("caravan_slots_capacity_memory_bytes", "Memory that may be granted, in bytes: see caravan_slots_capacity_cores.",
			func() float64 { return float64(m.held.allMemory.Load()) }),
		gauge("caravan_slots_noop", "No-op tasks that are granted.", func() float64 { return float64(m.held.noops.Load()) }),
		gauge("caravan_slot_requests", "Classes of runs that want or hold slots.", func() float64 { return float64(m.held.requests.Load()) }),
		gauge("caravan_recovering_runs", "Runs from before the server's start that have yet to report the slots they hold: while there are any, only no-op tasks start.",
			func() float64 { return float64(m.held.recovering.Load()) }),
		gauge("caravan_paused", "1 while no task starts, whatever its run.", func() float64 {
			if e.paused() != "" {
				return 1
			}
			return 0
		}),
		gauge("caravan_unfinished_runs", "Runs that are not finished, with or without an actor.", func() float64 { return float64(e.index.Len()) }),
	}
}

// countAttempt counts an ended attempt.
func (m *metrics) countAttempt(r messages.AttemptResult) { m.attempts[r].Inc() }

// countTaskEnd counts a task that came to rest.
func (m *metrics) countTaskEnd(s dag.TaskState) { m.tasks[s].Inc() }

// countTransition counts a change of a run.
func (m *metrics) countTransition(s dag.RunState) { m.runs[s].Inc() }

// observeStart notes how long an attempt took to start, but for those that another
// server had granted.
func (m *metrics) observeStart(c *taskActor, idle time.Duration) {
	if c.granted == 0 {
		return
	}
	if idle > 0 {
		m.idle.Observe(idle.Seconds())
	}
	if took := time.Duration(c.started - c.granted); took >= 0 { // else the wall clock was set back meanwhile
		m.toStart.Observe(took.Seconds())
	}
}

// setSlots publishes what the dispatcher has granted. Only the dispatcher calls it, after each
// grant: the collector must not read the scheduler, which has one owner.
func (m *metrics) setSlots(s *slotScheduler) {
	granted := s.Granted()
	m.held.cores.Store(granted.CPUMillis)
	m.held.memory.Store(granted.MemoryBytes)
	s.EachWindow(func(executor string, granted int) {
		if executor == scheduler.NoopExecutor {
			m.held.noops.Store(int64(granted))
		} else {
			m.external.WithLabelValues(executor).Set(float64(granted))
		}
	})
	m.held.requests.Store(int64(s.Requests()))
}

// setCapacity publishes what may be granted.
func (m *metrics) setCapacity(machine scheduler.Resources) {
	m.held.allCores.Store(machine.CPUMillis)
	m.held.allMemory.Store(machine.MemoryBytes)
}

// setTasks publishes what Node.Load returns. Only the dispatcher calls it, after each message.
func (m *metrics) setTasks(s *slotScheduler) {
	queued, running := s.Tasks()
	m.held.queuedTasks.Store(int64(queued))
	m.held.runningTasks.Store(int64(running))
}

// Load is how much work an engine has at a moment.
type Load struct {
	Queued  int // tasks that wait for a slot
	Running int // tasks that have a slot, except no-op tasks
	// IsRecovering says that runs of an earlier engine have yet to report the slots that they hold: they do
	// not count in Running.
	IsRecovering bool
}

// Load returns how much work the engine has. It is cheap, and as old as the message that the dispatcher is
// at.
func (n *Node) Load() Load {
	held := &n.env.metrics.held
	return Load{Queued: int(held.queuedTasks.Load()), Running: int(held.runningTasks.Load()), IsRecovering: held.recovering.Load() > 0}
}

// countedMailbox makes an actor's mailbox one whose length is shown under name.
func (m *metrics) countedMailbox(name string) actor.PropsOption {
	produce := actor.Unbounded()
	return actor.WithMailbox(func() actor.Mailbox {
		box := produce()
		m.mailboxes.add(name, box)
		return box
	})
}

func resultWord(r messages.AttemptResult) string {
	return [...]string{"succeeded", "failed", "signaled", "timed_out", "not_started", "lost", "killed", "rejected"}[r]
}

// mailboxCollector shows how many messages wait in each of the tree's standing actors.
type mailboxCollector struct {
	mu    sync.Mutex
	boxes []namedBox
}

type namedBox struct {
	name string
	box  actor.Mailbox
}

var mailboxDesc = prometheus.NewDesc("caravan_mailbox_messages", "Messages that wait for an actor.", []string{"actor"}, nil)

func (m *mailboxCollector) add(name string, box actor.Mailbox) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.boxes = append(m.boxes, namedBox{name, box})
}

// Describe is part of prometheus.Collector.
func (m *mailboxCollector) Describe(ch chan<- *prometheus.Desc) { ch <- mailboxDesc }

// Collect is part of prometheus.Collector.
func (m *mailboxCollector) Collect(ch chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, b := range m.boxes {
		ch <- prometheus.MustNewConstMetric(mailboxDesc, prometheus.GaugeValue, float64(b.box.UserMessageCount()), b.name)
	}
}

// warnHandler drops what the actor library says below Warn: it has a line for every
// failure of an actor, which costs many times the restart.
type warnHandler struct{ slog.Handler }

// Enabled is part of slog.Handler.
func (w warnHandler) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn && w.Handler.Enabled(ctx, l)
}

// WithAttrs is part of slog.Handler.
func (w warnHandler) WithAttrs(a []slog.Attr) slog.Handler {
	return warnHandler{w.Handler.WithAttrs(a)}
}

// WithGroup is part of slog.Handler.
func (w warnHandler) WithGroup(g string) slog.Handler { return warnHandler{w.Handler.WithGroup(g)} }

// executorCollector collects what executors tell of themselves, by name.
type executorCollector map[string]executor.Executor

var (
	respondingDesc = prometheus.NewDesc("caravan_worker_responding",
		"1 while the executor is able to start tasks, 0 while a worker or the cluster does not answer.", []string{"executor"}, nil)
	postponedDesc = prometheus.NewDesc("caravan_starts_deferred_total",
		"Starts that had to wait for want of something that the machine was short of.", []string{"executor", "reason"}, nil)
)

// Describe implements prometheus.Collector.
func (m executorCollector) Describe(to chan<- *prometheus.Desc) {
	to <- respondingDesc
	to <- postponedDesc
}

// Collect implements prometheus.Collector.
func (m executorCollector) Collect(to chan<- prometheus.Metric) {
	for name, x := range m {
		x, ok := x.(executor.HealthReporter)
		if !ok {
			continue
		}
		responding := 1.0
		if x.Healthy() != nil {
			responding = 0
		}
		to <- prometheus.MustNewConstMetric(respondingDesc, prometheus.GaugeValue, responding, name)
		for reason, n := range x.PostponedStarts() {
			to <- prometheus.MustNewConstMetric(postponedDesc, prometheus.CounterValue, float64(n), name, reason)
		}
	}
}
