package http

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/messages"
)

// A list of runs of several partitions. Each partition gives a page, with the position at which it goes on.
// Runs up to the nearest of these positions are known from all partitions. They are the page, cut to its
// limit:
//
//	partition 0    0  2  4 | goes on after 4
//	partition 1    1  3  5  7 | goes on after 7
//	page           0  1  2  3  4       after 4 there may be more of partition 0
//
// Rows are passed on as the leaders have rendered them. All partitions together have the memory of one page
// of a single server: each of P may give maxPageBytes / P, in a page that ends there.

// listedRun is a row of a list, as JSON.
type listedRun struct {
	id  messages.RunID
	row []byte
}

// mergedList renders the runs of all partitions. Only the request's goroutine calls it.
type mergedList struct {
	*scattered
	query    messages.ListQuery // of the rest of the list
	rawQuery string             // of the client, without limit and cursor
	begun    bool               // the bracket is open
	hasRows  bool
}

// listRuns is GET /v1/dagruns over all partitions.
func (f *forwarder) listRuns(ctx *fasthttp.RequestCtx) error {
	query, err := listQuery(ctx)
	if err != nil {
		return err
	}
	q, err := f.newScattered(ctx)
	if err != nil {
		return err
	}
	l := &mergedList{scattered: q, query: query, rawQuery: withoutPosition(string(ctx.URI().QueryString()))}
	if query.Limit == 0 {
		return f.s.send(ctx, jsonType, l)
	}
	rows, more, err := l.page(query.Limit)
	if err != nil {
		return err
	}
	if more {
		setNextPage(ctx, formatCursor(runCursor, uint64(l.query.After)))
	}
	answerJSON(ctx, append(l.appendRows([]byte{'['}, rows), ']'))
	return nil
}

// next is the list without a limit: a page after the other.
func (l *mergedList) next(dst []byte) ([]byte, bool, error) {
	if !l.begun {
		dst = append(dst, '[')
	}
	rows, more, err := l.page(defaultPageSize)
	if err != nil {
		return dst, true, err
	}
	dst = l.appendRows(dst, rows)
	if !more {
		dst = append(dst, ']')
	}
	l.begun = true
	return dst, more, nil
}

// appendRows appends rows, separated by commas.
func (l *mergedList) appendRows(dst []byte, rows []listedRun) []byte {
	for _, r := range rows {
		if l.hasRows {
			dst = append(dst, ',')
		}
		l.hasRows = true
		dst = append(dst, r.row...)
	}
	return dst
}

// page returns the next rows of all partitions, at most limit, and whether there are more. It leaves the
// position of the next page in query.After. A position is a run ID, and so has a meaning in every
// partition, also in those that do not have that run.
//
// Each partition is asked for limit rows, since all of the page may come from one. A partition whose page
// ends early, because few of the rows that it has read match or because its bytes are used up, ends the
// merged page there: it may be empty, as a page of a single node may.
func (l *mergedList) page(limit int) (rows []listedRun, more bool, err error) {
	parts := make([]listPart, l.f.cluster.Partitions())
	err = l.readEach(func(ctx context.Context, p uint64) error { return l.readPart(ctx, p, limit, &parts[p]) })
	if err != nil {
		return nil, false, err
	}
	order := func(a, b messages.RunID) int {
		if l.query.Desc {
			a, b = b, a
		}
		switch {
		case a < b:
			return -1
		case a > b:
			return 1
		}
		return 0
	}
	var end messages.RunID // the rows up to it are known from all partitions, if more
	for _, p := range parts {
		rows = append(rows, p.rows...)
		if p.more && (!more || order(p.after, end) < 0) {
			more, end = true, p.after
		}
	}
	slices.SortFunc(rows, func(a, b listedRun) int { return order(a.id, b.id) })
	if more {
		rows = slices.DeleteFunc(rows, func(r listedRun) bool { return order(r.id, end) > 0 })
	}
	if len(rows) > limit {
		rows, more = rows[:limit], true
		end = rows[limit-1].id
	}
	if more {
		l.query.After, l.query.HasAfter = end, true
	}
	return rows, more, nil
}

// listPart is the page of one partition.
type listPart struct {
	rows  []listedRun
	more  bool
	after messages.RunID // where the partition goes on, if more
}

// readPart reads the page of a partition.
func (l *mergedList) readPart(ctx context.Context, partition uint64, limit int, out *listPart) error {
	query := l.rawQuery + "limit=" + strconv.Itoa(limit)
	if l.query.HasAfter {
		query += "&cursor=" + formatCursor(runCursor, uint64(l.query.After))
	}
	pageBytes := partPageBytes(l.f.cluster.Partitions())
	return l.ask(ctx, partition, &part{method: fasthttp.MethodGet, path: batchPath, query: query, isRepeatable: true, limit: int64(pageBytes) + maxRowBytes,
		header: http.Header{pageBytesHeader: {strconv.Itoa(pageBytes)}}},
		func(ctx context.Context) (err error) {
			q := l.query
			q.Limit = limit
			here := &runList{ctx: ctx, engine: l.f.s.engine, query: q, pageBytes: pageBytes}
			if out.more, err = here.renderPage(); err != nil {
				return err
			}
			out.after = here.query.After
			out.rows, err = splitRows(append(here.pageBuffer, ']'))
			return err
		}, func(answer *partAnswer) (err error) {
			if cursor := answer.header.Get("X-Next-Cursor"); cursor != "" {
				at, err := parseCursor(runCursor, cursor)
				if err != nil {
					return err
				}
				out.more, out.after = true, messages.RunID(at)
			}
			out.rows, err = splitRows(answer.body)
			return err
		})
}

// maxRowBytes bounds the row of a run, in bytes. Its tags have at most 81 KiB (package specjson), and the
// escapes of JSON make them six times as long at most.
const maxRowBytes = 1 << 20

// partPageBytes is the length from which the page of one of several partitions ends. A page has at least
// one row, so the list goes on also where this is less than a row.
func partPageBytes(partitions uint64) int { return int(max(1, maxPageBytes/partitions)) }

// forwardedPageBytes returns the length from which the page of a forwarded list ends. Only the part of a
// merged list has one of its own.
func forwardedPageBytes(h *fasthttp.RequestHeader) (int, error) {
	text := h.Peek(pageBytesHeader)
	if len(text) == 0 {
		return maxPageBytes, nil
	}
	n, err := strconv.Atoi(string(text))
	if err != nil || n < 1 || n > maxPageBytes {
		return 0, &refusal{fasthttp.StatusBadRequest, "invalid " + pageBytesHeader + " " + quoteInput(text) + ": must be a number from 1 to " + strconv.Itoa(maxPageBytes)}
	}
	return n, nil
}

// withoutPosition returns the members of a query that select runs, each followed by "&".
func withoutPosition(query string) string {
	var out strings.Builder
	for member := range strings.SplitSeq(query, "&") {
		name, _, _ := strings.Cut(member, "=")
		if name, err := url.QueryUnescape(name); member == "" || err != nil || name == "limit" || name == "cursor" {
			continue
		}
		out.WriteString(member + "&")
	}
	return out.String()
}

// splitRows takes a page apart: an array of objects that begin with the run's ID. The rows are parts of
// page.
func splitRows(page []byte) ([]listedRun, error) {
	d := jsontext.NewDecoder(bytes.NewReader(page))
	if _, err := d.ReadToken(); err != nil {
		return nil, fmt.Errorf("page of a list: %w", err)
	}
	var rows []listedRun
	for d.PeekKind() == '{' {
		row, err := d.ReadValue()
		if err != nil {
			return nil, fmt.Errorf("page of a list: %w", err)
		}
		digits, _ := bytes.CutPrefix(row, []byte(`{"runID":`))
		if i := bytes.IndexAny(digits, ",}"); i >= 0 {
			digits = digits[:i]
		}
		id, err := strconv.ParseUint(string(digits), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("page of a list: %w", err)
		}
		end := int(d.InputOffset()) // row itself is memory of the decoder
		rows = append(rows, listedRun{messages.RunID(id), page[end-len(row) : end : end]})
	}
	return rows, nil
}
