package dag

import "strconv"

// Error is one line: the first problem, and how many more there are.
func (p Problems) Error() string {
	if len(p) == 0 {
		return "no problem"
	}
	text := p[0].Message
	if p[0].Pointer != "" {
		text = p[0].Pointer + ": " + text
	}
	if len(p) > 1 {
		text += " (and " + strconv.Itoa(len(p)-1) + " more)"
	}
	return text
}
