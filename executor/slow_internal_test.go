package executor

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/messages"
)

// A look at files that hang, to explain a failed start, ends with its patience, or when the
// attempt is to be ended; and there are not too many of them.
func TestExplanationThatHangs(t *testing.T) {
	dir := t.TempDir()
	folder, err := faults.MountHanging(dir)
	if err != nil {
		t.Skip(err)
	}
	p, _ := internalRig(t, ProcessConfig{})
	c := command{path: "tool", argv: []string{"tool"}, dir: dir}
	const want = `start "tool": no such file or directory`
	explain := func(a *attempt) (took time.Duration) {
		asked := time.Now()
		if err := p.explain(a, &c, unix.ENOENT); err.Error() != want {
			t.Errorf("%v", err)
		}
		return time.Since(asked)
	}
	if took := explain(newAttempt(Order{})); took < explainPatience {
		t.Errorf("it did not hang: it took %v", took)
	}
	a := newAttempt(Order{Key: messages.AttemptKey{Task: 1}})
	time.AfterFunc(50*time.Millisecond, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.endAttempt(a, causeKill, 0)
	})
	if took := explain(a); took > time.Second {
		t.Errorf("%v beside a kill", took)
	}
	others := maxExplaining - len(p.explainSlots)
	for range others {
		p.explainSlots <- struct{}{}
	}
	if took := explain(newAttempt(Order{})); took > time.Second {
		t.Errorf("one too many took %v", took)
	}
	folder.Close()
	for range others {
		<-p.explainSlots
	}
}

// More starts than may be wait in the queue, and are taken from there.
func TestTooManyStarts(t *testing.T) {
	p, reports := internalRig(t, ProcessConfig{})
	p.mu.Lock()
	p.startsUnderWay = p.startLimit.starting
	p.mu.Unlock()
	p.Start(Order{Key: messages.AttemptKey{Task: 1}, Command: []string{"/bin/true"}})
	if s := p.Stats(); s.Queued != 1 || s.Running != 0 {
		t.Errorf("%+v", s)
	}
	p.mu.Lock()
	p.endStart(&attempt{startUnderWay: true})
	p.mu.Unlock()
	<-reports
	if r := <-reports; r.Record.Result != messages.AttemptSucceeded {
		t.Errorf("%+v", r)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.startsUnderWay != p.startLimit.starting-1 {
		t.Errorf("%d starts", p.startsUnderWay-p.startLimit.starting+1)
	}
}
