package actors

import (
	"sync"
	"sync/atomic"

	"github.com/caravan-dag/caravan/messages"
)

// pauses says whether any task may start, whatever its run.
type pauses struct {
	reason atomic.Pointer[string] // "" = tasks start
	change sync.Mutex             // one change at a time
	save   func(reason string) error
}

// pauseAll tells the dispatcher to grant nothing, or to grant again. Once it has
// answered nothing more is granted; what was granted before still starts.
type pauseAll struct {
	on    bool
	reply messages.Reply[struct{}]
}

// Paused returns why no task starts; "" when tasks do.
func (n *Node) Paused() string { return *n.pauses.reason.Load() }

// SetPaused pauses all runs at once, for a reason, or with "" has them go on. It
// returns when that is durable and in effect: attempts that run, and those that were
// granted before, go on; nothing else starts.
func (n *Node) SetPaused(reason string) error {
	n.pauses.change.Lock()
	defer n.pauses.change.Unlock()
	if n.pauses.save != nil {
		if err := n.pauses.save(reason); err != nil {
			return &messages.Error{Code: messages.Unavailable, Text: "the pause cannot be stored: " + err.Error()}
		}
	}
	m := &pauseAll{reason != "", messages.NewReply[struct{}]()}
	if _, err := call(n, m.reply, func() { n.env.root.Send(n.env.dispatcher, m) }); err != nil {
		return err
	}
	n.pauses.reason.Store(&reason)
	return nil
}
