package workerpb

import (
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/messages"
)

// extend lengthens a list by an empty message, which is one that the list had before its frame was
// reset, if there is one.
func extend[M any](list []*M) ([]*M, *M) {
	n := len(list)
	if n == cap(list) {
		m := new(M)
		return append(list, m), m
	}
	list = list[:n+1]
	if list[n] == nil {
		list[n] = new(M)
	}
	return list, list[n]
}

// addKey appends the message of a key.
func addKey(list []*AttemptKey, key messages.AttemptKey) []*AttemptKey {
	list, m := extend(list)
	m.Run, m.Task, m.Attempt = uint64(key.Run), key.Task, key.Attempt
	return list
}

// IsEmpty reports whether all fields of the frame are unset.
func (f *ServerFrame) IsEmpty() bool {
	return f.Capacity == nil && len(f.Acknowledgements)+len(f.Orders)+len(f.Kills)+len(f.Revocations) == 0 &&
		!f.Ping && !f.Drain && !f.Release && !f.Stop
}

// SetCapacity sets the slots that the worker has from now on.
func (f *ServerFrame) SetCapacity(amount Amount) { f.Capacity = amount.message() }

// AddAcknowledgement lets the worker forget an end.
func (f *ServerFrame) AddAcknowledgement(key messages.AttemptKey) {
	f.Acknowledgements = addKey(f.Acknowledgements, key)
}

// AddOrder orders an attempt. The frame shares the order's strings.
func (f *ServerFrame) AddOrder(o *executor.Order) {
	list, m := extend(f.Orders)
	m.set(o)
	f.Orders = list
}

// AddKill ends an attempt.
func (f *ServerFrame) AddKill(key messages.AttemptKey, grace time.Duration) {
	list, m := extend(f.Kills)
	m.Run, m.Task, m.Attempt, m.Grace = uint64(key.Run), key.Task, key.Attempt, int64(grace)
	f.Kills = list
}

// AddRevocation takes an order back.
func (f *ServerFrame) AddRevocation(key messages.AttemptKey) {
	f.Revocations = addKey(f.Revocations, key)
}

// IsEmpty reports whether all fields of the frame are unset.
func (f *WorkerFrame) IsEmpty() bool {
	return f.Hello == nil && f.Usage == nil && !f.Pong && !f.Synced && !f.Stopped &&
		len(f.Queued)+len(f.Started)+len(f.Finished)+len(f.Revoked)+len(f.Ignored)+len(f.Postponed) == 0
}

// AddQueued says that an order waits for slots.
func (f *WorkerFrame) AddQueued(key messages.AttemptKey, grantedAt int64) {
	list, m := extend(f.Queued)
	m.Run, m.Task, m.Attempt, m.GrantedAt = uint64(key.Run), key.Task, key.Attempt, grantedAt
	f.Queued = list
}

// AddStarted says that an attempt's process exists.
func (f *WorkerFrame) AddStarted(key messages.AttemptKey, at int64, startDelay time.Duration, grantedAt int64) {
	list, m := extend(f.Started)
	m.Run, m.Task, m.Attempt = uint64(key.Run), key.Task, key.Attempt
	m.At, m.StartDelay, m.GrantedAt = at, int64(startDelay), grantedAt
	f.Started = list
}

// AddFinished adds an end, as AppendFinished has encoded it. The frame shares the bytes.
func (f *WorkerFrame) AddFinished(end []byte) { f.Finished = append(f.Finished, end) }

// AddRevoked gives an order back.
func (f *WorkerFrame) AddRevoked(key messages.AttemptKey, at int64) {
	list, m := extend(f.Revoked)
	m.Run, m.Task, m.Attempt, m.At = uint64(key.Run), key.Task, key.Attempt, at
	f.Revoked = list
}

// AddIgnored says that the order's attempt has begun, ended and been acknowledged before.
func (f *WorkerFrame) AddIgnored(key messages.AttemptKey) { f.Ignored = addKey(f.Ignored, key) }

// AddPostponed says that a start has to wait for want of something.
func (f *WorkerFrame) AddPostponed(reason string, err error) {
	list, m := extend(f.Postponed)
	m.Reason, m.Count, m.Error = reason, 1, []byte(err.Error())
	f.Postponed = list
}

// SetUsage sets the slots in use.
func (f *WorkerFrame) SetUsage(amount Amount) { f.Usage = amount.message() }

// Split cuts a frame into frames with at most limit bytes of ends each, so that no message is too
// large: a server that was away for long has much to hear. The fields before the ends stay in the
// first frame, the fields after them go into the last one. An end that is larger than the limit
// has a frame of its own.
func (f *WorkerFrame) Split(limit int) (frames []*WorkerFrame) {
	size, from := 0, 0
	ends := f.Finished
	head := f
	for i, end := range ends {
		if size+len(end) > limit && i > from {
			part := WorkerFrameFromVTPool()
			head.Finished = ends[from:i:i]
			part.Revoked, head.Revoked = head.Revoked, nil
			part.Ignored, head.Ignored = head.Ignored, nil
			part.Postponed, head.Postponed = head.Postponed, nil
			part.Usage, head.Usage = head.Usage, nil
			part.Pong, part.Synced, part.Stopped = head.Pong, head.Synced, head.Stopped
			head.Pong, head.Synced, head.Stopped = false, false, false
			frames = append(frames, head)
			head, size, from = part, 0, i
		}
		size += len(end)
	}
	head.Finished = ends[from:]
	return append(frames, head)
}

// Amount is an amount of slots.
type Amount struct{ CPUMillis, MemoryBytes int64 }

func (a Amount) message() *Resources {
	return &Resources{CpuMillis: a.CPUMillis, MemoryBytes: a.MemoryBytes}
}

// Amount returns the amount; 0 when the message is missing.
func (m *Resources) Amount() Amount {
	return Amount{CPUMillis: m.GetCpuMillis(), MemoryBytes: m.GetMemoryBytes()}
}
