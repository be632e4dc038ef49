package executor

// Monitored is what executors implement that depend on something which can fail by itself,
// such as another process. Both methods may be called from any goroutine.
type Monitored interface {
	Executor
	// Healthy is nil, or says what is wrong in a sentence for the operator. Orders are
	// taken all the same.
	Healthy() error
	// Deferred counts, by reason, how often a start had to wait for want of something that
	// the machine was short of.
	Deferred() map[string]uint64
}
