package actors

import "github.com/caravan-dag/caravan/messages"

// tenant is one run at the dispatcher: its claims, and where its grants go. A backlog
// has many, so each costs one piece of memory and one entry of one table.
type tenant struct {
	client client // of the dispatcher; the scheduler does not look at it
	first  *claim // the claims, as a chain
	one    claim  // the first one there was: most runs want slots of one class only
	n      int
	byID   map[int]*claim // all of them, when there are more than fewClaims
}

// fewClaims is up to how many claims of a run are looked up in their chain.
const fewClaims = 8

// find returns the run's claim of class id, or nil. A nil tenant has none.
func (t *tenant) find(id int) *claim {
	switch {
	case t == nil:
		return nil
	case t.byID != nil:
		return t.byID[id]
	}
	c := t.first
	for c != nil && c.key.id != id {
		c = c.next
	}
	return c
}

func (t *tenant) add(c *claim) {
	c.next, t.first = t.first, c
	t.n++
	switch {
	case t.byID != nil:
		t.byID[c.key.id] = c
	case t.n > fewClaims:
		t.byID = make(map[int]*claim, 2*t.n)
		for c := t.first; c != nil; c = c.next {
			t.byID[c.key.id] = c
		}
	}
}

// remove takes a claim off, which must be there. It keeps its own next.
func (t *tenant) remove(c *claim) {
	at := &t.first
	for *at != c {
		at = &(*at).next
	}
	*at = c.next
	t.n--
	delete(t.byID, c.key.id)
}

// find returns a run's claim, or nil.
func (s *scheduler) find(run messages.RunID, id int) *claim {
	return s.tenants.Get(uint64(run)).find(id)
}
