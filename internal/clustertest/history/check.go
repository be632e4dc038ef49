package history

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Violation is one broken rule.
type Violation struct {
	Rule string // as the package documentation lists them
	Text string // what is wrong, with the operations that show it
}

func (v Violation) String() string { return v.Rule + ": " + v.Text }

// Options configure Check. A zero member means the default.
type Options struct {
	// SearchLimit bounds the search for an order of the calls of one run or key; default a minute. A
	// search that exceeds it is undecided, which is reported as a violation.
	SearchLimit time.Duration
	// AllowMissed accepts streams with gap events, for rounds in which readers are slower than the
	// service.
	AllowMissed bool
}

// check is one application of all rules to a history.
type check struct {
	*History
	options Options
	runs    map[uint64]*runFacts
	tags    map[string]*tagFacts

	violations []Violation
}

// runFacts is what a history says about one run ID.
type runFacts struct {
	id         uint64
	tag        string // "" until a submission, a list or a record names it
	submitted  []*Operation
	read       []*Operation
	changed    []*Operation
	record     *Record
	inconstant bool // it was seen with several tags
}

// tagFacts is what a history says about one tag.
type tagFacts struct {
	submitted []*Operation
	runs      []uint64 // that were seen with this tag, ascending
}

// Check returns the violations of all rules, in the order of the rules and then of the runs. A
// history without violations gives nil.
func Check(h *History, options Options) []Violation {
	if options.SearchLimit <= 0 {
		options.SearchLimit = time.Minute
	}
	c := &check{History: h, options: options}
	c.collectFacts()
	c.checkRegisters()
	c.checkKeys()
	c.checkFound()
	c.checkOrigin()
	c.checkForward()
	c.checkListed()
	c.checkRecords()
	c.checkCompleted()
	c.checkEvents()
	c.checkAttempts()
	c.checkParents()
	c.checkReplicas()
	return c.violations
}

func (c *check) reportf(rule, format string, args ...any) {
	c.violations = append(c.violations, Violation{rule, fmt.Sprintf(format, args...)})
}

// collectFacts sorts the operations and records by run and by tag.
//
// A submission without an answer does not know its run. Its tag does: it ties the submission to the
// run that lists and records show with this tag.
func (c *check) collectFacts() {
	c.runs, c.tags = map[uint64]*runFacts{}, map[string]*tagFacts{}
	for i := range c.Operations {
		o := &c.Operations[i]
		switch o.Kind {
		case Submit:
			t := c.tagFacts(o.Tag)
			t.submitted = append(t.submitted, o)
			if o.Outcome == Acknowledged {
				c.seeRun(o.Run, o.Tag)
			}
		case Read:
			r := c.runFacts(o.Run)
			r.read = append(r.read, o)
		case Change:
			r := c.runFacts(o.Run)
			r.changed = append(r.changed, o)
		case List:
			for _, l := range o.Listed {
				c.seeRun(l.Run, l.Tag)
			}
		}
	}
	for i := range c.Records {
		r := &c.Records[i]
		c.seeRun(r.Run, r.Tag).record = r
	}
	for _, r := range c.runs {
		if r.tag != "" {
			r.submitted = c.submissionsOf(r)
		}
	}
}

// submissionsOf returns the submissions that may have made the run: those with its tag, except those
// that were answered with another run.
func (c *check) submissionsOf(r *runFacts) (submitted []*Operation) {
	for _, o := range c.tagFacts(r.tag).submitted {
		if o.Outcome != Acknowledged || o.Run == r.id {
			submitted = append(submitted, o)
		}
	}
	return submitted
}

func (c *check) runFacts(id uint64) *runFacts {
	r := c.runs[id]
	if r == nil {
		r = &runFacts{id: id}
		c.runs[id] = r
	}
	return r
}

func (c *check) tagFacts(tag string) *tagFacts {
	t := c.tags[tag]
	if t == nil {
		t = &tagFacts{}
		c.tags[tag] = t
	}
	return t
}

// seeRun notes that a run was seen with a tag.
func (c *check) seeRun(id uint64, tag string) *runFacts {
	r, t := c.runFacts(id), c.tagFacts(tag)
	if r.tag != "" && r.tag != tag {
		r.inconstant = true
	}
	r.tag = tag
	if at, found := slices.BinarySearch(t.runs, id); !found {
		t.runs = slices.Insert(t.runs, at, id)
	}
	return r
}

// runsInOrder returns the runs by ID, so that reports have an order.
func (c *check) runsInOrder() []*runFacts {
	all := make([]*runFacts, 0, len(c.runs))
	for _, r := range c.runs {
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b *runFacts) int { return cmp.Compare(a.id, b.id) })
	return all
}
