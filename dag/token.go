package dag

import (
	"strings"
	"unicode"
)

// nextToken finds the next {{NAME}} in s from an offset on, of any NAME without
// braces: s[start:end], or ok false.
func nextToken(s string, from int) (start, end int, ok bool) {
	for {
		closing := strings.Index(s[from:], "}}")
		if closing < 0 {
			return 0, 0, false
		}
		inside := s[from : from+closing]
		opening := strings.LastIndexByte(inside, '{')
		if opening > 0 && inside[opening-1] == '{' && strings.IndexByte(inside[opening:], '}') < 0 {
			return from + opening - 1, from + closing + 2, true
		}
		from += closing + 2
	}
}

// looksLikeName tells a token with a mistake from text that happens to have braces.
func looksLikeName(s string) bool {
	for i, r := range s {
		inner := r == '-' || r == '.'
		if r != '_' && !unicode.IsLetter(r) && !unicode.IsDigit(r) && !(inner && i > 0) {
			return false
		}
	}
	return s != ""
}

// token is one {{NAME}} of a job.
type token struct {
	field      int32 // which of the job's texts
	start, end int32 // its place there
	param      int32 // index into Plan.Parameters
	stride     uint32
	size       uint32 // of a list: the value is local / stride % size; 1 for a string
}

// A job's texts, those that may have tokens, are numbered: the arguments of
// command, commandString, the environment, workDir.

func (j *Job) texts() int { return len(j.Command) + len(j.Environment) + 2 }

func (j *Job) text(field int) string {
	if field < len(j.Command) {
		return j.Command[field]
	}
	field -= len(j.Command)
	if field == 0 {
		return j.CommandString
	}
	field--
	if field < len(j.Environment) {
		return j.Environment[field]
	}
	return j.WorkDir
}

// findParameter is the index of a parameter, or -1.
func findParameter(parameters []Parameter, name string) int {
	low, high := 0, len(parameters)
	for low < high {
		middle := int(uint(low+high) / 2)
		if parameters[middle].Name < name {
			low = middle + 1
		} else {
			high = middle
		}
	}
	if low < len(parameters) && parameters[low].Name == name {
		return low
	}
	return -1
}
