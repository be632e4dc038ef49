package http

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
)

const chunked = " HTTP/1.1\r\nHost: c\r\nTransfer-Encoding: chunked\r\nContent-Type: "

// inChunks sends text in chunks of so many bytes, each with an extension.
func inChunks(text string, size int, extension string) string {
	var b strings.Builder
	for len(text) > 0 {
		n := min(size, len(text))
		fmt.Fprintf(&b, "%x%s\r\n%s\r\n", n, extension, text[:n])
		text = text[n:]
	}
	return b.String() + "0\r\n"
}

// TestChunksAreBodies, in whatever pieces they come, with what a chunk may have.
func TestChunksAreBodies(t *testing.T) {
	e := seedEngine(t)
	s := serve(t, e)
	sum := 0
	for name, body := range map[string]string{
		"one":             inChunks(seedSpec, len(seedSpec), ""),
		"bytes":           inChunks(seedSpec, 1, ""),
		"extensions":      inChunks(seedSpec, 64, ";name=value;other=\"quoted\""),
		"bytes, extended": inChunks(seedSpec, 1, ";a=b"),
		"a long one":      inChunks(seedSpec, len(seedSpec), ";a="+strings.Repeat("x", 4<<10)),
	} {
		sum++
		_, r := s.raw("POST /v1/dagrun" + chunked + "application/json\r\n\r\n" + body + "X-Sum: x\r\n\r\n" + asking("/ready"))
		if got := s.answerTo(r); got.status != 200 || got.close {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
		if got := s.answerTo(r); got.status != 200 {
			t.Errorf("%s: the next request: %d %s", name, got.status, got.body)
		}
	}
	large := `{"tasks":{"a":{"job":{"command":["x"],"pad":"` + strings.Repeat("x", 6<<20) + `"}}}}`
	for _, size := range []int{16, 1 << 20, len(large)} {
		sum++
		_, r := s.raw("POST /v1/dagrun" + chunked + "application/json\r\n\r\n" + inChunks(large, size, ";x") + "\r\n")
		if got := s.answerTo(r); got.status != 200 {
			t.Errorf("6 MiB in chunks of %d: %d %s", size, got.status, got.body)
		}
	}
	if len(e.submitted) != sum {
		t.Errorf("%d runs, want %d", len(e.submitted), sum)
	}
}

// TestFramingIsBounded: a body with more framing than content is not read on, whoever reads it:
// long extensions, many of them, and trailers. Nothing of it is taken.
func TestFramingIsBounded(t *testing.T) {
	endless := strings.Repeat("x", 1<<20)
	for name, c := range map[string]struct {
		begin, on string
		status    int
	}{
		"an extension": {"POST /v1/dagrun" + chunked + "application/json\r\n\r\n1;x=", endless, 400},
		"an extension behind content": {"POST /v1/dagrun" + chunked + "application/json\r\n\r\n" +
			fmt.Sprintf("%x\r\n%s\r\n1;x=", 256<<10, strings.Repeat(" ", 256<<10)), endless, 400},
		"extensions":                   {"POST /v1/dagrun" + chunked + "application/json\r\n\r\n", strings.Repeat("1;x="+strings.Repeat("y", 2000)+"\r\n \r\n", 500), 400},
		"an extension in lines":        {"POST /v1/dagruns" + chunked + linesType + "\r\n\r\n1;x=", endless, 400},
		"extensions in lines":          {"POST /v1/dagruns" + chunked + linesType + "\r\n\r\n", strings.Repeat("1;x="+strings.Repeat("y", 2000)+"\r\n \r\n", 500), 400},
		"an extension nobody reads":    {"POST /v1/dagrun" + chunked + "text/plain\r\n\r\n1;x=", endless, 415},
		"an extension of nothing":      {"DELETE /v1/dagrun/9" + chunked + "application/json\r\n\r\n1;x=", endless, 404},
		"a trailer":                    {"POST /v1/dagrun" + chunked + "application/json\r\n\r\n" + inChunks(seedSpec, 64, "") + "X: ", endless, 431},
		"trailers":                     {"POST /v1/dagrun" + chunked + "application/json\r\n\r\n" + inChunks(seedSpec, 64, ""), strings.Repeat("X: y\r\n", 200_000), 431},
		"a trailer that is no trailer": {"POST /v1/dagrun" + chunked + "application/json\r\n\r\n" + inChunks(seedSpec, 64, "") + "Authorization: Bearer x\r\n\r\n", "", 400},
	} {
		t.Run(name, func(t *testing.T) {
			e := seedEngine(t)
			s := serve(t, e, func(c *Config) { c.ReadTimeout = 10 * time.Second })
			nc, r := s.raw(c.begin)
			sent := make(chan struct{})
			go func() {
				defer close(sent)
				for n := 0; n < 64 && c.on != ""; n++ { // then it waits for its answer in vain
					if _, err := io.WriteString(nc, c.on); err != nil {
						return
					}
				}
			}()
			got := s.answerTo(r)
			text := ""
			if c.status == 400 && c.on != "" {
				text = "extensions that are too long"
			}
			refusedWith(t, got, c.status, text)
			if rest, _ := io.ReadAll(r); len(rest) != 0 {
				t.Errorf("then came %.100q", rest)
			}
			nc.Close()
			<-sent
			if len(e.submitted) != 0 {
				t.Errorf("%d runs", len(e.submitted))
			}
		})
	}
}
