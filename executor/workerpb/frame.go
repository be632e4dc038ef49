package workerpb

import (
	"fmt"
	"slices"
	"time"
	"unsafe"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"

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

// Session says in whose name a server orders attempts: as the leader of a partition in an epoch. The
// number tells two sessions of one epoch apart. The zero value is no session, as numbers begin with 1.
type Session struct {
	Partition     uint32
	Epoch, Number uint64
}

// sessionMessage is any message that belongs to a session.
type sessionMessage interface {
	GetPartition() uint32
	GetEpoch() uint64
	GetSession() uint64
}

// SessionOf returns the session of a message.
func SessionOf(m sessionMessage) Session {
	return Session{Partition: m.GetPartition(), Epoch: m.GetEpoch(), Number: m.GetSession()}
}

// IsEmpty reports whether all fields of the frame are unset. A part without an item counts as unset.
func (f *ServerFrame) IsEmpty() bool {
	if f.Capacity != nil || len(f.Leads)+len(f.Renewals)+len(f.Leases)+len(f.Shares) > 0 || f.Ping || f.Drain || f.Release || f.Stop {
		return false
	}
	for _, orders := range f.Partitions {
		if !orders.isEmpty() {
			return false
		}
	}
	return true
}

func (m *PartitionOrders) isEmpty() bool {
	return len(m.Acknowledgements)+len(m.Orders)+len(m.Kills)+len(m.Revocations) == 0
}

// SetCapacity sets the slots that the worker has from now on.
func (f *ServerFrame) SetCapacity(amount Amount) { f.Capacity = amount.message() }

// AddLead begins a session.
func (f *ServerFrame) AddLead(s Session) {
	list, m := extend(f.Leads)
	m.Partition, m.Epoch, m.Session = s.Partition, s.Epoch, s.Number
	f.Leads = list
}

// AddRenewal renews the lease of a partition, in answer to a heartbeat.
func (f *ServerFrame) AddRenewal(partition uint32, epoch, heartbeat uint64) {
	list, m := extend(f.Renewals)
	m.Partition, m.Epoch, m.Heartbeat = partition, epoch, heartbeat
	f.Renewals = list
}

// AddLease tells until when attempts of a partition may run, in nanoseconds since boot.
func (f *ServerFrame) AddLease(partition uint32, until int64) {
	list, m := extend(f.Leases)
	m.Partition, m.Until = partition, until
	f.Leases = list
}

// AddShare tells an agent what the attempts of a partition take of its node.
func (f *ServerFrame) AddShare(partition uint32, taken Taken) {
	list, m := extend(f.Shares)
	m.set(partition, taken)
	f.Shares = list
}

// OrdersIn returns the part of the frame that belongs to a session, and adds it if it is missing. It is
// valid until the frame is sent or reset. It costs O(partitions of the frame).
func (f *ServerFrame) OrdersIn(s Session) *PartitionOrders {
	for _, m := range f.Partitions {
		if m.Session == s.Number && m.Partition == s.Partition && m.Epoch == s.Epoch {
			return m
		}
	}
	list, m := extend(f.Partitions)
	m.Partition, m.Epoch, m.Session = s.Partition, s.Epoch, s.Number
	f.Partitions = list
	return m
}

// AddAcknowledgement lets the worker forget an end.
func (m *PartitionOrders) AddAcknowledgement(key messages.AttemptKey) {
	m.Acknowledgements = addKey(m.Acknowledgements, key)
}

// AddOrder orders an attempt. The message shares the order's strings.
func (m *PartitionOrders) AddOrder(o *executor.Order) {
	list, order := extend(m.Orders)
	order.set(o)
	m.Orders = list
}

// AddKill ends an attempt.
func (m *PartitionOrders) AddKill(key messages.AttemptKey, grace time.Duration) {
	list, kill := extend(m.Kills)
	kill.Run, kill.Task, kill.Attempt, kill.Grace = uint64(key.Run), key.Task, key.Attempt, int64(grace)
	m.Kills = list
}

// AddRevocation takes an order back.
func (m *PartitionOrders) AddRevocation(key messages.AttemptKey) {
	m.Revocations = addKey(m.Revocations, key)
}

// IsEmpty reports whether all fields of the frame are unset. A part without an item counts as unset.
func (f *WorkerFrame) IsEmpty() bool {
	if f.Hello != nil || f.Usage != nil || f.Node != nil || f.Heartbeat != 0 || f.Pong || f.Stopped || len(f.Postponed) > 0 {
		return false
	}
	for _, report := range f.Partitions {
		if !report.isEmpty() {
			return false
		}
	}
	return true
}

func (m *PartitionReport) isEmpty() bool {
	return !m.Synced && len(m.Queued)+len(m.Started)+len(m.Finished)+len(m.Revoked)+len(m.Ignored) == 0
}

// ReportIn returns the part of the frame that belongs to a session, and adds it if it is missing. It is
// valid until the frame is sent or reset. It costs O(partitions of the frame).
func (f *WorkerFrame) ReportIn(s Session) *PartitionReport {
	for _, m := range f.Partitions {
		if m.Session == s.Number && m.Partition == s.Partition && m.Epoch == s.Epoch {
			return m
		}
	}
	list, m := extend(f.Partitions)
	m.Partition, m.Epoch, m.Session = s.Partition, s.Epoch, s.Number
	f.Partitions = list
	return m
}

// AddQueued says that an order waits: in the first report of a session, or as the answer to an order
// that came again. A new order that waits is not announced.
func (m *PartitionReport) AddQueued(key messages.AttemptKey, grantedAt int64) {
	list, queued := extend(m.Queued)
	queued.Run, queued.Task, queued.Attempt, queued.GrantedAt = uint64(key.Run), key.Task, key.Attempt, grantedAt
	m.Queued = list
}

// AddStarted says that an attempt's process exists.
func (m *PartitionReport) AddStarted(key messages.AttemptKey, at int64, startDelay time.Duration, grantedAt int64) {
	list, started := extend(m.Started)
	started.Run, started.Task, started.Attempt = uint64(key.Run), key.Task, key.Attempt
	started.At, started.StartDelay, started.GrantedAt = at, int64(startDelay), grantedAt
	m.Started = list
}

// AddFinished adds an end, as AppendFinished has encoded it. The message shares the bytes.
func (m *PartitionReport) AddFinished(end []byte) { m.Finished = append(m.Finished, end) }

// AddRevoked gives an order back.
func (m *PartitionReport) AddRevoked(key messages.AttemptKey, at int64) {
	list, revoked := extend(m.Revoked)
	revoked.Run, revoked.Task, revoked.Attempt, revoked.At = uint64(key.Run), key.Task, key.Attempt, at
	m.Revoked = list
}

// AddIgnored says that an order was not accepted; the zero key stands for the Lead of the session. epoch
// is the highest one that the worker has seen of the partition.
func (m *PartitionReport) AddIgnored(key messages.AttemptKey, reason IgnoreReason, epoch uint64) {
	list, ignored := extend(m.Ignored)
	ignored.Run, ignored.Task, ignored.Attempt = uint64(key.Run), key.Task, key.Attempt
	ignored.Reason, ignored.Epoch = reason, epoch
	m.Ignored = list
}

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
// first frame, the fields after them go into the last one, and so does each field of a report that is cut. An
// end that is larger than the limit has a frame of its own.
func (f *WorkerFrame) Split(limit int) (frames []*WorkerFrame) {
	head, size, hasEnd := f, 0, false
	for i := 0; i < len(head.Partitions); i++ {
		ends := head.Partitions[i].Finished
		for j, end := range ends {
			if size+len(end) > limit && hasEnd {
				rest := head.cutAt(i, j)
				frames = append(frames, head)
				// The rest of this report is the first one of the next frame.
				head, size, hasEnd, i = rest, 0, false, -1
				break
			}
			size, hasEnd = size+len(end), true
		}
	}
	return append(frames, head)
}

// cutAt cuts the frame before an end of one of its reports, and returns the rest as a frame.
func (f *WorkerFrame) cutAt(partition, end int) (rest *WorkerFrame) {
	cut := f.Partitions[partition]
	rest = WorkerFrameFromVTPool()
	tail := rest.ReportIn(SessionOf(cut))
	tail.Finished, cut.Finished = cut.Finished[end:], cut.Finished[:end:end]
	tail.Revoked, cut.Revoked = cut.Revoked, tail.Revoked
	tail.Ignored, cut.Ignored = cut.Ignored, tail.Ignored
	tail.Synced, cut.Synced = cut.Synced, false

	rest.Partitions = append(rest.Partitions, f.Partitions[partition+1:]...)
	clear(f.Partitions[partition+1:]) // a frame of the pool would fill these again
	f.Partitions = f.Partitions[:partition+1]
	rest.Postponed, f.Postponed = f.Postponed, rest.Postponed
	rest.Usage, f.Usage = f.Usage, nil
	rest.Node, f.Node = f.Node, nil
	rest.Pong, rest.Stopped, rest.Heartbeat = f.Pong, f.Stopped, f.Heartbeat
	f.Pong, f.Stopped, f.Heartbeat = false, false, 0
	return rest
}

// attemptMessage is any message about an attempt.
type attemptMessage interface {
	GetRun() uint64
	GetTask() uint32
	GetAttempt() uint32
}

// KeyOf returns the key of the attempt that a message is about.
func KeyOf(m attemptMessage) messages.AttemptKey {
	return messages.AttemptKey{Run: messages.RunID(m.GetRun()), Task: m.GetTask(), Attempt: m.GetAttempt()}
}

// bytesOf returns the bytes of a text without a copy. They must not be changed.
func bytesOf(text string) []byte { return unsafe.Slice(unsafe.StringData(text), len(text)) }

// textOf returns bytes as a text without a copy. They must not be changed any more: a field of a
// message that is reset, and not filled again in place, fulfils that.
func textOf(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// set makes the message that of an order. The message shares the order's strings. Order.Resume and
// Order.ExtraMembers are not the worker's concern and are left out.
func (m *Order) set(o *executor.Order) {
	m.Run, m.Task, m.Attempt = uint64(o.Key.Run), o.Key.Task, o.Key.Attempt
	m.Name, m.Command, m.Shell, m.UseShell = o.Name, o.Command, o.Shell, o.UseShell
	m.Environment, m.Directory = o.Environment, bytesOf(o.Dir)
	m.Timeout, m.CpuMillis, m.MemoryBytes = int64(o.Timeout), o.CPUMillis, o.MemoryBytes
	m.Capture, m.GrantedAt = o.Capture, o.GrantedAt
}

// ToOrder returns the order. It shares strings and slices with the message, which Reset leaves alone.
func (m *Order) ToOrder() executor.Order {
	return executor.Order{
		Key: KeyOf(m), Name: m.Name, Command: m.Command, Shell: m.Shell, UseShell: m.UseShell,
		Environment: m.Environment, Dir: textOf(m.Directory), Timeout: time.Duration(m.Timeout),
		CPUMillis: m.CpuMillis, MemoryBytes: m.MemoryBytes, Capture: m.Capture, GrantedAt: m.GrantedAt,
	}
}

// AppendFinished appends the encoded end of an attempt.
func AppendFinished(dst []byte, report *executor.Report) []byte {
	record := &report.Record
	m := Finished{
		Run: uint64(report.Key.Run), Task: report.Key.Task, Attempt: report.Key.Attempt, At: report.At,
		Result: Result(record.Result), ExitCode: record.RC, Start: record.Start, Stop: record.Stop,
		MaxRssKb: record.MaxRSSKB, UserCpu: int64(record.UserCPU), SystemCpu: int64(record.SystemCPU),
		ExecutorLog: bytesOf(record.ExecutorLog), Node: bytesOf(record.Node),
		Captured: report.Stdout, GrantedAt: report.GrantedAt, Copy: NewOutputCopy(record.Copy),
	}
	var stdout, stderr Output
	m.Stdout, m.Stderr = stdout.set(&record.Stdout), stderr.set(&record.Stderr)
	size := m.SizeVT()
	dst = slices.Grow(dst, size)
	dst = dst[:len(dst)+size]
	if _, err := m.MarshalToSizedBufferVT(dst); err != nil {
		panic(fmt.Sprintf("end of attempt %v: %v", report.Key, err)) // only a wrong size gives an error
	}
	return dst
}

// set makes the message that of an output and returns it; nil for an empty output.
func (m *Output) set(o *messages.Output) *Output {
	if o.Size == 0 && o.Head == 0 && o.Tail == 0 && o.Offset == 0 && len(o.Inline) == 0 {
		return nil
	}
	m.Size, m.Head, m.Tail, m.Offset, m.Inline = o.Size, o.Head, o.Tail, o.Offset, o.Inline
	return m
}

// ToOutput returns the output, which shares the inline bytes. A missing message is an empty output.
func (m *Output) ToOutput() messages.Output {
	if m == nil {
		return messages.Output{}
	}
	o := messages.Output{Size: m.Size, Head: m.Head, Tail: m.Tail, Offset: m.Offset}
	if len(m.Inline) > 0 {
		o.Inline = m.Inline
	}
	return o
}

// ParseFinished reads the encoded end of an attempt. The report does not share memory with data.
func ParseFinished(data []byte) (executor.Report, error) {
	var m Finished
	if err := m.UnmarshalVT(data); err != nil {
		return executor.Report{}, fmt.Errorf("end of an attempt: %w", err)
	}
	key := messages.AttemptKey{Run: messages.RunID(m.Run), Task: m.Task, Attempt: m.Attempt}
	report := executor.Report{
		Key: key, Kind: executor.Finished, At: m.At, GrantedAt: m.GrantedAt, Stdout: m.Captured,
		Record: messages.AttemptRecord{
			Task: key.Task, Attempt: key.Attempt, Result: messages.AttemptResult(m.Result), RC: m.ExitCode,
			Start: m.Start, Stop: m.Stop, ExecutorLog: textOf(m.ExecutorLog), Node: textOf(m.Node), MaxRSSKB: m.MaxRssKb,
			UserCPU: time.Duration(m.UserCpu), SystemCPU: time.Duration(m.SystemCpu),
			Stdout: m.Stdout.ToOutput(), Stderr: m.Stderr.ToOutput(), Copy: m.Copy.ToCopy(),
		},
	}
	if m.Result < 0 || m.Result > Result_RESULT_REJECTED {
		return report, fmt.Errorf("end of attempt %v: unknown result %d", key, m.Result)
	}
	return report, nil
}

// codec is gRPC's codec of protobuf messages, with the generated methods in place of reflection.
type codec struct{}

var _ encoding.CodecV2 = codec{}

// vtMessage is a message of this package.
type vtMessage interface {
	SizeVT() int
	MarshalToSizedBufferVT([]byte) (int, error)
	UnmarshalVT([]byte) error
}

// Marshal implements encoding.CodecV2.
func (codec) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(vtMessage)
	if !ok {
		return nil, fmt.Errorf("worker protocol: cannot encode a %T", v)
	}
	size := m.SizeVT()
	if mem.IsBelowBufferPoolingThreshold(size) {
		buffer := make([]byte, size)
		_, err := m.MarshalToSizedBufferVT(buffer)
		return mem.BufferSlice{mem.SliceBuffer(buffer)}, err
	}
	pool := mem.DefaultBufferPool()
	buffer := pool.Get(size)
	if _, err := m.MarshalToSizedBufferVT((*buffer)[:size]); err != nil {
		pool.Put(buffer)
		return nil, err
	}
	return mem.BufferSlice{mem.NewBuffer(buffer, pool)}, nil
}

// Unmarshal implements encoding.CodecV2. The message does not share memory with the buffers.
func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(vtMessage)
	if !ok {
		return fmt.Errorf("worker protocol: cannot decode into a %T", v)
	}
	buffer := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buffer.Free()
	return m.UnmarshalVT(buffer.ReadOnlyData())
}

// Name implements encoding.CodecV2: the bytes are those of every other implementation.
func (codec) Name() string { return "proto" }
