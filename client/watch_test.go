package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/testenv"
)

// tells sends a stream of events.
func tells(blocks ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, strings.Join(blocks, "\n\n")+"\n\n")
	}
}

func TestEvents(t *testing.T) {
	long := strings.Repeat("x", 200<<10)
	f, c := newFake(t,
		tells("id: 4\nevent: summary\ndata: {\"runID\":1,\"state\":\"RUNNING\"}", ": nothing new",
			"event: tasks\ndata: [{\"time\":\"7\",\"task\":\"a\",\"state\":\"RETRY\",\"attempt\":1,\"rc\":3},{\"time\":\"8\",\"task\":\""+long+"\",\"state\":\"RUNNING\",\"attempt\":1}]",
			"id: 5", "event: unheard\ndata: 1"),
		drops, refuses(503, "starting"),
		tells("event: gap\ndata: {\"missed\":2}", "event: state\ndata: {\"time\":\"9\",\"state\":\"COMPLETED\"}",
			"id: 9\nevent: summary\ndata: {\"runID\":1,\"state\":\"COMPLETED\"}", "event: state\ndata: {}"))
	var got []string
	for e, err := range c.Events(context.Background(), 1, EventOptions{After: "3", Summaries: true}) {
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case e.Summary != nil:
			got = append(got, e.ID+" "+e.Summary.State)
		case e.State != nil:
			got = append(got, e.ID+" -> "+e.State.State)
		case e.Missed > 0:
			got = append(got, fmt.Sprint(e.ID, " missed ", e.Missed))
		default:
			got = append(got, fmt.Sprint(e.ID, " ", len(e.Tasks), " ", e.Tasks[0].Task, *e.Tasks[0].RC, e.Tasks[1].Task == long && e.Tasks[1].RC == nil))
		}
	}
	if want := []string{"4 RUNNING", "4 2 a3 true", "5 missed 2", "5 -> COMPLETED", "9 COMPLETED"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	var asked []string
	for _, r := range f.seen() {
		asked = append(asked, r.uri+" "+r.header.Get("Last-Event-ID"))
	}
	const path = "/v1/dagrun/1/events?tasks=0 "
	if want := []string{path + "3", path + "5", path + "5", path + "5"}; !slices.Equal(asked, want) {
		t.Errorf("asked %q, want %q", asked, want)
	}
}

func TestRunEvents(t *testing.T) {
	run := "id: 7\nevent: run\ndata: {\"runID\":1,\"state\":\"COMPLETED\"}"
	f, c := newFake(t, tells(run), tells(run))
	tag, n := "x", 0
	for e, err := range c.RunEvents(context.Background(), EventOptions{Tag: &tag, Tags: map[string]string{"k": "v"}}) {
		if err != nil || e.Summary.State != Completed {
			t.Fatal(e, err)
		}
		if n++; n == 2 { // sent again: only the reader ends it
			break
		}
	}
	if uri := f.seen()[1].uri; uri != "/v1/events?tag=x&tags.k=v" || f.seen()[1].header.Get("Last-Event-ID") != "7" {
		t.Errorf("asked %s", uri)
	}
}

func TestEventsEnd(t *testing.T) {
	last := func(c *Client, ctx context.Context, o EventOptions) (err error) {
		for _, err = range c.Events(ctx, 1, o) {
		}
		return err
	}
	for name, tc := range map[string]struct {
		answer http.HandlerFunc
		want   error
	}{
		"nothing is left": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }, nil},
		"unknown run":     {refuses(404, "unknown run 1"), ErrNotFound},
		"away":            {drops, ErrUnreachable},
	} {
		_, c := newFake(t, tc.answer)
		if err := last(c, context.Background(), EventOptions{Outage: -1}); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, c := newFake(t, tells("event: summary\ndata: ["))
	if err := last(c, context.Background(), EventOptions{}); err == nil || !strings.Contains(err.Error(), "unexpected form") {
		t.Error(err)
	}
	tired := errors.New("tired")
	ctx, cancel := context.WithTimeoutCause(context.Background(), 10*time.Millisecond, tired)
	defer cancel()
	_, c = newFake(t, tells("id: 1"))
	if err := last(c, ctx, EventOptions{}); !errors.Is(err, tired) {
		t.Error(err)
	}
}

// TestIdleEventsSurviveARestart: Outage counts from the end of a stream, and not from its last event. A
// server may be away for a moment after hours without events.
func TestIdleEventsSurviveARestart(t *testing.T) {
	testenv.WithGrowingTime(t, 200*time.Millisecond, func(outage time.Duration) error { return idleEvents(t, outage) })
}

// idleEvents returns an error when the client gives the server up. A busy machine may be as long away.
func idleEvents(t *testing.T, outage time.Duration) error {
	idle := func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "id: 4\nevent: summary\ndata: {\"runID\":1,\"state\":\"RUNNING\"}\n\n")
		w.(http.Flusher).Flush()
		timer := time.NewTimer(2 * outage)
		defer timer.Stop()
		select { // without events, for longer than the outage
		case <-timer.C:
		case <-r.Context().Done():
		}
	}
	f, c := newFake(t, idle, refuses(503, "starting"), tells("id: 9\nevent: summary\ndata: {\"runID\":1,\"state\":\"COMPLETED\"}"))
	var got []string
	for e, err := range c.Events(context.Background(), 1, EventOptions{Outage: outage}) {
		if err != nil {
			return err
		}
		got = append(got, e.ID+" "+e.Summary.State)
	}
	if want := []string{"4 RUNNING", "9 COMPLETED"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if n := len(f.seen()); n != 3 {
		t.Errorf("%d requests", n)
	}
	return nil
}

// TestEventsGiveUp: a server that accepts connections and breaks them is away, too.
func TestEventsGiveUp(t *testing.T) {
	_, c := newFake(t, cuts(""))
	var last error
	for _, err := range c.Events(context.Background(), 1, EventOptions{Outage: 50 * time.Millisecond}) {
		last = err
	}
	if !errors.Is(last, ErrUnreachable) {
		t.Error(last)
	}
}

func TestLog(t *testing.T) {
	f, c := newFake(t, says(200, "a\x00\xffb"))
	for _, tc := range []struct {
		o    LogOptions
		want string
	}{
		{LogOptions{}, "/v1/dagrun/1/task/t%20x/log"},
		{LogOptions{Attempt: 2, Stream: Stderr, Follow: true, Offset: 9}, "/v1/dagrun/1/task/t%20x/log?attempt=2&follow=1&offset=9&stream=stderr"},
	} {
		log, err := c.Log(context.Background(), 1, "t x", tc.o)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(log)
		if err != nil || string(text) != "a\x00\xffb" || log.Close() != nil {
			t.Errorf("got %q, %v", text, err)
		}
		if seen := f.seen(); seen[len(seen)-1].uri != tc.want {
			t.Errorf("asked %s, want %s", seen[len(seen)-1].uri, tc.want)
		}
	}
	_, c = newFake(t, refuses(404, "no such task"))
	if _, err := c.Log(context.Background(), 1, "t", LogOptions{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

// TestFollow: output arrives before the end, and the end is distinguished from
// a server that went away.
func TestFollow(t *testing.T) {
	more, read := make(chan string), make(chan struct{})
	_, c := newFake(t, func(w http.ResponseWriter, r *http.Request) {
		for text := range more {
			_, _ = io.WriteString(w, text)
			w.(http.Flusher).Flush()
		}
		<-read
		panic(http.ErrAbortHandler) // the connection breaks
	})
	log, err := func() (io.ReadCloser, error) {
		go func() { more <- "one\n" }()
		return c.Log(context.Background(), 1, "t", LogOptions{Follow: true})
	}()
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	buf := make([]byte, 4)
	if _, err := io.ReadFull(log, buf); err != nil || string(buf) != "one\n" {
		t.Fatalf("got %q, %v", buf, err)
	}
	go func() { more <- "two\n"; close(more) }()
	if _, err := io.ReadFull(log, buf); err != nil || string(buf) != "two\n" {
		t.Fatalf("got %q, %v", buf, err)
	}
	close(read)
	if _, err := log.Read(buf); !errors.Is(err, ErrUnreachable) {
		t.Errorf("got %v", err)
	}
}
