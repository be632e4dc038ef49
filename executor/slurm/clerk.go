package slurm

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/messages"
)

// clerk knows the attempts. All of it belongs to one goroutine, which runs run.
type clerk struct {
	s       *Slurm
	log     *slog.Logger
	entries map[messages.AttemptKey]*entry
	open    int // entries that have not ended
	flying  int // entries whose job is to be looked after
	seq     uint64
	past    past

	waiting    []*entry // to be submitted, in the order in which they came; some are not any more
	gather     time.Time
	hold       time.Time // nothing is submitted before
	patience   time.Duration
	submitting bool // an sbatch runs
	maxArray   int

	poll      time.Time // the next look at the jobs
	plainText bool      // squeue has no JSON
	silent    bool      // the cluster does not answer, and that was logged
	terminate []string  // jobs whose script is to end its attempt
	cancel    []string  // jobs that Slurm is to end
	strays    []stray
	expects   bool // ExpectResume was called
	closing   bool
}

// stray is a job that nobody needs any more, and whose number is not known.
type stray struct {
	name  string
	index int
}

// entry is an attempt from its order, or from its folder's being found, until its end
// is acknowledged.
type entry struct {
	key      messages.AttemptKey
	seq      uint64          // order of the orders
	order    *executor.Order // nil: nobody asks for it, and it is being ended
	folder   folder
	stage    stage
	name     string // of its job
	index    int    // in the job's array
	job      string // as squeue and scancel have it; "" = not known
	sending  bool   // its sbatch runs
	tries    int
	from     time.Time // looks that began earlier cannot show the job
	last     *job      // as it was when it was over
	node     string
	at       int64 // its start, ns since the epoch
	told     bool  // Started was reported
	left     bool  // it is to be given again: this entry counts no more
	killed   bool
	revoked  bool
	stopped  bool // killed by Close
	grace    time.Duration
	signaled bool      // its script was told
	force    time.Time // when Slurm is to end it
	await    time.Time // how long its end is awaited after its job's
	streams  *streams
}

// stage is how far an attempt is.
type stage uint8

const (
	waits     stage = iota // to be submitted
	submitted              // or about to be
	running                // begun
	ending                 // over, and being collected
	ended
)

const (
	// maxTries is how often an attempt is submitted whose job disappears.
	maxTries = 5
	// endPatience is how many intervals the end of an attempt may take to show in its
	// folder after its job is over: network file systems are not in step.
	endPatience = 10
	// forceAfter is how long a job may take beyond the grace before Slurm ends it.
	forceAfter = 10 * time.Second
	// idle is how long the clerk sleeps when there is nothing to do.
	idle = time.Hour
)

func newClerk(s *Slurm) clerk {
	return clerk{s: s, log: s.cfg.Logger, entries: map[messages.AttemptKey]*entry{}, maxArray: 1000}
}

// run does the clerk's duties, as the package doc has them.
func (c *clerk) run() {
	defer close(c.s.over)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-c.s.look:
		case <-timer.C:
		}
		for {
			inbox, more := c.s.asked(c.open == 0 && !c.submitting)
			if !more || c.s.ctx.Err() != nil {
				return
			}
			if len(inbox) == 0 {
				break
			}
			for _, do := range inbox {
				do()
			}
		}
		c.submit()
		c.lookAround()
		c.scancel()
		if c.closing && c.open == 0 {
			c.s.wake()
		}
		timer.Reset(c.next())
	}
}

// next is how long there is nothing to do.
func (c *clerk) next() time.Duration {
	now := time.Now()
	due := now.Add(idle)
	if c.watches() && c.poll.Before(due) {
		due = c.poll
	}
	if len(c.waiting) > 0 && !c.submitting {
		if at := latest(c.gather, c.hold); at.Before(due) {
			due = at
		}
	}
	return max(due.Sub(now), time.Millisecond)
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// watches tells whether there are jobs to look for.
func (c *clerk) watches() bool { return c.flying > 0 || len(c.strays) > 0 }

// move brings an attempt to a stage.
func (c *clerk) move(e *entry, to stage) {
	if e.stage == submitted || e.stage == running {
		c.flying--
	}
	if to == submitted || to == running {
		c.flying++
	}
	e.stage = to
}

// order takes an order, or finds out what became of it before.
func (c *clerk) order(o *executor.Order) {
	e := c.entries[o.Key]
	switch {
	case c.closing:
		c.s.cfg.Sink(refused(o))
		return
	case e != nil && e.order != nil, e == nil && c.past.has(o.Key):
		return
	case e != nil:
		e.order = o
		c.tellStart(e)
		return
	}
	e = &entry{key: o.Key, order: o, folder: c.s.folder(o.Key)}
	script, err := attemptScript(o, c.s.baseEnv, c.s.cwd, string(e.folder))
	if mask := c.s.cfg.Umask; mask != "" {
		script = "umask " + mask + "\n" + script
	}
	if err == nil {
		_, err = c.options(o)
	}
	if err != nil {
		c.past.add(o.Key)
		c.s.cfg.Sink(unbegun(o, messages.AttemptNotStarted, err.Error()))
		return
	}
	c.add(e)
	err = e.folder.make()
	if errors.Is(err, fs.ErrExist) {
		if c.adopt(e) {
			return
		}
		err = nil
	}
	if err == nil {
		err = writeFile(e.folder.path("run"), []byte(script))
		if o.UseShell && executor.ExceedsArgumentLimit(o.Shell) {
			err = errors.Join(err, writeFile(e.folder.path(textFile), []byte(o.Shell)))
		}
	}
	if err != nil {
		c.unbegun(e, messages.AttemptLost, "lost: its folder cannot be made: "+err.Error())
		return
	}
	c.enqueue(e)
}

func (c *clerk) add(e *entry) {
	c.seq++
	e.seq = c.seq
	c.entries[e.key] = e
	c.open++
}

func (c *clerk) enqueue(e *entry) {
	if len(c.waiting) == 0 {
		c.gather = time.Now().Add(c.s.cfg.Gather)
	}
	c.move(e, waits)
	c.waiting = append(c.waiting, e)
}

// adopt takes an attempt over whose folder is there. It is false when it was never
// submitted.
func (c *clerk) adopt(e *entry) bool {
	if v, ok := e.folder.verdict(c.s.largestVerdict()); ok {
		e.at = v.Record.Start
		c.move(e, ending)
		c.s.beside(func() { c.s.repeat(e, v) })
		return true
	}
	if b, ok := e.folder.begun(); ok && b.byServer {
		// A former server took it back, and did not live to have it known.
		_ = os.Remove(e.folder.path("begun"))
	}
	name, index, ok := e.folder.job()
	if !ok {
		return false
	}
	c.move(e, submitted)
	e.name, e.index = name, index
	c.seeBeginning(e)
	c.poll = time.Time{}
	return true
}

// kill is what Slurm.Kill asks for.
func (c *clerk) kill(key messages.AttemptKey, grace time.Duration) {
	e := c.entries[key]
	if e == nil || e.stage >= ending {
		return
	}
	if !e.killed || grace < e.grace {
		e.killed, e.grace, e.signaled = true, max(grace, 0), false
	}
	if !c.withdraw(e) {
		c.signal(e)
	}
}

// revoke is what Slurm.Revoke asks for.
func (c *clerk) revoke(key messages.AttemptKey) {
	if e := c.entries[key]; e != nil && e.stage < running {
		e.revoked = true
		c.withdraw(e)
	}
}

// withdraw takes an attempt back that has not begun. It is false when it has, or when
// that is not to be found out now: then the next look does.
func (c *clerk) withdraw(e *entry) bool {
	if e.stage >= running {
		return false
	}
	taken, err := e.folder.claim()
	if err != nil {
		c.log.Warn("an attempt cannot be taken back yet", "key", e.key, "err", err)
		return false
	}
	if !taken {
		c.seeBeginning(e)
		return false
	}
	switch {
	case e.job != "":
		c.cancel = append(c.cancel, e.job)
	case e.stage == submitted && !e.sending:
		c.strays = append(c.strays, stray{e.name, e.index})
	}
	c.endRevoked(e)
	return true
}

// signal has an attempt's own script end it, once its job is known.
func (c *clerk) signal(e *entry) {
	if e.stage != running || e.job == "" || e.signaled {
		return
	}
	if err := writeFile(e.folder.path("grace"), []byte(seconds(e.grace)+"\n")); err != nil {
		c.log.Warn("an attempt is killed with the default grace", "key", e.key, "err", err)
	}
	e.signaled = true
	e.force = time.Now().Add(e.grace + forceAfter)
	c.terminate = append(c.terminate, e.job)
}

// close is what Slurm.Close asks for.
func (c *clerk) close() {
	c.closing = true
	for key, e := range c.entries {
		if e.stage < ending {
			e.stopped = !e.killed
			c.kill(key, c.s.cfg.CloseGrace)
		}
	}
}

// acknowledge forgets ends that are durable elsewhere.
func (c *clerk) acknowledge(keys []messages.AttemptKey) {
	for _, key := range keys {
		if e := c.entries[key]; e != nil && e.stage == ended {
			c.forget(e)
		}
	}
}

func (c *clerk) forget(e *entry) {
	delete(c.entries, e.key)
	c.past.add(e.key)
	c.remove(e)
}

// remove deletes the attempt's folder, and what Slurm said of its job.
func (c *clerk) remove(e *entry) {
	dir, job := e.folder, e.job
	c.s.beside(func() {
		if err := dir.remove(); err != nil {
			c.log.Warn("an attempt's folder stays", "folder", dir, "err", err)
		}
		if job != "" {
			_ = os.Remove(filepath.Join(c.s.cfg.Dir, logFolder, job)) // there is none if it said nothing
		}
	})
}

// expect is what Slurm.ExpectResume asks for.
func (c *clerk) expect(runs []messages.RunID) {
	expected := map[messages.RunID]bool{}
	for _, run := range runs {
		expected[run] = true
	}
	for key, e := range c.entries {
		if expected[key.Run] {
			c.leave(e)
		}
	}
	if !c.expects {
		c.expects = true
		c.disown(func(run messages.RunID) bool { return !expected[run] })
	}
}

// leave forgets an attempt that its run gives again: all that counts is in its folder.
func (c *clerk) leave(e *entry) {
	if e.stage != ended {
		c.open--
	}
	c.move(e, ended)
	e.left = true
	c.s.hide(e)
	delete(c.entries, e.key)
}

// disown ends and forgets what the folder holds of some runs and nobody has asked for.
func (c *clerk) disown(of func(messages.RunID) bool) {
	keys, err := c.s.attempts(of)
	if err != nil {
		c.log.Error("what was left in the folder is not looked after", "err", err)
		return
	}
	for _, key := range keys {
		if c.entries[key] != nil {
			continue
		}
		e := &entry{key: key, folder: c.s.folder(key), told: true}
		c.add(e)
		if c.adopt(e) {
			c.kill(key, c.s.cfg.CloseGrace)
		} else {
			c.end(e, nil)
		}
	}
}

// seeBeginning notes that an attempt has begun, if it has.
func (c *clerk) seeBeginning(e *entry) {
	b, ok := e.folder.begun()
	if !ok || b.byServer || e.stage > running {
		return
	}
	if b.job != "" {
		e.job, e.node = b.job, b.node
	}
	if e.stage < running {
		c.move(e, running)
		e.at = b.at
		e.streams = c.s.show(e)
	}
	c.tellStart(e)
	if e.killed {
		c.signal(e)
	}
}

func (c *clerk) tellStart(e *entry) {
	if !e.told && e.order != nil && e.at != 0 {
		e.told = true
		c.s.cfg.Sink(executor.Report{Key: e.key, Kind: executor.Started, At: e.at})
	}
}

// unbegun ends an attempt that has not begun, and never will.
func (c *clerk) unbegun(e *entry, result messages.AttemptResult, why string) {
	if e.order == nil {
		c.end(e, nil)
		return
	}
	r := unbegun(e.order, result, why)
	if err := e.folder.setVerdict(&r); err != nil {
		c.log.Warn("the end of an attempt is not kept", "key", e.key, "err", err)
	}
	c.end(e, &r)
}

func (c *clerk) endRevoked(e *entry) {
	c.end(e, &executor.Report{Key: e.key, Kind: executor.Revoked, At: time.Now().UnixNano()})
}

// end makes the final report. What was only revoked leaves nothing behind, and its key
// is free; nor does what nobody asked for.
func (c *clerk) end(e *entry, r *executor.Report) {
	if e.left {
		return
	}
	c.move(e, ended)
	c.open--
	c.s.hide(e)
	if r == nil || e.order == nil || r.Kind == executor.Revoked {
		delete(c.entries, e.key)
		if err := e.folder.remove(); err != nil { // at once: its key may come again
			c.log.Warn("an attempt's folder stays", "folder", e.folder, "err", err)
		}
	}
	if r != nil && e.order != nil {
		c.s.cfg.Sink(*r)
	}
}

// past remembers the keys of attempts whose ends were acknowledged, the last ones of
// them, so that a repeated order starts nothing.
type past struct {
	keys map[messages.AttemptKey]bool
	ring []messages.AttemptKey
	next int
}

const maxPast = 1 << 16

func (p *past) has(k messages.AttemptKey) bool { return p.keys[k] }

func (p *past) add(k messages.AttemptKey) {
	if p.keys == nil {
		p.keys = map[messages.AttemptKey]bool{}
	}
	if len(p.ring) < maxPast {
		p.ring = append(p.ring, k)
	} else {
		delete(p.keys, p.ring[p.next])
		p.ring[p.next] = k
		p.next = (p.next + 1) % maxPast
	}
	p.keys[k] = true
}
