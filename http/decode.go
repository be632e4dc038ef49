package http

import (
	"encoding/base64"
	"encoding/binary"
	"net/url"
	"strconv"
	"strings"

	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// The parts of a request that select something: path, query, cursor. Errors are *messages.Error, and
// quote what the client sent.

// pathParameter returns a path parameter, unescaped exactly once: the router passes the segment as
// the client wrote it. The string is valid as long as the request.
func pathParameter(ctx *fasthttp.RequestCtx, name string) (string, error) {
	raw, _ := ctx.UserValue(name).(string)
	return unescape(raw)
}

// unescape decodes %XX. A plus sign stays a plus sign, and an escaped slash becomes a slash.
func unescape(raw string) (string, error) {
	text, err := url.PathUnescape(raw)
	if err != nil {
		return "", invalid("invalid escape in " + quoteInput(raw))
	}
	return text, nil
}

// runParameter returns the run in the path. Text that is not a run ID gives 404: it cannot name a run.
// Leading zeros are refused, so that each run has one path.
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

// taskParameter returns the run and the expanded task in the path. The name is a copy, because the
// engine may keep it.
func taskParameter(ctx *fasthttp.RequestCtx) (messages.RunID, string, error) {
	run, err := runParameter(ctx)
	if err != nil {
		return 0, "", err
	}
	task, err := pathParameter(ctx, "task")
	return run, strings.Clone(task), err
}

// invalid returns an error that is answered with 400. text names the part of the request.
func invalid(text string) *messages.Error {
	return &messages.Error{Code: messages.Invalid, Text: text}
}

// parseRunState returns the run state with this name. Names are in capitals: "queued" is an error.
func parseRunState(word string) (dag.RunState, error) {
	for s := dag.RunQueued; s <= dag.RunKilled; s++ {
		if s.String() == word {
			return s, nil
		}
	}
	return 0, invalid("unknown state " + quoteInput(word) + ": a run is QUEUED, RUNNING, PAUSED, COMPLETED, ERRORED or KILLED")
}

// parseTaskState returns the task state with this name. Users see TaskGranted as QUEUED.
func parseTaskState(word string) (dag.TaskState, error) {
	for s := dag.TaskQueued; s < dag.NumTaskStates; s++ {
		if s.String() == word {
			return s, nil
		}
	}
	return 0, invalid("unknown state " + quoteInput(word) + ": a task is QUEUED, RUNNING, RETRY, COMPLETED, ERRORED or KILLED")
}

// eachParameter yields the parameters of the query string, unescaped, in their order. It stops at
// the first error.
func eachParameter(ctx *fasthttp.RequestCtx, each func(name, value string) error) error {
	return eachQueryMember(string(ctx.URI().QueryString()), each)
}

// eachQueryMember yields the members of a query: "a=1&b" has a with 1, and b with "". Empty members are
// skipped. A plus sign is a blank, as in forms.
func eachQueryMember(q string, each func(name, value string) error) error {
	for q != "" {
		var member string
		member, q, _ = strings.Cut(q, "&")
		if member == "" {
			continue
		}
		rawName, rawValue, _ := strings.Cut(member, "=")
		name, err := url.QueryUnescape(rawName)
		if err != nil {
			return invalid("invalid escape in " + quoteInput(rawName))
		}
		value, err := url.QueryUnescape(rawValue)
		if err != nil {
			return invalid("invalid escape in " + quoteInput(rawValue))
		}
		if err := each(name, value); err != nil {
			return err
		}
	}
	return nil
}

// unknownParameter is the error of routes that know all of their parameters.
func unknownParameter(name string) error {
	return invalid("unknown query parameter " + quoteInput(name))
}

// parseSwitch returns the value of a query parameter that is a switch: all=1, or just all.
func parseSwitch(name, value string) (bool, error) {
	switch value {
	case "", "1", "true":
		return true, nil
	case "0", "false":
		return false, nil
	}
	return false, invalid("query parameter " + name + ": " + quoteInput(value) + " must be 1 or 0")
}

// Sizes of pages, in entries.
const (
	defaultPageSize = 1000
	maxPageSize     = 10_000
)

// parseLimit returns the size of a page.
func parseLimit(value string) (int, error) {
	n, err := strconv.Atoi(value)
	if err != nil || n < 1 || n > maxPageSize {
		return 0, invalid("query parameter limit: " + quoteInput(value) + " must be a number from 1 to " + strconv.Itoa(maxPageSize))
	}
	return n, nil
}

// Kinds of cursors. A cursor is opaque to clients: it holds the kind of list, and where the next
// page begins.
const (
	runCursor  = 'r' // the last run of this page
	taskCursor = 't' // the first task of the next page
)

// formatCursor returns a cursor: the kind, and the position as a varint, in base64 for URLs. The first
// task of a run is "dAA". Cursors hold positions, so they stay valid over restarts and deletions.
func formatCursor(kind byte, at uint64) string {
	return base64.RawURLEncoding.EncodeToString(binary.AppendUvarint([]byte{kind}, at))
}

// parseCursor returns the position of a cursor. It is strict: one position has one cursor, and a cursor
// of another kind of list is an error.
func parseCursor(kind byte, text string) (uint64, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err == nil && len(b) > 1 && b[0] == kind {
		if at, n := binary.Uvarint(b[1:]); n == len(b)-1 {
			return at, nil
		}
	}
	return 0, invalid("query parameter cursor: " + quoteInput(text) + " is not a cursor of this list")
}

// setNextPage tells the client where to go on: the same query with another cursor, in Link (RFC 8288)
// and X-Next-Cursor. The other members are repeated as the client wrote them, except for characters
// that would end the link.
func setNextPage(ctx *fasthttp.RequestCtx, cursor string) {
	link := append([]byte{'<'}, ctx.URI().PathOriginal()...)
	sep := byte('?')
	for member := range strings.SplitSeq(string(ctx.URI().QueryString()), "&") {
		name, _, _ := strings.Cut(member, "=")
		if name, err := url.QueryUnescape(name); member == "" || err != nil || name == "cursor" {
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
