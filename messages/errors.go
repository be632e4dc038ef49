package messages

// ErrorCode classes an error for whoever must answer a user. There is one switch
// from ErrorCode to an HTTP status, in package http.
type ErrorCode uint8

// Codes.
const (
	Internal       ErrorCode = iota // a bug or an unexpected failure
	Invalid                         // the request is wrong in itself
	NotFound                        // no such run, task, attempt
	Conflict                        // not allowed in the present state
	TooLarge                        // sound, but beyond a limit
	KeyReused                       // idempotency key seen with another body
	Unavailable                     // overloaded, shutting down, storage failed
	Damaged                         // what was stored is not what is there
	OutcomeUnknown                  // unavailable, and the change that was asked for may have taken effect
	NotLeader                       // another node of the cluster leads the run's partition: nothing was done
)

// Error is an error that a user sees. Text is one sentence that names the thing.
type Error struct {
	Code ErrorCode
	Text string
	// Problems lists what is wrong with a document (Code Invalid or TooLarge).
	Problems []Problem
}

// Problem is one entry of an error document's `errors`.
type Problem struct {
	Pointer string `json:"pointer"`
	Message string `json:"message"`
}

func (e *Error) Error() string { return e.Text }

// ErrNotLeader answers requests of which nothing was done, on a node that does not lead any more.
var ErrNotLeader error = &Error{Code: NotLeader, Text: "this server leads the partition no longer: repeat the request"}

// ErrStopping answers requests and subscriptions while the server shuts down.
var ErrStopping error = &Error{Code: Unavailable, Text: "the server is shutting down"}
