package workerpb

import (
	"errors"

	"github.com/caravan-dag/caravan/messages"
)

// NewOutput returns the message of an output. It shares the inline bytes.
func NewOutput(o *messages.Output) *Output { return new(Output).set(o) }

// NewOutputCopy returns the message of a copy, which shares its text; nil without one.
func NewOutputCopy(c *messages.OutputCopy) *OutputCopy {
	if c == nil {
		return nil
	}
	return &OutputCopy{Node: bytesOf(c.Node), Stdout: c.Stdout, Stderr: c.Stderr}
}

// ToCopy returns the copy, which shares the message's text; nil of a missing message.
func (m *OutputCopy) ToCopy() *messages.OutputCopy {
	if m == nil {
		return nil
	}
	return &messages.OutputCopy{Node: textOf(m.Node), Stdout: m.Stdout, Stderr: m.Stderr}
}

// NewOutputError returns the message of an error; nil without one.
func NewOutputError(err error) *OutputError {
	if err == nil {
		return nil
	}
	m := &OutputError{Text: []byte(err.Error())}
	if known := (*messages.Error)(nil); errors.As(err, &known) {
		m.Damaged, m.Lost = known.Code == messages.Damaged, known.Code == messages.NotFound
	}
	return m
}

// ToError returns the error, a *messages.Error; nil of a missing message.
func (m *OutputError) ToError() error {
	if m == nil {
		return nil
	}
	code := messages.Internal
	switch {
	case m.Damaged:
		code = messages.Damaged
	case m.Lost:
		code = messages.NotFound
	}
	return &messages.Error{Code: code, Text: string(m.Text)}
}
