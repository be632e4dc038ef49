package messages

// Result is an answer or the error in its place.
type Result[T any] struct {
	Value T
	Err   error
}

// Reply is the way back to a caller outside the actors: a channel with room for
// the one answer, so that the actor never waits for the caller.
type Reply[T any] chan Result[T]

// NewReply returns an empty reply.
func NewReply[T any]() Reply[T] { return make(Reply[T], 1) }

// Send answers. A second answer is dropped: the first one counts.
func (r Reply[T]) Send(v T, err error) {
	select {
	case r <- Result[T]{v, err}:
	default:
	}
}
