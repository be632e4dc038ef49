package main

import (
	"errors"
	"fmt"
)

// row is one line of the report.
type row struct {
	metric string
	unit   string
	// per is the metric that this one is shown in proportion to, "" for none; with
	// inverse the proportion is per/metric (both are times).
	per     string
	inverse bool
	target  bound // what is asked for
	floor   bound // what --smoke demands; far from what is usual, so that noise does not reach it
}

// bound is what a value must reach, or with ratio its proportion; the zero bound is
// none.
type bound struct {
	set   bool
	limit float64
	most  bool // at most, in place of at least
	ratio bool
}

func atLeast(v float64) bound      { return bound{set: true, limit: v} }
func atMost(v float64) bound       { return bound{set: true, limit: v, most: true} }
func ratioAtLeast(v float64) bound { return bound{set: true, limit: v, ratio: true} }
func ratioAtMost(v float64) bound  { return bound{set: true, limit: v, most: true, ratio: true} }

// text is the bound in words, "" for none.
func (b bound) text(unit string) string {
	if !b.set {
		return ""
	}
	sign := ">="
	if b.most {
		sign = "<="
	}
	if b.ratio {
		return fmt.Sprintf("%s %.2f x", sign, b.limit)
	}
	return sign + " " + figure(b.limit, unit)
}

// check tells whether a row of a result reaches a bound; measured is false where
// there is nothing to compare: no bound, no figure, or no reference.
func (b bound) check(r *result, metric string) (v float64, met, measured bool) {
	from := r.medians
	if b.ratio {
		from = r.ratios
	}
	v, measured = from[metric]
	if !b.set || !measured {
		return v, false, false
	}
	return v, b.most && v <= b.limit || !b.most && v >= b.limit, true
}

// ratio is a row's proportion in one round.
func (r row) ratio(values map[string]float64) (float64, bool) {
	v, ok := values[r.metric]
	ref, okRef := values[r.per]
	if !ok || !okRef || v == 0 || ref == 0 {
		return 0, false
	}
	if r.inverse {
		return ref / v, true
	}
	return v / ref, true
}

// belowFloors is an error that names every row below its floor.
func belowFloors(results ...*result) error {
	var errs []error
	for _, r := range results {
		for _, row := range r.rows {
			if v, met, measured := row.floor.check(r, row.metric); measured && !met {
				errs = append(errs, fmt.Errorf("%s: %s is %.3g, the floor is %s", r.name, row.metric, v, row.floor.text(row.unit)))
			}
		}
	}
	return errors.Join(errs...)
}
