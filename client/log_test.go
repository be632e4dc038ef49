package client

import (
	"context"
	"errors"
	"io"
	"net/http"
	"testing"
)

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

// TestFollow: what was written arrives before the end, and the end is told from
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
