package http

import (
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// JSON is appended by hand here: documents have millions of tasks, and the order of members is part of
// the API. Every function appends to dst and returns the longer slice, like append. Members begin with
// their comma where another member always comes before them. TestReference compares the results with
// docs/rest.md.

const jsonType = "application/json"

// appendString appends s as a JSON string. Each byte that is not UTF-8 becomes U+FFFD.
func appendString[T string | []byte](dst []byte, s T) []byte {
	dst, _ = jsontext.AppendQuote(dst, s) // the error only says that bytes were replaced
	return dst
}

// appendNanos appends ns since the epoch as a string, which is the form of the API: a number of 19
// digits would lose its last ones in clients that read numbers as float64.
func appendNanos(dst []byte, ns int64) []byte {
	dst = append(dst, '"')
	dst = strconv.AppendInt(dst, ns, 10)
	return append(dst, '"')
}

// appendSeconds appends a duration as a number of seconds, in its shortest form: 1.5, or 0.
func appendSeconds(dst []byte, d time.Duration) []byte {
	return strconv.AppendFloat(dst, d.Seconds(), 'f', -1, 64)
}

// appendStrings appends a list of strings; nil is an empty list.
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

// appendRunHead appends the members at the start of a run's document and of its summary.
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

// appendSummary appends an entry of the list of runs, without its closing brace: callers add members.
// An entry with damage has its ID and error alone.
func appendSummary(dst []byte, s *messages.Summary) []byte {
	if s.Damage != "" { // the other members are unknown
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

// appendCounts appends the numbers of tasks by the states that users see, sorted by name, without those
// that are zero: {"COMPLETED":11,"RUNNING":14}. A task that was granted a slot is QUEUED.
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

// appendChanges appends dagStateChanges, oldest first: [{"time":"1645112245996647771","state":"QUEUED"}].
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

// answerState answers {"state":word} without allocating. word is the name of a state, and needs no
// escapes.
func answerState(ctx *fasthttp.RequestCtx, word string) {
	ctx.Response.Header.SetContentType(jsonType)
	ctx.Response.AppendBodyString(`{"state":"`)
	ctx.Response.AppendBodyString(word)
	ctx.Response.AppendBodyString(`"}`)
}

// answerRun answers {"runID": n}, and the task's name if there is one.
func answerRun(ctx *fasthttp.RequestCtx, run messages.RunID, task string) {
	dst := append(make([]byte, 0, 64), `{"runID":`...)
	dst = strconv.AppendUint(dst, uint64(run), 10)
	if task != "" {
		dst = append(dst, `,"task":`...)
		dst = appendString(dst, task)
	}
	answerJSON(ctx, append(dst, '}'))
}

// answerJSON answers 200 with JSON, unless another status is set. It keeps body until it is written.
func answerJSON(ctx *fasthttp.RequestCtx, body []byte) {
	ctx.Response.Header.SetContentType(jsonType)
	ctx.Response.SetBodyRaw(body)
}
