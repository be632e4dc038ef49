package actors

import (
	"context"
	"log/slog"
	"sync"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/prometheus/client_golang/prometheus"
)

// mailboxes shows how many messages wait in each of the tree's standing actors.
type mailboxes struct {
	mu    sync.Mutex
	boxes []namedBox
}

type namedBox struct {
	name string
	box  actor.Mailbox
}

var mailboxDesc = prometheus.NewDesc("caravan_mailbox_messages", "Messages that wait for an actor.", []string{"actor"}, nil)

func (m *mailboxes) add(name string, box actor.Mailbox) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.boxes = append(m.boxes, namedBox{name, box})
}

// Describe is part of prometheus.Collector.
func (m *mailboxes) Describe(ch chan<- *prometheus.Desc) { ch <- mailboxDesc }

// Collect is part of prometheus.Collector.
func (m *mailboxes) Collect(ch chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, b := range m.boxes {
		ch <- prometheus.MustNewConstMetric(mailboxDesc, prometheus.GaugeValue, float64(b.box.UserMessageCount()), b.name)
	}
}

// warnings drops what the actor library says below Warn: it has a line for every
// failure of an actor, which costs many times the restart.
type warnings struct{ slog.Handler }

// Enabled is part of slog.Handler.
func (w warnings) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn && w.Handler.Enabled(ctx, l)
}

// WithAttrs is part of slog.Handler.
func (w warnings) WithAttrs(a []slog.Attr) slog.Handler { return warnings{w.Handler.WithAttrs(a)} }

// WithGroup is part of slog.Handler.
func (w warnings) WithGroup(g string) slog.Handler { return warnings{w.Handler.WithGroup(g)} }
