package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// conn is a keep-alive connection that does as little as a client can: the request
// is prepared, of the answer the status, the length and the body are read.
type conn struct {
	net.Conn
	r    *bufio.Reader
	body []byte
}

func dial(url string) (*conn, error) {
	c, err := net.DialTimeout("tcp", strings.TrimPrefix(url, "http://"), 10*time.Second)
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c, r: bufio.NewReaderSize(c, 4096)}, nil
}

// request prepares a request.
func request(method, path string, body []byte) []byte {
	return requestOf(method, path, "application/json", body)
}

func requestOf(method, path, contentType string, body []byte) []byte {
	head := method + " " + path + " HTTP/1.1\r\nHost: localhost\r\n"
	if body != nil {
		head += "Content-Type: " + contentType + "\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n"
	}
	return append([]byte(head+"\r\n"), body...)
}

var (
	contentLength = []byte("content-length:")
	chunked       = []byte("transfer-encoding:")
)

// roundTrip sends a prepared request and returns the answer's status and body,
// which is valid until the next call.
func (c *conn) roundTrip(req []byte) (status int, body []byte, err error) {
	if _, err := c.Write(req); err != nil {
		return 0, nil, err
	}
	line, err := c.r.ReadSlice('\n')
	if err != nil {
		return 0, nil, err
	}
	if len(line) < 12 {
		return 0, nil, fmt.Errorf("status line %q", line)
	}
	if status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return 0, nil, fmt.Errorf("status line %q", line)
	}
	length := -1
	for {
		line, err := c.r.ReadSlice('\n')
		if err != nil {
			return 0, nil, err
		}
		if len(line) <= 2 {
			break
		}
		lower := bytes.ToLower(line)
		if v, ok := bytes.CutPrefix(lower, contentLength); ok {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(v))); err != nil {
				return 0, nil, err
			}
		} else if bytes.HasPrefix(lower, chunked) {
			return 0, nil, errors.New("an answer in chunks: not for this client")
		}
	}
	if length < 0 {
		return 0, nil, errors.New("an answer without a length")
	}
	c.body = slices.Grow(c.body[:0], length)[:length]
	_, err = io.ReadFull(c.r, c.body)
	return status, c.body, err
}

// load is what a closed loop of connections measured.
type load struct {
	rate     float64 // answers per second
	p50, p99 time.Duration
}

// closedLoop lets n connections send one request after the other for a time. Any
// status but 200 ends it with an error.
func closedLoop(url string, n int, during time.Duration, req []byte) (load, error) {
	conns := make([]*conn, n)
	for i := range conns {
		c, err := dial(url)
		if err != nil {
			return load{}, err
		}
		defer c.Close()
		conns[i] = c
	}
	var (
		wg       sync.WaitGroup
		stop     atomic.Bool
		start    = make(chan struct{})
		took     = make([][]time.Duration, n)
		failures = make([]error, n)
	)
	for i, c := range conns {
		wg.Go(func() {
			<-start
			for !stop.Load() {
				begin := time.Now()
				status, body, err := c.roundTrip(req)
				if err == nil && status != 200 {
					err = fmt.Errorf("status %d: %s", status, body)
				}
				if err != nil {
					failures[i] = err
					stop.Store(true)
					return
				}
				took[i] = append(took[i], time.Since(begin))
			}
		})
	}
	begin := time.Now()
	end := time.AfterFunc(during, func() { stop.Store(true) })
	defer end.Stop()
	close(start)
	wg.Wait()
	elapsed := time.Since(begin)
	if err := errors.Join(failures...); err != nil {
		return load{}, err
	}
	all := slices.Concat(took...)
	slices.Sort(all)
	if len(all) == 0 {
		return load{}, errors.New("no answer came in time")
	}
	return load{rate: float64(len(all)) / elapsed.Seconds(), p50: percentile(all, 50), p99: percentile(all, 99)}, nil
}
