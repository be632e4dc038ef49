package http

import (
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// What is rendered here is appended by hand: documents have millions of tasks,
// and their members stand in a fixed order.

const jsonType = "application/json"

// appendString appends s as a JSON string. What is not UTF-8 becomes U+FFFD.
func appendString[T string | []byte](dst []byte, s T) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	from := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			if c >= 0x20 && c != '"' && c != '\\' {
				i++
				continue
			}
			dst = append(dst, s[from:i]...)
			switch c {
			case '"', '\\':
				dst = append(dst, '\\', c)
			case '\n':
				dst = append(dst, '\\', 'n')
			case '\r':
				dst = append(dst, '\\', 'r')
			case '\t':
				dst = append(dst, '\\', 't')
			default:
				dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			}
			i++
			from = i
			continue
		}
		r, n := utf8.DecodeRuneInString(string(s[i:min(i+utf8.UTFMax, len(s))]))
		if r == utf8.RuneError && n == 1 {
			dst = append(dst, s[from:i]...)
			dst = append(dst, "\uFFFD"...)
			from = i + 1
		}
		i += n
	}
	dst = append(dst, s[from:]...)
	return append(dst, '"')
}

// appendNanos appends ns since the epoch the way clients know it: as a string.
func appendNanos(dst []byte, ns int64) []byte {
	dst = append(dst, '"')
	dst = strconv.AppendInt(dst, ns, 10)
	return append(dst, '"')
}

// appendSeconds appends a duration as a number of seconds, in its shortest form.
func appendSeconds(dst []byte, d time.Duration) []byte {
	return strconv.AppendFloat(dst, d.Seconds(), 'f', -1, 64)
}

func appendStrings(dst []byte, list []string) []byte {
	dst = append(dst, '[')
	for i, s := range list {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendString(dst, s)
	}
	return append(dst, ']')
}

// appendRunHead appends the members that a run's document and its summary begin with.
func appendRunHead(dst []byte, s *messages.Summary) []byte {
	dst = append(dst, `{"runID":`...)
	dst = strconv.AppendUint(dst, uint64(s.ID), 10)
	dst = append(dst, `,"tag":`...)
	dst = appendString(dst, s.Tag)
	if len(s.Tags) > 0 {
		dst = append(dst, `,"tags":{`...)
		for i, l := range s.Tags {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendString(dst, l.Name)
			dst = append(dst, ':')
			dst = appendString(dst, l.Value)
		}
		dst = append(dst, '}')
	}
	return dst
}

// appendSummary appends an entry of the list of runs, without its closing brace.
func appendSummary(dst []byte, s *messages.Summary) []byte {
	if s.Damage != "" { // nothing else is known of it
		dst = append(dst, `{"runID":`...)
		dst = strconv.AppendUint(dst, uint64(s.ID), 10)
		dst = append(dst, `,"error":`...)
		return appendString(dst, s.Damage)
	}
	dst = appendRunHead(dst, s)
	dst = append(dst, `,"state":"`...)
	dst = append(dst, s.State.String()...)
	dst = append(dst, `","startTime":`...)
	dst = appendNanos(dst, s.Start)
	dst = append(dst, `,"lastUpdate":`...)
	dst = appendNanos(dst, s.LastUpdate)
	dst = append(dst, `,"taskCounts":`...)
	return appendCounts(dst, &s.Counts)
}

// appendCounts appends the numbers of tasks by the states that users see, sorted
// by word, without those that are zero. A task that was granted a slot is QUEUED.
func appendCounts(dst []byte, c *messages.Counts) []byte {
	queued := c[dag.TaskQueued] + c[dag.TaskGranted]
	sep := byte('{')
	for _, e := range [...]struct {
		state dag.TaskState
		n     uint32
	}{
		{dag.TaskCompleted, c[dag.TaskCompleted]}, {dag.TaskErrored, c[dag.TaskErrored]}, {dag.TaskKilled, c[dag.TaskKilled]},
		{dag.TaskQueued, queued}, {dag.TaskRetry, c[dag.TaskRetry]}, {dag.TaskRunning, c[dag.TaskRunning]},
	} {
		if e.n == 0 {
			continue
		}
		dst = append(dst, sep, '"')
		dst = append(dst, e.state.String()...)
		dst = append(dst, '"', ':')
		dst = strconv.AppendUint(dst, uint64(e.n), 10)
		sep = ','
	}
	if sep == '{' {
		dst = append(dst, '{')
	}
	return append(dst, '}')
}

// appendChanges appends dagStateChanges.
func appendChanges(dst []byte, changes []dag.StateChange) []byte {
	dst = append(dst, '[')
	for i, c := range changes {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, `{"time":`...)
		dst = appendNanos(dst, c.At)
		dst = append(dst, `,"state":"`...)
		dst = append(dst, c.State.String()...)
		dst = append(dst, '"', '}')
	}
	return append(dst, ']')
}

// answerState answers {"state": word} without allocating.
func answerState(ctx *fasthttp.RequestCtx, word string) {
	ctx.Response.Header.SetContentType(jsonType)
	ctx.Response.AppendBodyString(`{"state":"`)
	ctx.Response.AppendBodyString(word)
	ctx.Response.AppendBodyString(`"}`)
}

// answerRun answers {"runID": n}, and the task's name when there is one.
func answerRun(ctx *fasthttp.RequestCtx, run messages.RunID, task string) {
	dst := append(make([]byte, 0, 64), `{"runID":`...)
	dst = strconv.AppendUint(dst, uint64(run), 10)
	if task != "" {
		dst = append(dst, `,"task":`...)
		dst = appendString(dst, task)
	}
	answerJSON(ctx, append(dst, '}'))
}

// answerJSON answers with JSON, which it keeps.
func answerJSON(ctx *fasthttp.RequestCtx, body []byte) {
	ctx.Response.Header.SetContentType(jsonType)
	ctx.Response.SetBodyRaw(body)
}
