package workerpb

import (
	"errors"

	"github.com/caravan-dag/caravan/messages"
)

// NewOutput returns the message of an output. It shares the inline bytes.
func NewOutput(o *messages.Output) *Output { return new(Output).set(o) }

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
