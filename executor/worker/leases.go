package worker

import (
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/lease"
	"github.com/caravan-dag/caravan/messages"
)

// This file enforces the leases of a cluster's partitions, of which partition knows. The server only passes
// deadlines on: so they also hold while it is dead, stopped or cut off. Without leases it costs nothing.

// extendLease takes in a deadline from the server. frameMu is held.
func (w *Worker) extendLease(index int, until int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.partition.extendLease(index, until, sinceBoot())
}

// watchLeases ends the attempts whose lease is over, until the channel is closed.
func (w *Worker) watchLeases(ended <-chan struct{}) {
	ticks := time.NewTicker(lease.CheckInterval(w.settings.Lease))
	defer ticks.Stop()
	for {
		select {
		case <-ticks.C:
			w.endOverdue(sinceBoot())
		case <-ended:
			return
		}
	}
}

// endOverdue gives back the orders and ends the attempts whose lease is over. Repeating it is harmless.
func (w *Worker) endOverdue(now int64) {
	w.mu.Lock()
	revoke, kill := w.partition.overdue(now)
	first := 0
	for _, key := range kill {
		if a := w.partition.attempts[key]; !a.overdue {
			a.overdue = true
			first++
		}
	}
	w.mu.Unlock()
	if first > 0 {
		w.log.Error("attempts are ended: no leader has renewed their lease", "attempts", first, "lease", w.settings.Lease.String())
	}
	for _, key := range revoke {
		w.process.Revoke(key)
	}
	for _, key := range kill {
		w.process.Kill(key, lease.Grace(w.settings.Lease))
	}
}

// withholdOverdue keeps orders from beginning whose lease is over: the Process reports a killed order that was
// not forked as revoked. Their intents are recorded, and withdrawn.
func (w *Worker) withholdOverdue(orders []*executor.Order, now int64) {
	if w.settings.Lease == 0 {
		return
	}
	var withheld []messages.AttemptKey
	w.mu.Lock()
	for _, o := range orders {
		if !w.partition.mayBegin(o.Key, now) {
			withheld = append(withheld, o.Key)
		}
	}
	w.mu.Unlock()
	for _, key := range withheld {
		w.process.Kill(key, 0)
	}
}

// markOverdue reports attempts as lost that were ended because their lease was over: no user has killed them.
func (w *Worker) markOverdue(reports []executor.Report) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range reports {
		r := &reports[i]
		if a := w.partition.attempts[r.Key]; a != nil && a.overdue && r.Record.Result == messages.AttemptKilled {
			r.Record.Result = messages.AttemptLost
			r.Record.ExecutorLog = "lost: no leader has renewed its lease for " + w.settings.Lease.String()
		}
	}
}
