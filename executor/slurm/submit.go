package slurm

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/messages"
)

// known are the members of a job that Slurm has an option of the same name for.
var known = []string{"partition", "account", "qos", "constraint", "gres"}

const (
	// longestHold is the most time between two tries while the cluster takes nothing.
	longestHold = 30 * time.Second
	// limitHold is how long a limit on submitted jobs is waited for.
	limitHold = 5 * time.Second
)

// options are what sbatch is told of the order itself. The error says what is wrong
// with it, in a sentence for the user.
func (c *clerk) options(o *executor.Order) ([]string, error) {
	opts := []string{"--cpus-per-task=" + strconv.FormatInt(max(1, ceil(o.CPUMillis, 1000)), 10)}
	if o.MemoryBytes > 0 {
		opts = append(opts, fmt.Sprintf("--mem=%dM", ceil(o.MemoryBytes, 1<<20)))
	}
	if o.Timeout > 0 {
		// The script's own clock is exact; this is for the scheduler, and for a node that hangs.
		minutes := ceil(int64(o.Timeout+c.s.cfg.Grace), int64(time.Minute)) + 1
		opts = append(opts, fmt.Sprintf("--time=%d", minutes))
	}
	partition := c.s.cfg.Partition
	for _, m := range o.ExtraMembers {
		if !slices.Contains(known, m.Name) {
			continue
		}
		var value string
		if err := json.Unmarshal([]byte(m.Raw), &value); err != nil || strings.IndexByte(value, 0) >= 0 {
			return nil, fmt.Errorf("%s must be a string for Slurm, it is %s", m.Name, m.Raw)
		}
		if m.Name == "partition" {
			partition = value
		} else if value != "" {
			opts = append(opts, "--"+m.Name+"="+value)
		}
	}
	if partition != "" {
		opts = append(opts, "--partition="+partition)
	}
	return opts, nil
}

func ceil(v, by int64) int64 { return (v + by - 1) / by }

// shape is what orders must have in common to be of one array.
type shape struct {
	run     messages.RunID
	timeout time.Duration
	options string
}

func (c *clerk) shape(o *executor.Order) (shape, []string) {
	opts, _ := c.options(o) // it was sound when the order came
	return shape{o.Key.Run, o.Timeout, strings.Join(opts, "\x00")}, opts
}

// submit is duty 2.
func (c *clerk) submit() {
	now := time.Now()
	if c.submitting || len(c.waiting) == 0 || now.Before(c.hold) || now.Before(c.gather) && len(c.waiting) < c.maxArray {
		return
	}
	batch, opts := c.batch()
	if len(batch) == 0 {
		return
	}
	name := c.jobName(batch[0].order.Name)
	folders := make([]string, len(batch))
	for i, e := range batch {
		folders[i] = folderName(e.key)
		e.name, e.index, e.job, e.sending = name, i, "", true
		c.move(e, submitted)
		if err := e.folder.setJob(name, i); err != nil {
			// Its index finds that it cannot begin.
			if taken, _ := e.folder.claim(); taken {
				c.unbegun(e, messages.AttemptLost, "lost: its folder cannot be written: "+err.Error())
			}
		}
	}
	args := append([]string{"--parsable", "--array=0-" + strconv.Itoa(len(batch)-1), "--job-name=" + name, "--no-requeue",
		"--nodes=1", "--ntasks=1", "--export=ALL", "--chdir=/", "--comment=Caravan run " + strconv.FormatUint(uint64(batch[0].key.Run), 10),
		"--output=" + strings.ReplaceAll(c.s.cfg.Dir, "%", "%%") + "/" + logFolder + "/%A_%a"}, opts...)
	script := arrayScript(c.s.cfg.Dir, folders, batch[0].order.Timeout, c.s.cfg.Grace)
	c.submitting = true
	c.s.work.Go(func() {
		out, err := c.s.programs.run(c.s.ctx, script, "sbatch", args...)
		c.s.ask(func() { c.answered(batch, string(out), err) })
	})
}

// batch takes from what waits the first order and all that may go with it.
func (c *clerk) batch() (batch []*entry, opts []string) {
	var with shape
	left := c.waiting[:0]
	for _, e := range c.waiting {
		if e.stage != waits || c.entries[e.key] != e {
			continue // taken back meanwhile
		}
		s, o := c.shape(e.order)
		if len(batch) == 0 {
			with, opts = s, o
		}
		if s == with && len(batch) < c.maxArray {
			batch = append(batch, e)
		} else {
			left = append(left, e)
		}
	}
	clear(c.waiting[len(left):])
	c.waiting = left
	return batch, opts
}

// jobName is a name that no other job has: the task's, as far as Slurm takes it, this
// folder's, and the moment.
func (c *clerk) jobName(task string) string {
	plain := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '_', r == '-':
			return r
		}
		return '_'
	}, task)
	return plain[:min(len(plain), 40)] + "." + c.s.id + "." + strconv.FormatInt(time.Now().UnixNano(), 36)
}

// answered is what sbatch said to a batch.
func (c *clerk) answered(batch []*entry, out string, err error) {
	c.submitting = false
	array, _, _ := strings.Cut(strings.TrimSpace(out), ";")
	if err == nil {
		if _, bad := strconv.ParseInt(array, 10, 64); bad != nil {
			err = &commandError{name: "sbatch", err: fmt.Errorf("%q is no job number", array)}
		}
	}
	now := time.Now()
	var left []*entry // without those that were taken back meanwhile
	for _, e := range batch {
		e.sending, e.from = false, now
		if e.left { // who is given it again finds the job by its name
			continue
		}
		switch alive := e.stage < ending; {
		case err != nil && alive:
			left = append(left, e)
		case err != nil:
		case alive:
			e.tries++
			if e.job == "" {
				e.job = array + "_" + strconv.Itoa(e.index)
			}
		default:
			c.cancel = append(c.cancel, array+"_"+strconv.Itoa(e.index))
		}
	}
	if err == nil || !isPassing(err) {
		c.heard(nil)
	} else {
		c.heard(err)
	}
	if err != nil {
		c.refused(batch, left, err)
	}
}

// refused decides what becomes of attempts that sbatch did not take, as it says.
func (c *clerk) refused(batch, left []*entry, err error) {
	switch {
	case strings.Contains(err.Error(), "Invalid job array specification") && len(batch) > 1:
		c.maxArray = len(batch) / 2
		c.again(left, 0)
	case isPassing(err):
		// It may have been taken: the next look finds them by their name, or submits them again.
		c.patience = min(max(2*c.patience, time.Second), longestHold)
		c.hold = time.Now().Add(c.patience)
	case strings.Contains(err.Error(), "submit limit") && c.flying > len(left):
		c.again(left, limitHold)
	default:
		for _, e := range left {
			if e.stage == running {
				continue // an earlier job of it came through
			}
			if taken, _ := e.folder.claim(); taken {
				c.unbegun(e, messages.AttemptNotStarted, "sbatch: "+err.Error())
			}
		}
	}
}

// again puts attempts in front of what waits.
func (c *clerk) again(es []*entry, hold time.Duration) {
	rest := c.waiting
	c.waiting = nil
	for _, e := range es {
		if e.stage == submitted {
			c.enqueue(e)
		}
	}
	c.waiting = append(c.waiting, rest...)
	c.hold = time.Now().Add(hold)
}

// heard notes, and logs once, whether the cluster answers.
func (c *clerk) heard(err error) {
	switch {
	case err == nil:
		if c.silent {
			c.log.Info("Slurm answers again")
		}
		c.silent, c.patience = false, 0
	case !c.silent && c.s.ctx.Err() == nil:
		c.silent = true
		c.log.Warn("Slurm does not answer; it is asked again and again", "err", err)
	}
}
