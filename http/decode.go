package http

import (
	"encoding/base64"
	"encoding/binary"
	"strconv"
	"strings"

	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// pathParameter is a path parameter, unescaped exactly once: the router hands out the
// segment as the client wrote it. The string is valid while the request is.
func pathParameter(ctx *fasthttp.RequestCtx, name string) (string, error) {
	raw, _ := ctx.UserValue(name).(string)
	return unescape(raw)
}

// unescape decodes %XX. A plus sign is a plus sign, an escaped slash a slash.
func unescape(raw string) (string, error) {
	first := strings.IndexByte(raw, '%')
	if first < 0 {
		return raw, nil
	}
	out := append(make([]byte, 0, len(raw)), raw[:first]...)
	for i := first; i < len(raw); i++ {
		if raw[i] != '%' {
			out = append(out, raw[i])
			continue
		}
		if i+2 >= len(raw) {
			return "", invalid("bad escape in " + quoteInput(raw))
		}
		hi, lo := unhex(raw[i+1]), unhex(raw[i+2])
		if hi > 15 || lo > 15 {
			return "", invalid("bad escape in " + quoteInput(raw))
		}
		out = append(out, hi<<4|lo)
		i += 2
	}
	return string(out), nil
}

func unhex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 255
}

// runParameter is the run that the path names. What is no id names no run: 404.
func runParameter(ctx *fasthttp.RequestCtx) (messages.RunID, error) {
	text, err := pathParameter(ctx, "run")
	if err != nil {
		return 0, err
	}
	id, err := strconv.ParseUint(text, 10, 64)
	if err != nil || text[0] == '0' && len(text) > 1 {
		return 0, &messages.Error{Code: messages.NotFound, Text: "unknown run " + quoteInput(text)}
	}
	return messages.RunID(id), nil
}

// taskParameter is the run and the expanded task that the path names.
func taskParameter(ctx *fasthttp.RequestCtx) (messages.RunID, string, error) {
	run, err := runParameter(ctx)
	if err != nil {
		return 0, "", err
	}
	task, err := pathParameter(ctx, "task")
	return run, strings.Clone(task), err
}

func invalid(text string) *messages.Error {
	return &messages.Error{Code: messages.Invalid, Text: text}
}

// parseRunState is the run state of a word.
func parseRunState(word string) (dag.RunState, error) {
	for s := dag.RunQueued; s <= dag.RunKilled; s++ {
		if s.String() == word {
			return s, nil
		}
	}
	return 0, invalid("unknown state " + quoteInput(word) + ": a run's is QUEUED, RUNNING, PAUSED, COMPLETED, ERRORED or KILLED")
}

// parseTaskState is the task state of a word. GRANTED is QUEUED to users.
func parseTaskState(word string) (dag.TaskState, error) {
	for s := dag.TaskQueued; s < dag.NumTaskStates; s++ {
		if s.String() == word {
			return s, nil
		}
	}
	return 0, invalid("unknown state " + quoteInput(word) + ": a task's is QUEUED, RUNNING, RETRY, COMPLETED, ERRORED or KILLED")
}

// eachParameter walks the members of the query string, in their order, unescaped. It
// stops at the first error.
func eachParameter(ctx *fasthttp.RequestCtx, each func(name, value string) error) error {
	return eachQueryMember(string(ctx.URI().QueryString()), each)
}

func eachQueryMember(q string, each func(name, value string) error) error {
	for q != "" {
		var member string
		member, q, _ = strings.Cut(q, "&")
		if member == "" {
			continue
		}
		rawName, rawValue, _ := strings.Cut(strings.ReplaceAll(member, "+", " "), "=")
		name, err := unescape(rawName)
		if err != nil {
			return err
		}
		value, err := unescape(rawValue)
		if err != nil {
			return err
		}
		if err := each(name, value); err != nil {
			return err
		}
	}
	return nil
}

func unknownParameter(name string) error {
	return invalid("unknown query parameter " + quoteInput(name))
}

// parseSwitch is the value of a query parameter that is a switch: all=1, or just all.
func parseSwitch(name, value string) (bool, error) {
	switch value {
	case "", "1", "true":
		return true, nil
	case "0", "false":
		return false, nil
	}
	return false, invalid("query parameter " + name + ": " + quoteInput(value) + " is neither 1 nor 0")
}

// Pages.
const (
	defaultPageSize = 1000
	maxPageSize     = 10_000
)

func parseLimit(value string) (int, error) {
	n, err := strconv.Atoi(value)
	if err != nil || n < 1 || n > maxPageSize {
		return 0, invalid("query parameter limit: " + quoteInput(value) + " is no number from 1 to " + strconv.Itoa(maxPageSize))
	}
	return n, nil
}

// Cursors are opaque to clients: the kind of list, and where the next page begins.
const (
	runCursor  = 'r' // the last run of this page
	taskCursor = 't' // the first task of the next page
)

func formatCursor(kind byte, at uint64) string {
	return base64.RawURLEncoding.EncodeToString(binary.AppendUvarint([]byte{kind}, at))
}

func parseCursor(kind byte, text string) (uint64, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err == nil && len(b) > 1 && b[0] == kind {
		if at, n := binary.Uvarint(b[1:]); n == len(b)-1 {
			return at, nil
		}
	}
	return 0, invalid("query parameter cursor: " + quoteInput(text) + " is none that was handed out here")
}

// setNextPage tells the client where to go on: the same query with another cursor.
func setNextPage(ctx *fasthttp.RequestCtx, cursor string) {
	link := append([]byte{'<'}, ctx.URI().PathOriginal()...)
	sep := byte('?')
	for member := range strings.SplitSeq(string(ctx.URI().QueryString()), "&") {
		name, _, _ := strings.Cut(member, "=")
		if name, err := unescape(name); member == "" || err != nil || name == "cursor" {
			continue
		}
		link = append(link, sep)
		link = append(link, strings.NewReplacer("<", "%3C", ">", "%3E", `"`, "%22").Replace(member)...)
		sep = '&'
	}
	link = append(link, sep)
	link = append(link, "cursor="...)
	link = append(link, cursor...)
	link = append(link, `>; rel="next"`...)
	ctx.Response.Header.SetBytesV("Link", link)
	ctx.Response.Header.Set("X-Next-Cursor", cursor)
}
