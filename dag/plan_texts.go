package dag

import "strings"

// checkTexts finds texts of a job that are wrong for some value of a parameter: a name
// of an environment variable that would have "=" or be empty, a program that would have
// no name. It looks at each token once, and at the values of each parameter once; never
// at a task. B.scratch holds the job's tokens.
func (b *planner) checkTexts(j *Job, place func(field int) (pointer string, report bool)) {
	for rest := b.scratch; len(rest) > 0; {
		field := rest[0].field
		n := 1
		for n < len(rest) && rest[n].field == field {
			n++
		}
		tokens := rest[:n]
		rest = rest[n:]
		mistake := ""
		switch at := int(field); {
		case at == 0 && len(j.Command) > 0:
			if b.mayBeEmpty(j.text(at), tokens) {
				mistake = "the program of command is empty when " + b.emptyValues(tokens)
			}
		case at > len(j.Command) && at < j.texts()-1:
			mistake = b.variableName(j.text(at), tokens)
		}
		if mistake == "" {
			continue
		}
		if pointer, report := place(int(field)); report {
			b.problem(pointer, mistake)
		}
	}
}

// variableName says what is wrong with the name of an environment variable, K=V, for
// some value of its tokens.
func (b *planner) variableName(entry string, tokens []token) string {
	end := nameEnd(entry, tokens)
	inName := 0
	for inName < len(tokens) && int(tokens[inName].end) <= end {
		inName++
	}
	tokens = tokens[:inName]
	for _, k := range tokens {
		if trait := &b.valueTraits()[k.param]; trait.hasAssigned {
			return "the name of an environment variable has \"=\" when " + Quote(b.plan.Parameters[k.param].Name) + " is " + Quote(trait.assigned)
		}
	}
	if b.mayBeEmpty(entry[:end], tokens) {
		return "the name of an environment variable is empty when " + b.emptyValues(tokens)
	}
	return ""
}

// nameEnd is where the name of K=V ends: at its first "=" that is not in a token.
func nameEnd(entry string, tokens []token) int {
	at := 0
	for _, k := range tokens {
		if i := strings.IndexByte(entry[at:int(k.start)], '='); i >= 0 {
			return at + i
		}
		at = int(k.end)
	}
	if i := strings.IndexByte(entry[at:], '='); i >= 0 {
		return at + i
	}
	return len(entry)
}

// mayBeEmpty tells whether a text is empty for some values of its tokens, of which
// there are some.
func (b *planner) mayBeEmpty(text string, tokens []token) bool {
	literal := len(text)
	for _, k := range tokens {
		if !b.valueTraits()[k.param].empty {
			return false
		}
		literal -= int(k.end - k.start)
	}
	return literal == 0 && len(tokens) > 0
}

// emptyValues names the parameters of tokens whose values are empty.
func (b *planner) emptyValues(tokens []token) string {
	text := Quote(b.plan.Parameters[tokens[0].param].Name)
	if len(tokens) > 1 {
		return text + " and others are empty"
	}
	return text + " is empty"
}

// valueTrait is what matters of the values of a parameter.
type valueTrait struct {
	empty       bool   // one is empty
	hasAssigned bool   // one has "="
	assigned    string // the first of those
}

// valueTraits are those of all parameters, made once.
func (b *planner) valueTraits() []valueTrait {
	if b.traits == nil {
		b.traits = make([]valueTrait, len(b.plan.Parameters))
		for i, p := range b.plan.Parameters {
			trait := &b.traits[i]
			for _, v := range p.Values {
				trait.empty = trait.empty || v == ""
				if !trait.hasAssigned && strings.IndexByte(v, '=') >= 0 {
					trait.hasAssigned, trait.assigned = true, v
				}
			}
		}
	}
	return b.traits
}
