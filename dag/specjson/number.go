package specjson

import (
	"strconv"
	"strings"
	"time"

	"github.com/caravan-dag/caravan/dag"
)

// Bounds of numbers. Each keeps the number in its unit (thousandths, ns) and what is computed from it
// within an int64.
const (
	maxQuantity = 1_000_000_000 // cores, MB
	maxSeconds  = 1_000_000_000 // about 31 years: a time plus it fits in int64 nanoseconds
	maxRetries  = 1_000_000_000
	maxBackoff  = 1_000_000
)

// readQuantity reads a number that may be given as a string, and rounds it up to
// thousandths. After a problem it returns the zero Quantity. Raw is the JSON text with its quotes, to be
// echoed: "1.5" as a string is Raw `"1.5"`, Milli 1500, and the number 2e-4 is Raw `2e-4`, Milli 1.
func (d *reader) readQuantity(what string) dag.Quantity {
	raw, ok := d.readNumeric(what)
	if !ok {
		return dag.Quantity{}
	}
	milli, ok := d.checkDecimal(what, strings.Trim(raw, `"`), 3, maxQuantity)
	if !ok {
		return dag.Quantity{}
	}
	return dag.Quantity{Raw: raw, Milli: milli}
}

// readTimeout reads timeoutSeconds, a number that may be given as a string, and returns
// its JSON text.
func (d *reader) readTimeout(j *dag.Job) string {
	raw, ok := d.readNumeric("timeoutSeconds")
	if !ok {
		return raw
	}
	ns, ok := d.checkDecimal("timeoutSeconds", strings.Trim(raw, `"`), 9, maxSeconds)
	if ok && ns == 0 {
		d.addProblem("timeoutSeconds must be more than 0")
	}
	j.Timeout = time.Duration(ns)
	return raw
}

// readNumeric reads a number or a string as JSON text.
func (d *reader) readNumeric(what string) (raw string, ok bool) {
	if d.peekKind() == '"' {
		raw = d.readRaw()
		d.unquote(raw)
		return raw, d.syntax == nil
	}
	if !d.expectKind('0', what+", unless it is a string,") {
		return "", false
	}
	return d.readRaw(), d.syntax == nil
}

// readSeconds reads a number of seconds.
func (d *reader) readSeconds(what string) time.Duration {
	if !d.expectKind('0', what) {
		return 0
	}
	ns, _ := d.checkDecimal(what, d.readRaw(), 9, maxSeconds)
	return time.Duration(ns)
}

// readMaxRetries reads a whole number. It goes through thousandths, as quantities do, so that "2.0"
// and "2e0" are 2, and 2.5 is a problem of its own.
func (d *reader) readMaxRetries() uint32 {
	if !d.expectKind('0', "maxRetries") {
		return 0
	}
	milli, ok := d.checkDecimal("maxRetries", d.readRaw(), 3, maxRetries)
	if ok && milli%1000 != 0 {
		d.addProblem("maxRetries must be a whole number")
	}
	return uint32(milli / 1000)
}

// readBackoff reads retryBackoff, a factor of at least 1. It is the one number that is kept as a
// float64: delays are rounded anyway.
func (d *reader) readBackoff() float64 {
	if !d.expectKind('0', "retryBackoff") {
		return 0
	}
	raw := d.readRaw()
	f, err := strconv.ParseFloat(raw, 64)
	if err != nil || f < 1 || f > maxBackoff {
		d.addProblem("retryBackoff must be at least 1 and at most " + strconv.Itoa(maxBackoff) + ", it is " + dag.Quote(raw))
		return 0
	}
	return f
}

// checkDecimal returns a number in units of 10^-places, rounded up. At most limit whole ones
// are allowed. Any other number, and text that is not one, is a problem that names what and quotes
// the text; then the result is 0 and false.
func (d *reader) checkDecimal(what, text string, places int, limit int64) (int64, bool) {
	n, v := parseDecimal(text, places, limit)
	switch {
	case d.syntax != nil:
		return 0, false
	case v == notNumber:
		d.addProblem(what + " must be a number, it is " + dag.Quote(text))
	case v == outOfRange:
		d.addProblem(what + " must be at least 0 and at most " + strconv.FormatInt(limit, 10) + ", it is " + dag.Quote(text))
	}
	return n, v == isNumber
}

// parseResult says how parseDecimal judged a text.
type parseResult uint8

const (
	isNumber parseResult = iota
	notNumber
	outOfRange
)

// parseDecimal reads a number of JSON's grammar exactly: in units of 10^-places, rounded up, from 0
// to limit whole ones (limit * 10^places must fit in an int64). It works on digits, because a
// float64 holds neither 0.1 nor a large number of nanoseconds exactly. Rounding up keeps a small
// request from becoming 0. Leading zeros, a bare point and an empty exponent are not numbers.
//
//	text    places 3              text   places 3, limit 10
//	1.5     1500                  10.0   10000
//	1e1     10000                 10.01  outOfRange
//	0.0001  1, rounded up         -0     0
//	01, .5, 1., 1e, +1  notNumber -1     outOfRange
func parseDecimal(text string, places int, limit int64) (int64, parseResult) {
	digits, negative := strings.CutPrefix(text, "-")
	digits, exponent, ok := cutExponent(digits)
	whole, fraction, point := strings.Cut(digits, ".")
	if !ok || !allDigits(whole) || len(whole) > 1 && whole[0] == '0' || point && !allDigits(fraction) {
		return 0, notNumber
	}
	for range places {
		limit *= 10
	}
	// The first left digits of all, read as one number, count whole units; any other digit that is
	// not 0 rounds up. A large exponent makes left larger than the number of digits: zeros are
	// appended.
	left := len(whole) + places + exponent
	n, rest := int64(0), false
	for i := range len(whole) + len(fraction) {
		c := byte(0)
		if i < len(whole) {
			c = whole[i] - '0'
		} else {
			c = fraction[i-len(whole)] - '0'
		}
		if i >= left {
			rest = rest || c != 0
			continue
		}
		if n > limit/10 {
			return 0, outOfRange
		}
		n = n*10 + int64(c)
	}
	for i := len(whole) + len(fraction); i < left && n > 0; i++ {
		if n > limit/10 {
			return 0, outOfRange
		}
		n *= 10
	}
	if rest {
		n++
	}
	if n > limit || negative && n > 0 {
		return 0, outOfRange
	}
	return n, isNumber
}

// cutExponent splits off the exponent of a number: "1.5e-3" is "1.5" and -3. A huge exponent saturates
// at 2^40: large enough for out of range, small enough to be added to without overflow. ok is false
// unless the exponent has digits, and only digits.
func cutExponent(text string) (digits string, exponent int, ok bool) {
	i := strings.IndexAny(text, "eE")
	if i < 0 {
		return text, 0, true
	}
	digits, text = text[:i], text[i+1:]
	negative := strings.HasPrefix(text, "-")
	if negative || strings.HasPrefix(text, "+") {
		text = text[1:]
	}
	for _, c := range []byte(text) {
		exponent = min(exponent*10+int(c-'0'), 1<<40)
	}
	if negative {
		exponent = -exponent
	}
	return digits, exponent, allDigits(text)
}

// allDigits tells whether text has digits only, at least one.
func allDigits(text string) bool {
	for _, c := range []byte(text) {
		if c < '0' || c > '9' {
			return false
		}
	}
	return text != ""
}
