package workerpb

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/messages"
)

var (
	session = Session{Partition: 1, Epoch: 1 << 40, Number: 3}

	taken = Taken{Amount: Amount{CPUMillis: 3, MemoryBytes: 4}, Running: 5, Waiting: 6}

	key    = messages.AttemptKey{Run: 1 << 40, Task: 1<<32 - 1, Attempt: 3}
	report = executor.Report{Key: key, Kind: executor.Finished, At: 7, GrantedAt: 12, Stdout: []byte{}, Record: messages.AttemptRecord{
		Task: key.Task, Attempt: 3, Result: messages.AttemptRejected, RC: -1, Start: 5, Stop: 6, ExecutorLog: "why \xff", Node: "here",
		MaxRSSKB: 9, UserCPU: time.Second, SystemCPU: time.Minute,
		Stdout: messages.Output{Size: 9, Head: 4, Tail: 4, Inline: []byte("12346789")},
		Stderr: messages.Output{Size: 1 << 40, Head: 8 << 20, Tail: 8 << 20, Offset: 1 << 50},
		Copy:   &messages.OutputCopy{Node: "there", Stderr: 1 << 51},
	}}
	order = executor.Order{Key: key, Name: "n", Command: []string{"a", "", "c"}, Shell: "s", UseShell: true, Environment: []string{"K=V"},
		Dir: "/\xff", Timeout: time.Hour, CPUMillis: 1, MemoryBytes: 2, Capture: true, GrantedAt: 11}
)

// fullServerFrame has all fields set.
func fullServerFrame() *ServerFrame {
	f := ServerFrameFromVTPool()
	f.SetCapacity(Amount{CPUMillis: 1, MemoryBytes: 2})
	f.AddLead(session)
	f.AddRenewal(2, 3, 4)
	f.AddLease(2, 5)
	orders := f.OrdersIn(session)
	orders.AddAcknowledgement(key)
	orders.AddOrder(&order)
	orders.AddKill(key, time.Second)
	orders.AddRevocation(key)
	f.AddShare(2, taken)
	f.Ping, f.Drain, f.Release, f.Stop = true, true, true, true
	return f
}

// fullWorkerFrame has all fields set.
func fullWorkerFrame() *WorkerFrame {
	f := WorkerFrameFromVTPool()
	f.Hello = &Hello{Version: []byte("v"), Name: []byte("n"), Pid: 3, Replaces: true}
	said := f.ReportIn(session)
	said.AddQueued(key, 1)
	said.AddStarted(key, -3, 7, 8)
	said.AddFinished(AppendFinished(nil, &report))
	said.AddRevoked(key, 9)
	said.AddIgnored(key, IgnoreReason_IGNORE_REASON_STALE_SESSION, 4)
	said.Synced = true
	f.AddPostponed("fork", errors.New("why \xff"))
	f.SetUsage(Amount{CPUMillis: 1, MemoryBytes: 2})
	f.Pong, f.Stopped, f.Heartbeat = true, true, 6
	f.SetNode(NodeStatus{Capacity: Amount{CPUMillis: 1, MemoryBytes: 2}, Draining: true, Taken: []Taken{{}, taken}})
	return f
}

// fullMessages has a message of each kind that is sent or stored, all fields set.
func fullMessages() map[string]interface {
	proto.Message
	vtMessage
} {
	var finished Finished
	if err := finished.UnmarshalVT(AppendFinished(nil, &report)); err != nil {
		panic(err)
	}
	return map[string]interface {
		proto.Message
		vtMessage
	}{
		"server frame": fullServerFrame(),
		"worker frame": fullWorkerFrame(),
		"end":          &finished,
		"log request":  &LogRequest{Open: &LogOpen{Run: 1, Task: 2, Attempt: 3, Stderr: true}, Offset: 4, Length: 5},
		"log reply": &LogReply{Size: 1, Kept: 2, Live: true, Cut: true, Eof: true, Data: []byte("x"),
			Error: &LogError{NotLive: true, Text: []byte("\xff")}},
		"journal record": &JournalRecord{
			Header:    &JournalHeader{Format: 1, BootId: "b", Pid: 2, StartTicks: 3, Mark: []byte("m")},
			Intent:    &Intent{Run: 1, Task: 2, Attempt: 3, At: 4},
			Withdrawn: &AttemptKey{Run: 1, Task: 2, Attempt: 3},
			Forked:    &Forked{Run: 1, Task: 2, Attempt: 3, Pid: 4, At: 5},
			Finished:  []byte("f"), Tail: true,
		},
	}
}

// requireAllSet fails if a field of the message, or of one inside it, is not set: a field that was
// added has to be added to the samples.
func requireAllSet(t *testing.T, name string, m protoreflect.Message) {
	t.Helper()
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		if !m.Has(field) {
			t.Errorf("%s: the sample lacks %s", name, field.FullName())
			continue
		}
		switch {
		case field.Message() == nil:
		case field.IsList():
			requireAllSet(t, name, m.Get(field).List().Get(0).Message())
		case m.Has(field):
			requireAllSet(t, name, m.Get(field).Message())
		}
	}
}

// TestCodecAgreesWithProtobuf holds the generated fast methods against package proto.
func TestCodecAgreesWithProtobuf(t *testing.T) {
	for name, m := range fullMessages() {
		if name != "end" { // a stream has an offset or is inline
			requireAllSet(t, name, m.ProtoReflect())
		}
		want, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got := make([]byte, m.SizeVT())
		if _, err := m.MarshalToSizedBufferVT(got); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %x, package proto has %x; %v", name, got, want, err)
		}
		back := m.ProtoReflect().New().Interface()
		if err := back.(vtMessage).UnmarshalVT(want); err != nil || !proto.Equal(back, m) {
			t.Errorf("%s: came back as %v, %v", name, back, err)
		}
		// Field 2000 of a later version is kept apart.
		later := append(bytes.Clone(want), 0x80, 0x7d, 1)
		back = m.ProtoReflect().New().Interface()
		if err := back.(vtMessage).UnmarshalVT(later); err != nil || len(back.ProtoReflect().GetUnknown()) != 3 {
			t.Errorf("%s with a field of a later version: %v, %v", name, back, err)
		}
		for n := range want {
			_ = m.ProtoReflect().New().Interface().(vtMessage).UnmarshalVT(want[:n]) // may be whole, must not panic
		}
	}
}

func TestOrderSurvivesTheWay(t *testing.T) {
	got := fullServerFrame().Partitions[0].Orders[0].ToOrder()
	if !reflect.DeepEqual(got, order) {
		t.Errorf("%+v, want %+v", got, order)
	}
	if empty := new(Order).ToOrder(); !reflect.DeepEqual(empty, executor.Order{}) {
		t.Errorf("%+v", empty)
	}
}

func TestEndSurvivesTheWay(t *testing.T) {
	small := executor.Report{Key: key, Kind: executor.Finished, Record: messages.AttemptRecord{Task: key.Task, Attempt: 3}}
	for _, want := range []executor.Report{report, small} {
		got, err := ParseFinished(AppendFinished(nil, &want))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%+v, want %+v; %v", got, want, err)
		}
	}
	if b := AppendFinished([]byte("x"), &small); b[0] != 'x' || !bytes.Equal(b[1:], AppendFinished(nil, &small)) {
		t.Errorf("appended: %x", b)
	}
}

// TestResultsHaveTheNumbersOfTheProtocol: a result that is added needs its value in worker.proto.
func TestResultsHaveTheNumbersOfTheProtocol(t *testing.T) {
	for result, want := range map[messages.AttemptResult]Result{
		messages.AttemptSucceeded: Result_RESULT_SUCCEEDED, messages.AttemptFailed: Result_RESULT_FAILED,
		messages.AttemptSignaled: Result_RESULT_SIGNALED, messages.AttemptTimedOut: Result_RESULT_TIMED_OUT,
		messages.AttemptNotStarted: Result_RESULT_NOT_STARTED, messages.AttemptLost: Result_RESULT_LOST,
		messages.AttemptKilled: Result_RESULT_KILLED, messages.AttemptRejected: Result_RESULT_REJECTED,
	} {
		if Result(result) != want {
			t.Errorf("result %d is %v in the protocol", result, want)
		}
	}
}

func TestBadMessagesAreRefused(t *testing.T) {
	bad := func(err error) error { return err }
	for name, err := range map[string]error{
		"length beyond the end": bad(new(ServerFrame).UnmarshalVT([]byte{0x1a, 5, 0})),
		"huge length":           bad(new(ServerFrame).UnmarshalVT([]byte{0x1a, 0xff, 0xff, 0xff, 0xff, 0x0f})),
		"wrong wire type":       bad(new(Order).UnmarshalVT([]byte{0x0a, 1, 0})),
		"result": func() error {
			_, err := ParseFinished([]byte{0x28, 99})
			return err
		}(),
		"torn end": func() error {
			_, err := ParseFinished([]byte{0x28})
			return err
		}(),
		"marshal":   func() error { _, err := codec{}.Marshal("x"); return err }(),
		"unmarshal": codec{}.Unmarshal(nil, "x"),
	} {
		if err == nil || strings.Contains(err.Error(), "failed") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCodecOfStreams passes small and large frames, in one buffer and in several.
func TestCodecOfStreams(t *testing.T) {
	if name := (codec{}).Name(); name != "proto" {
		t.Errorf("name %q", name)
	}
	for _, n := range []int{0, 1, 1 << 20} {
		want := WorkerFrameFromVTPool()
		want.ReportIn(session).AddFinished(bytes.Repeat([]byte{7}, n))
		slice, err := codec{}.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		b := slice.Materialize()
		parts := mem.BufferSlice{mem.SliceBuffer(b[:len(b)/2]), mem.SliceBuffer(b[len(b)/2:])}
		for _, data := range []mem.BufferSlice{slice, parts} {
			got := WorkerFrameFromVTPool()
			if err := (codec{}).Unmarshal(data, got); err != nil || !proto.Equal(got, want) {
				t.Errorf("%d bytes: %v", n, err)
			}
			got.ReturnToVTPool()
		}
		slice.Free()
	}
}

func TestEmptyFrames(t *testing.T) {
	if !new(ServerFrame).IsEmpty() || !new(WorkerFrame).IsEmpty() {
		t.Error("a new frame is not empty")
	}
	server, worker := new(ServerFrame), new(WorkerFrame)
	server.OrdersIn(session)
	worker.ReportIn(session)
	if !server.IsEmpty() || !worker.IsEmpty() {
		t.Error("a part without an item makes a frame that is not empty")
	}
	for _, full := range []interface {
		proto.Message
		IsEmpty() bool
	}{fullServerFrame(), fullWorkerFrame()} {
		fields := full.ProtoReflect().Descriptor().Fields()
		for i := range fields.Len() {
			one := full.ProtoReflect().New()
			one.Set(fields.Get(i), full.ProtoReflect().Get(fields.Get(i)))
			if one.Interface().(interface{ IsEmpty() bool }).IsEmpty() {
				t.Errorf("a frame with %s is taken for an empty one", fields.Get(i).FullName())
			}
		}
	}
}

// TestEachItemOfAPartCounts: a frame whose only item is any field of a part is not empty.
func TestEachItemOfAPartCounts(t *testing.T) {
	orders, said := fullServerFrame().Partitions[0], fullWorkerFrame().Partitions[0]
	for _, full := range []protoreflect.Message{orders.ProtoReflect(), said.ProtoReflect()} {
		fields := full.Descriptor().Fields()
		for i := range fields.Len() {
			field := fields.Get(i)
			one := full.New()
			one.Set(field, full.Get(field))
			isEmpty := one.Interface().(interface{ isEmpty() bool }).isEmpty()
			if named := field.Number() <= 3; isEmpty != named { // 1 to 3 are the session
				t.Errorf("a part with %s: empty %v", field.FullName(), isEmpty)
			}
		}
	}
}

// TestFrameOfThePoolIsEmpty: what a frame had before does not show when it is filled again.
func TestFrameOfThePoolIsEmpty(t *testing.T) {
	server, worker := fullServerFrame(), fullWorkerFrame()
	server.ResetVT()
	worker.ResetVT()
	if !server.IsEmpty() || !worker.IsEmpty() {
		t.Errorf("%v, %v", server, worker)
	}
	server.OrdersIn(session).AddOrder(&executor.Order{Key: key})
	want := &ServerFrame{Partitions: []*PartitionOrders{{Partition: 1, Epoch: 1 << 40, Session: 3,
		Orders: []*Order{{Run: uint64(key.Run), Task: key.Task, Attempt: key.Attempt}}}}}
	if !proto.Equal(server, want) {
		t.Errorf("%v", server)
	}
}

func TestSplitKeepsAllItemsInTheirOrder(t *testing.T) {
	if whole := fullWorkerFrame(); len(whole.Split(1)) != 1 {
		t.Error("a frame with one end is cut")
	}
	for ends := range 10 {
		for _, size := range []int{1, 100, 300} {
			f := fullWorkerFrame()
			f.Partitions[0].Finished = nil
			for i := range ends {
				f.Partitions[0].AddFinished(bytes.Repeat([]byte{byte(i)}, size))
			}
			before := proto.Clone(f)
			frames := f.Split(250)
			joined := new(WorkerFrame)
			for i, part := range frames {
				if len(part.Partitions) != 1 || SessionOf(part.Partitions[0]) != session {
					t.Fatalf("%d ends of %d bytes: frame %d has %v", ends, size, i, part)
				}
				bytes := 0
				for _, end := range part.Partitions[0].Finished {
					bytes += len(end)
				}
				if bytes > 250 && len(part.Partitions[0].Finished) > 1 {
					t.Errorf("%d ends of %d bytes: frame %d has %d bytes", ends, size, i, bytes)
				}
				if last := i == len(frames)-1; part.Partitions[0].Synced != last || part.Stopped != last || (part.Usage != nil) != last || (part.Hello != nil) != (i == 0) {
					t.Errorf("%d ends of %d bytes: frame %d of %d has the wrong fields: %v", ends, size, i, len(frames), part)
				}
				mergeFrame(joined, part)
			}
			if !proto.Equal(joined, before) {
				t.Errorf("%d ends of %d bytes: %v", ends, size, joined)
			}
			if size == 300 && ends > 1 && len(frames) != ends {
				t.Errorf("%d large ends are in %d frames", ends, len(frames))
			}
		}
	}
}

// mergeFrame appends a frame to what came before it, as a server takes it in: parts of one session come
// together.
func mergeFrame(joined, frame *WorkerFrame) {
	rest := proto.Clone(frame).(*WorkerFrame)
	rest.Partitions = nil
	proto.Merge(joined, rest)
	for _, report := range frame.Partitions {
		proto.Merge(joined.ReportIn(SessionOf(report)), &PartitionReport{Queued: report.Queued, Started: report.Started,
			Finished: report.Finished, Revoked: report.Revoked, Ignored: report.Ignored, Synced: report.Synced})
	}
}

// TestSplitKeepsSessionsApart splits frames with the reports of several sessions. Each item stays in its
// session, and a session's frames are in order, the last of them with synced.
func TestSplitKeepsSessionsApart(t *testing.T) {
	for _, ends := range [][]int{{0, 0, 0}, {5, 0, 5}, {1, 1, 1}, {2, 9, 1}, {0, 7, 0}} {
		f := new(WorkerFrame)
		for partition, n := range ends {
			said := f.ReportIn(Session{Partition: uint32(partition), Epoch: 2, Number: uint64(9 - partition)})
			said.AddQueued(key, 1)
			for i := range n {
				said.AddFinished(bytes.Repeat([]byte{byte(i)}, 100))
			}
			said.AddRevoked(key, 9)
			said.Synced = true
		}
		before := proto.Clone(f)
		joined, synced := new(WorkerFrame), map[Session]bool{}
		for i, part := range f.Split(250) {
			size := 0
			for _, report := range part.Partitions {
				s := SessionOf(report)
				if synced[s] {
					t.Errorf("%v: frame %d goes on with a session that was synced: %v", ends, i, report)
				}
				synced[s] = report.Synced
				for _, end := range report.Finished {
					size += len(end)
				}
			}
			if size > 250 {
				t.Errorf("%v: frame %d has %d bytes of ends", ends, i, size)
			}
			mergeFrame(joined, part)
		}
		if !proto.Equal(joined, before) {
			t.Errorf("%v: %v, want %v", ends, joined, before)
		}
	}
}

// FuzzFrames decodes any bytes as each message. What can be read can be encoded, and what a worker says
// comes back the same in one frame and in several.
func FuzzFrames(f *testing.F) {
	for _, m := range fullMessages() {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{0x1a, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, b []byte) {
		for name, m := range map[string]vtMessage{
			"server": new(ServerFrame), "worker": new(WorkerFrame), "request": new(LogRequest), "reply": new(LogReply), "record": new(JournalRecord),
		} {
			if m.UnmarshalVT(b) != nil {
				continue
			}
			again := make([]byte, m.SizeVT())
			if _, err := m.MarshalToSizedBufferVT(again); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if frame := new(WorkerFrame); frame.UnmarshalVT(b) == nil {
			want, joined := new(WorkerFrame), new(WorkerFrame)
			mergeFrame(want, frame)
			for _, part := range frame.Split(4) {
				mergeFrame(joined, part)
			}
			if !proto.Equal(joined, want) {
				t.Errorf("%v was split into %v", want, joined)
			}
		}
		if rep, err := ParseFinished(b); err == nil {
			if back, err := ParseFinished(AppendFinished(nil, &rep)); err != nil || !reflect.DeepEqual(back, rep) {
				t.Errorf("%+v came back as %+v, %v", rep, back, err)
			}
		}
	})
}

// framed is how many attempts a frame of the benchmarks has.
const framed = 32

// BenchmarkCodec encodes and decodes what an attempt needs of the protocol, in frames of 32
// attempts. ns/attempt and allocs/op count.
func BenchmarkCodec(b *testing.B) {
	single := Session{Number: 1} // of a server without a cluster
	granted := time.Date(2026, 11, 30, 0, 0, 0, 0, time.UTC).UnixNano()
	key := messages.AttemptKey{Run: 12, Task: 4711, Attempt: 1}
	order := executor.Order{Key: key, Name: "simulate_4711", Command: []string{"/bin/true"}, Environment: []string{"SEED=4711", "MODE=fast"},
		Dir: "/var/lib/caravan/work", CPUMillis: 1000, MemoryBytes: 100 << 20, GrantedAt: granted}
	end := executor.Report{Key: key, Kind: executor.Finished, At: granted + 5000, GrantedAt: granted, Record: messages.AttemptRecord{
		Task: key.Task, Attempt: 1, Start: granted + 1000, Stop: granted + 5000, Node: "node-1",
		UserCPU: 300 * time.Microsecond, SystemCPU: 200 * time.Microsecond}}
	perAttempt := func(b *testing.B) {
		b.ReportAllocs()
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/framed, "ns/attempt")
	}
	// way measures both ends of the way of a frame that add fills.
	way := func(name string, fill func() (vtMessage, func()), take func([]byte)) {
		m, _ := fill()
		sent := make([]byte, m.SizeVT())
		if _, err := m.MarshalToSizedBufferVT(sent); err != nil {
			b.Fatal(err)
		}
		b.Run(name+"/encode", func(b *testing.B) {
			for b.Loop() {
				m, free := fill()
				if n := m.SizeVT(); n != len(sent) {
					b.Fatal(n)
				}
				if _, err := m.MarshalToSizedBufferVT(sent); err != nil {
					b.Fatal(err)
				}
				free()
			}
			perAttempt(b)
			b.ReportMetric(float64(len(sent))/framed, "bytes/attempt")
		})
		b.Run(name+"/decode", func(b *testing.B) {
			for b.Loop() {
				take(sent)
			}
			perAttempt(b)
		})
	}
	way("order", func() (vtMessage, func()) {
		f := ServerFrameFromVTPool()
		for range framed {
			f.OrdersIn(single).AddOrder(&order)
		}
		return f, f.ReturnToVTPool
	}, func(sent []byte) {
		f := ServerFrameFromVTPool()
		if err := f.UnmarshalVT(sent); err != nil {
			b.Fatal(err)
		}
		for _, o := range f.Partitions[0].Orders {
			if o := o.ToOrder(); o.Key != key {
				b.Fatal(o)
			}
		}
		f.ReturnToVTPool()
	})
	way("start", func() (vtMessage, func()) {
		f := WorkerFrameFromVTPool()
		for range framed {
			f.ReportIn(single).AddStarted(key, granted+1000, 90*time.Microsecond, granted)
		}
		return f, f.ReturnToVTPool
	}, func(sent []byte) {
		f := WorkerFrameFromVTPool()
		if err := f.UnmarshalVT(sent); err != nil || len(f.Partitions[0].Started) != framed {
			b.Fatal(err)
		}
		f.ReturnToVTPool()
	})
	way("end", func() (vtMessage, func()) {
		f := WorkerFrameFromVTPool()
		for range framed {
			f.ReportIn(single).AddFinished(AppendFinished(nil, &end))
		}
		return f, f.ReturnToVTPool
	}, func(sent []byte) {
		f := WorkerFrameFromVTPool()
		if err := f.UnmarshalVT(sent); err != nil {
			b.Fatal(err)
		}
		for _, end := range f.Partitions[0].Finished {
			if rep, err := ParseFinished(end); err != nil || rep.Key != key {
				b.Fatal(rep, err)
			}
		}
		f.ReturnToVTPool()
	})
}

// TestNodeStatusGoesRound: what an agent says of its node comes back as it was. A partition that the reader does not
// have is left out.
func TestNodeStatusGoesRound(t *testing.T) {
	said := NodeStatus{Capacity: Amount{CPUMillis: 1, MemoryBytes: 2}, Draining: true, Taken: []Taken{{}, taken, taken}}
	f := WorkerFrameFromVTPool()
	f.SetNode(said)
	if got := f.Node.Status(3); !reflect.DeepEqual(got, said) {
		t.Errorf("%+v, want %+v", got, said)
	}
	said.Taken = said.Taken[:2]
	if got := f.Node.Status(2); !reflect.DeepEqual(got, said) {
		t.Errorf("%+v, want %+v", got, said)
	}
}
