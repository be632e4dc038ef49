package outputs

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/caravan-dag/caravan/messages"
)

// Copy is a section on one of the nodes that have it.
type Copy struct {
	Node string // the node's name, for errors
	Open func() (Section, error)
}

// OpenCopies opens the stream of an ended attempt whose section is on several nodes, each of which may be
// down, or damaged. A read goes to the first copy that can be read, and then stays with it. Copies are opened
// when they are needed; the first one that can be opened is open when OpenCopies returns.
//
// If no copy can be read, the error is a *messages.Error that says of each node why. Its code is Unavailable
// if a node may have the bytes later, Damaged if a copy is damaged, and NotFound if all are lost.
func OpenCopies(id ID, out messages.Output, copies []Copy) (messages.Log, error) {
	c := &copiesReader{id: id, copies: copies}
	if err := c.try(func(Section) error { return nil }); err != nil {
		return nil, err
	}
	return &endedLog{out, c}, nil
}

// copiesReader is the section of a stream that has several copies.
type copiesReader struct {
	id      ID
	copies  []Copy
	current int     // the copy that was read last
	open    Section // of that copy; nil if it is not open
}

// try calls read with the current copy, and if that fails with each other one, until a read succeeds. A read
// succeeds also with io.EOF.
func (c *copiesReader) try(read func(Section) error) error {
	var failures []error
	for range c.copies {
		err := error(nil)
		if c.open == nil {
			c.open, err = c.copies[c.current].Open()
		}
		if err == nil {
			if err = read(c.open); err == nil || err == io.EOF {
				return err
			}
		}
		failures = append(failures, fmt.Errorf("node %s: %w", c.copies[c.current].Node, err))
		c.closeCurrent()
		c.current = (c.current + 1) % len(c.copies)
	}
	return c.joinFailures(failures)
}

// joinFailures returns the error of a section that cannot be read from any copy.
func (c *copiesReader) joinFailures(failures []error) error {
	joined := &messages.Error{Code: messages.NotFound}
	var texts []string
	for _, err := range failures {
		code := messages.Internal
		if known, ok := errors.AsType[*messages.Error](err); ok {
			code = known.Code
		}
		switch {
		case code == messages.NotFound, joined.Code == messages.Unavailable:
		case code == messages.Unavailable, joined.Code == messages.NotFound, code == messages.Damaged:
			joined.Code = code
		}
		texts = append(texts, err.Error())
	}
	joined.Text = fmt.Sprintf("%s cannot be read: %s", c.id, strings.Join(texts, "; "))
	return joined
}

func (c *copiesReader) closeCurrent() {
	if c.open != nil {
		c.open.Close()
		c.open = nil
	}
}

// ReadAt implements io.ReaderAt. Each copy has the same bytes, so another one goes on where one fails.
func (c *copiesReader) ReadAt(p []byte, off int64) (n int, err error) {
	err = c.try(func(s Section) error {
		more, err := s.ReadAt(p[n:], off+int64(n))
		n += more
		return err
	})
	return n, err
}

// Verify implements Section. It finds a copy that is whole from an offset on, which is read then.
func (c *copiesReader) Verify(from int64) error {
	return c.try(func(s Section) error { return s.Verify(from) })
}

// Close implements Section.
func (c *copiesReader) Close() error {
	c.closeCurrent()
	return nil
}
